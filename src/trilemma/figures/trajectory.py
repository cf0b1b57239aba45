"""A diffusion model's trajectory: the forward process, the reverse process, and denoising from an intermediate time.

Shapes: images [B, C, H, W] in [-1, 1]; times t in [0, 1], 0 = data, 1 = noise. All randomness is counter-based: row i of a
seed sees the same noise in every function here, whatever the batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trilemma.conditions.base import ConditionEncoder
from trilemma.data.split import Split
from trilemma.models.diffusion import ShowsTrajectory
from trilemma.processes.noise import Noise
from trilemma.samplers.base import Prediction
from trilemma.samplers.denoising import DenoisingSampler
from trilemma.samplers.guidance import Guidance


@dataclass(frozen=True)
class TrajectoryPoint:
    """The state of a trajectory at one time, in codes [B, c, h, w].

    Attributes:
        time: t.
        state: xt.
        predicted: The model's prediction of x0 given xt; at t = 0 the sample itself.
    """

    time: float
    state: Tensor
    predicted: Tensor


def even_times(num: int) -> list[float]:
    """Space `num` >= 2 times evenly from 0 to 1."""
    return [i / (num - 1) for i in range(num)]


def own_condition(encoder: ConditionEncoder, split: Split, num: int) -> Any:
    """Read the labels or captions of a split's first `num` images, as the encoder takes them; None where it takes nothing."""
    raw = encoder.raw_from(split.facts(num))
    return raw.tolist() if isinstance(raw, Tensor) else raw


@torch.no_grad()
def forward_states(model: ShowsTrajectory, images: Tensor, times: Sequence[float], *, seed: int = 0) -> Tensor:
    """Noise images to several times, each image with one noise throughout.

    Args:
        model: The family.
        images: [B, C, H, W].
        times: T of them.
        seed: Of the noise.

    Returns:
        States as images [B, T, C, H, W].
    """
    codes = codes_of(model, images)
    states = []
    for t in times:
        # Rebuilding the source at each time repeats the noise.
        xt = model.process.sample(codes, t, noise_of(model, len(codes), seed)) if t > 0 else codes
        states.append(images_of(model, xt, t))
    return torch.stack(states, dim=1)


@torch.no_grad()
def reverse_trajectory(
    model: ShowsTrajectory,
    num: int,
    raw: Any = None,
    *,
    times: Sequence[float],
    seed: int = 0,
    sampler: DenoisingSampler | None = None,
    guidance: Guidance | None = None,
) -> list[TrajectoryPoint]:
    """Draw samples and record their trajectories from noise to data.

    Args:
        model: The family.
        num: Number of samples B.
        raw: Their labels or strings, one each; None for the null condition.
        times: Times to record. The sampler has its own grid: its state is recorded where it first reaches or passes one of these.
        seed: Of the noise; the samples are those that `sample` draws of it.
        sampler: The family's own where None.
        guidance: The family's own where None.

    Returns:
        By falling time, from t = 1 to t = 0, both included.
    """
    noise = noise_of(model, num, seed)
    start = model.process.prior((num, *model.codec.code_shape), noise)
    recorder = _Recorder(start, times)
    sample = model.sample_codes(
        noise, num, raw, sampler=sampler, guidance=guidance, on_step=recorder, x_start=start, t_start=1.0
    )
    return [*recorder.points, TrajectoryPoint(0.0, sample, sample)]


class _Recorder:
    """An `OnStep` that records some states, each with the prediction of the step that leaves it."""

    def __init__(self, start: Tensor, times: Sequence[float]) -> None:
        self.points: list[TrajectoryPoint] = []
        self._waiting: tuple[float, Tensor] | None = (1.0, start.clone())
        self._ahead = sorted(t for t in times if 0.0 < t < 1.0)

    def __call__(self, step: int, s: float, xs: Tensor, prediction: Prediction) -> None:
        if self._waiting is not None and prediction.x0 is not None:
            self.points.append(TrajectoryPoint(*self._waiting, prediction.x0))
        self._waiting = None
        # The times of a grid are rounded.
        while self._ahead and s <= self._ahead[-1] + 1e-6:
            self._ahead.pop()
            self._waiting = (s, xs.clone()) if s > 0.0 else None


def nearest_points(points: Sequence[TrajectoryPoint], times: Sequence[float]) -> list[TrajectoryPoint]:
    """Find the points nearest to some times, each once, by decreasing time."""
    chosen = {min(range(len(points)), key=lambda i: abs(points[i].time - t)) for t in times}
    return [points[i] for i in sorted(chosen)]


def states_of(model: ShowsTrajectory, points: Sequence[TrajectoryPoint]) -> Tensor:
    """Decode the states of T points to images [B, T, C, H, W]."""
    return torch.stack([images_of(model, point.state, point.time) for point in points], dim=1)


def predictions_of(model: ShowsTrajectory, points: Sequence[TrajectoryPoint]) -> Tensor:
    """Decode the predictions of T points to images [B, T, C, H, W]."""
    return torch.stack([images_of(model, point.predicted) for point in points], dim=1)


@torch.no_grad()
def noise_then_denoise(
    model: ShowsTrajectory,
    images: Tensor,
    strength: float,
    raw: Any = None,
    *,
    seed: int = 0,
    sampler: DenoisingSampler | None = None,
    guidance: Guidance | None = None,
) -> Tensor:
    """Noise images up to time `strength` and denoise them from there (Meng et al. 2022, SDEdit).

    Args:
        model: The family.
        images: [B, C, H, W].
        strength: In (0, 1]; at 1 next to nothing is left of the image. The way back takes this share of the sampler's steps.
        raw: Labels or strings, one each; None for the null condition.
        seed: Of the noise, which is the same at every strength.
        sampler: The family's own where None.
        guidance: The family's own where None.

    Returns:
        Images [B, C, H, W].

    Raises:
        ValueError: If the strength is out of range.
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength={strength}: must lie in (0, 1]")
    strength = model.nearest_time(strength)
    codes, noise = codes_of(model, images), noise_of(model, len(images), seed)
    xt = model.process.sample(codes, strength, noise)
    found = model.sample_codes(
        noise,
        len(codes),
        raw,
        sampler=_shortened(sampler or model.sampler, strength),
        guidance=guidance,
        x_start=xt,
        t_start=strength,
    )
    return images_of(model, found)


def noise_of(model: ShowsTrajectory, num: int, seed: int) -> Noise:
    """Build the noise of rows 0 .. num - 1 of a seed."""
    return Noise(seed, torch.arange(num), model.device)


def _shortened(sampler: DenoisingSampler, share: float) -> DenoisingSampler:
    """Scale the sampler's number of steps by a share, at least one: the step size stays that of the whole trajectory."""
    short = copy.copy(sampler)
    short.num_steps = max(1, math.floor(sampler.num_steps * share + 1e-6))
    return short


def codes_of(model: ShowsTrajectory, images: Tensor) -> Tensor:
    """Encode images as codes float64: a trajectory's state has a wider type than its network."""
    return model.encode(images.to(model.device)).double()


@torch.no_grad()
def images_of(model: ShowsTrajectory, codes: Tensor, t: float = 0.0) -> Tensor:
    """Decode a state at time t to images, clipped to [-1, 1].

    A state with larger variance than data (as in variance-exploding processes) is scaled down first.
    """
    width = math.hypot(float(model.process.alpha(t)), float(model.process.sigma(t)))
    return model.decode((codes / max(1.0, width)).float()).float().clamp(-1.0, 1.0)
