"""Pictures of a diffusion model's trajectory, drawn during training.

Families without one are skipped (`trilemma.models.diffusion.ShowsTrajectory`). Averaged weights are used where there are any, and
training's random generators are left untouched.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.pictures.drawing import picture, publish, takes_part, undisturbed
from trilemma.callbacks.pictures.periodic import PeriodicPicture
from trilemma.capabilities import supports
from trilemma.data.base import ImageData
from trilemma.data.images import to_float
from trilemma.errors import UserError
from trilemma.figures.images import save_gif
from trilemma.figures.trajectory import (
    even_times,
    forward_states,
    nearest_points,
    noise_then_denoise,
    own_condition,
    predictions_of,
    reverse_trajectory,
    states_of,
)
from trilemma.figures.trajectory_pictures import denoise_picture, forward_picture, reverse_picture, trajectory_frames
from trilemma.models.diffusion import ShowsTrajectory

NUM_COLUMNS, NUM_FRAMES = 11, 31  # every third frame is a column


class ForwardStrip(L.Callback):
    """Draws how the process noises a few validation images, once at the start of a run: `forward/step-00000000.png`.

    Args:
        num_images: How many, one row each.
        seed: Of the noise.
    """

    def __init__(self, num_images: int = 4, *, seed: int = 0) -> None:
        if num_images < 1:
            raise UserError("num_images of the forward strip must be at least 1")
        self.num_images = num_images
        self.seed = seed

    @picture
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, unless the run goes on from a checkpoint."""
        data = getattr(trainer, "datamodule", None)
        if num_batches(trainer) or not takes_part(trainer, pl_module) or not isinstance(data, ImageData):
            return
        if not supports(pl_module, ShowsTrajectory) or not data.split("val").has_images:
            return
        images, times = to_float(data.split("val").images[: self.num_images]), even_times(NUM_COLUMNS)
        with undisturbed(pl_module):
            states = forward_states(pl_module, images, times, seed=self.seed)
        publish(trainer, "forward", forward_picture(states, times))


class _TrajectoryPicture(PeriodicPicture, ABC):
    def _can_draw(self, module: L.LightningModule) -> bool:
        return supports(module, ShowsTrajectory)


class ReverseStrip(_TrajectoryPicture):
    """Draws samples along the trajectory: a strip, `reverse/step-00001000.png`, and an animation of more, `.gif` beside it.

    In the strip each sample has the state in one row and the predicted x0 in the row below. A model
    conditioned on labels draws them in turn.

    Args:
        every_n_batches: How often.
        num_rows: Samples in the strip.
        num_images: Samples in the animation, those of the strip among them.
        seed: Of the noise.
    """

    def __init__(self, every_n_batches: int = 1000, *, num_rows: int = 3, num_images: int = 16, seed: int = 0) -> None:
        if min(every_n_batches, num_rows, num_images) < 1:
            raise UserError("every_n_batches, num_rows and num_images of the reverse strip must be at least 1")
        super().__init__(every_n_batches)
        self.num_rows = num_rows
        self.num_images = num_images
        self.seed = seed

    def _draw(self, trainer: L.Trainer, model: ShowsTrajectory) -> None:
        num = max(self.num_images, self.num_rows)
        raw = model.condition.examples(num)
        points = reverse_trajectory(model, num, raw, times=even_times(NUM_FRAMES), seed=self.seed)
        chosen = nearest_points(points, even_times(NUM_COLUMNS))
        states, predicted = (
            part[: self.num_rows] for part in (states_of(model, chosen), predictions_of(model, chosen))
        )
        publish(trainer, "reverse", reverse_picture(states, predicted, [point.time for point in chosen]))
        frames = states_of(model, points)[: self.num_images]
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "reverse" / f"step-{num_batches(trainer):08d}.gif"
            save_gif(trajectory_frames(frames), path)


class NoiseThenDenoise(_TrajectoryPicture):
    """Noises validation images to several strengths and denoises them: `denoise/step-00005000.png`.

    Each keeps its own label where the model knows labels. Low strengths show what the model does to data, high ones what
    it invents (Ho et al. 2020, figure 5 of the stochastic reconstructions; Meng et al. 2022).

    Args:
        every_n_batches: How often.
        num_images: How many, one column each.
        strengths: Times in (0, 1] that are noised up to, one row each.
        seed: Of the noise.
    """

    def __init__(
        self,
        every_n_batches: int = 5000,
        *,
        num_images: int = 8,
        strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
        seed: int = 0,
    ) -> None:
        if min(every_n_batches, num_images) < 1 or not strengths or not all(0 < t <= 1 for t in strengths):
            raise UserError(
                "every_n_batches and num_images of noise-then-denoise must be at least 1 and its strengths lie in (0, 1], "
                f"not {every_n_batches}, {num_images} and {list(strengths)}"
            )
        super().__init__(every_n_batches)
        self.num_images = num_images
        self.strengths = tuple(strengths)
        self.seed = seed

    def _draw(self, trainer: L.Trainer, model: ShowsTrajectory) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageData):
            return
        split = data.split("val")
        if not split.has_images:
            return
        images = to_float(split.images[: self.num_images])
        raw = own_condition(model.condition, split, len(images))
        # At a time that no trajectory visits (EDM's below its least noise) there is nothing to take away.
        strengths = [t for t in self.strengths if t > getattr(model.process, "min_time", 0.0)]
        found = [noise_then_denoise(model, images, t, raw, seed=self.seed).cpu() for t in strengths]
        if found:
            publish(trainer, "denoise", denoise_picture(images, found, strengths))
