"""How the branches of a condition are combined into one prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.errors import UserError
from trilemma.samplers.base import Prediction


class Guidance:
    """No guidance: the network's prediction under the condition. Subclasses override what they change.

    Attributes:
        on_posterior: None, or a method (log_ps [B, L, S], process, xt, t) -> log_ps. Only where a guidance defines it
            does a categorical sampler form p(xs|xt).
        gradient: None, or a method (xt, t, condition) -> what the guidance adds to the score of xt, that is
            scale * grad log p(y|xt), shaped like xt. A Gaussian sampler that draws xs from N(mu, var) moves mu by
            var * gradient (Dhariwal and Nichol 2021, algorithm 1); one without a posterior moves eps by
            -sigma * gradient (algorithm 2). Called without autograd: a method that needs it enables it.
        reads_condition: Whether it reads the raw condition itself, and so can guide an unconditional model.
    """

    on_posterior: Callable[[Tensor, Any, Tensor, float], Tensor] | None = None
    gradient: Callable[[Tensor, float, Condition], Tensor] | None = None
    reads_condition: bool = False

    def check(self, raw: Any) -> None:
        """Raise `UserError` unless it can guide to the raw condition: one label or caption an image, or None."""

    def check_encoder(self, encoder: ConditionEncoder) -> None:
        """Check that it can guide a model with such conditions.

        Raises:
            UserError: If not.
        """

    def examples(self, num: int) -> list[Any] | None:
        """See `ConditionEncoder.examples`; asked where it reads the condition itself."""
        del num
        return None

    def describe(self, raw: Any) -> str:
        """See `ConditionEncoder.describe`; asked where it reads the condition itself."""
        del raw
        return "none"

    def branches(self, condition: Condition, t: float) -> list[Condition]:
        """List the conditions to run the network under at time t; the sampler runs them as one batch."""
        del t
        return [condition]

    def on_prediction(self, predictions: list[Prediction], process: Any, xt: Tensor, t: float) -> Prediction:
        """Combine the predictions, one a branch, in the order of `branches`."""
        del process, xt, t
        (prediction,) = predictions
        return prediction


class ClassifierFree(Guidance):
    """Classifier-free guidance (Ho and Salimans 2022): u + scale * (c - u), on log p(x0|xt) or on the Gaussian x0.

    Guiding log p(x0) is the discrete form of Tang et al. 2022, "Improved Vector Quantized Diffusion Models", equation
    8.

    Args:
        scale: 0 is unconditional, 1 conditional, above 1 guided. 0 and 1 run the network once, exactly; so does any scale
            where the condition is the null itself.
        start: Time from which the guidance is on, in [0, 1]; before it (t > start) the scale is 1.
        stop: Time down to which it is on; after it (t < stop) the scale is 1.

    Raises:
        UserError: If the scale is not a number or the interval is not one.
    """

    def __init__(self, scale: float, start: float = 1.0, stop: float = 0.0) -> None:
        if not math.isfinite(scale):
            raise UserError(f"guidance.scale={scale}: must be finite (0 unconditional, 1 conditional, above 1 guided)")
        if not 0.0 <= stop <= start <= 1.0:
            raise UserError(f"guidance.start={start} guidance.stop={stop}: must satisfy 0 <= stop <= start <= 1")
        self.scale = scale
        self.start = start
        self.stop = stop

    def check_encoder(self, encoder: ConditionEncoder) -> None:
        """See `Guidance`; a scale other than 1 needs a null condition."""
        if self.scale != 1.0 and not encoder.has_null:
            raise UserError(
                f"guidance=classifier_free with guidance.scale={self.scale:g} has nothing to strengthen in an unconditional model "
                "(condition=none): take guidance=none, or guidance.scale=1"
            )

    def branches(self, condition: Condition, t: float) -> list[Condition]:
        """See `Guidance`.

        Raises:
            UserError: If the scale needs a null condition and the model has none.
        """
        scale = self._scale_at(t)
        if scale == 1.0 or condition.is_null:
            return [condition]
        if condition.null is None:
            raise UserError(
                f"guidance.scale={self.scale} needs a null condition, and this is an unconditional "
                "checkpoint: set guidance.scale=1"
            )
        return [condition.null] if scale == 0.0 else [condition.null, condition]

    def on_prediction(self, predictions: list[Prediction], process: Any, xt: Tensor, t: float) -> Prediction:
        """See `Guidance`."""
        if len(predictions) == 1:
            return super().on_prediction(predictions, process, xt, t)
        null, conditional = predictions
        if null.log_x0 is not None and conditional.log_x0 is not None:
            # Up to one constant a position, as each unnormalised branch is.
            return replace(conditional, log_x0=torch.lerp(null.log_x0, conditional.log_x0, self.scale))
        if null.x0 is not None and conditional.x0 is not None:
            return replace(conditional, x0=torch.lerp(null.x0, conditional.x0, self.scale))
        raise ValueError("the branches of a guidance must both predict log_x0 or both x0")

    def _scale_at(self, t: float) -> float:
        return self.scale if self.stop <= t <= self.start else 1.0
