"""Load a trained model from its checkpoint alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from trilemma.callbacks.ema import ema_weights
from trilemma.checkpoints.device import pick_device
from trilemma.checkpoints.read import read_checkpoint
from trilemma.config.build import build
from trilemma.config.targets import CHECKPOINT
from trilemma.errors import UserError
from trilemma.models.base import Family

Weights = Literal["ema", "raw"]


def load(path: str | Path, *, weights: Weights = "ema", device: str = "cpu") -> Family:
    """Rebuild a model from a checkpoint, ready to sample.

    Args:
        path: A checkpoint that `train.py` wrote. It needs nothing beside it: the configuration and a first stage's weights are inside.
        weights: Averaged weights where the run kept them ("ema"), or the last ones ("raw").
        device: Where the model goes; "auto" is a CUDA GPU where there is one, else the CPU.

    Returns:
        The family, in evaluation mode and without gradients.

    Raises:
        UserError: If the file is missing, damaged, not one of ours, or names a class that a checkpoint may not name.
    """
    model, _ = load_with_config(path, weights=weights, device=device)
    return model


def load_with_config(
    path: str | Path, *, weights: Weights = "ema", device: str = "cpu"
) -> tuple[Family, dict[str, Any]]:
    """Load like `load`, and return the checkpoint's configuration too, with the weights taken under `weights`."""
    checkpoint = read_checkpoint(Path(path))
    config = checkpoint["trilemma"]["config"]
    model = build(config.get("model"), allowed=CHECKPOINT, where=f"{path}: model")
    if not isinstance(model, Family):
        raise UserError(f"{path}: its configuration describes no model; was it written by train.py?")
    state: dict[str, Tensor] = dict(checkpoint["state_dict"])
    if weights == "ema":
        averages = ema_weights(checkpoint)
        state.update(averages or {})
        weights = "raw" if averages is None else "ema"  # a run without averages has its last weights only
    elif weights != "raw":
        raise UserError(f"weights={weights}: choose one of ema, raw")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights do not fit its configuration: {str(error).splitlines()[-1].strip()}"
        ) from None
    config["weights"] = weights
    model.config = config
    try:
        return model.requires_grad_(False).eval().to(pick_device(device)), config
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from None


def init_weights(model: Family, path: str | Path, *, keep: tuple[str, ...] = ()) -> str:
    """Copy another run's (averaged) weights where name and shape agree.

    Args:
        model: Changed in place.
        path: A checkpoint.
        keep: Modules of the model that keep their weights: the codec whose codes it learns, and parts built from it.

    Returns:
        A line that says how many of the model's tensors were loaded, and what became of the others.

    Raises:
        UserError: If no trainable weight matches.
    """
    checkpoint = read_checkpoint(Path(path))
    kept = tuple(f"{name}." for name in keep)
    own = {name: weight for name, weight in model.state_dict().items() if not name.startswith(kept)}
    source = {**checkpoint["state_dict"], **(ema_weights(checkpoint) or {})}
    source = {name: weight for name, weight in source.items() if not name.startswith(kept)}
    matching = {k: v for k, v in source.items() if k in own and own[k].shape == v.shape}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if not trained & matching.keys():
        raise UserError(f"init_from={path}: no weight of it has the name and shape of one of this model")
    model.load_state_dict(matching, strict=False)
    rest = {
        "of another shape": [k for k in own if k in source and k not in matching],
        "not in the checkpoint": [k for k in own if k not in source],
        "not in this model": [k for k in source if k not in own],
    }
    words = [f"{len(names)} {why} ({names[0]}{', ...' * (len(names) > 1)})" for why, names in rest.items() if names]
    return f"{len(matching)} of {len(own)} tensors loaded" + "".join(f"; {part}" for part in words)
