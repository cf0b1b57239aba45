"""The loss of a diffusion model against time: the newest curve over the earlier ones."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

from PIL import Image

from trilemma.figures.style import MUTED, colour, plotting

_LOG_FROM = 30.0  # a linear axis would press the smaller values together
_DPI = 130
Curve = tuple[tuple[float, float], ...]  # (t, loss) by rising t


def loss_by_time_picture(curves: Mapping[int, Curve]) -> Image.Image:
    """Draw the curves of several validations; values far apart get a logarithmic axis.

    Args:
        curves: By the batch they were measured after. The greatest one is drawn strongly, the others the fainter the
            older they are.

    Raises:
        ValueError: If the newest curve has no finite value.
    """
    steps = sorted(curves)
    finite = {step: [(t, loss) for t, loss in curves[step] if math.isfinite(loss)] for step in steps}
    if not steps or not finite[steps[-1]]:
        raise ValueError("there is no finite loss to draw")
    losses = [loss for points in finite.values() for _, loss in points]
    with plotting():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, step in enumerate(steps[:-1]):
            if finite[step]:
                age = len(steps) - 1 - i
                label = "earlier" if age == 1 else None
                axes.plot(
                    *zip(*finite[step], strict=True),
                    color=MUTED,
                    linewidth=1.0,
                    alpha=max(0.2, 0.7 / age),
                    label=label,
                )
        axes.plot(
            *zip(*finite[steps[-1]], strict=True),
            color=colour(0), linewidth=2.0, marker="o", markersize=3.5, label=f"batch {steps[-1]}",
        )  # fmt: skip
        if min(losses) > 0 and max(losses) > _LOG_FROM * min(losses):
            axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_xlabel("time t (0 = data, 1 = noise)")
        axes.set_ylabel("validation loss at t")
        axes.set_title("Validation loss by time")
        if len(steps) > 1:
            axes.legend(frameon=False)
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=_DPI, metadata={"Software": None})
    written.seek(0)
    with Image.open(written) as picture:
        return picture.convert("RGB")
