"""What families that are sampled by a walk share: a denoiser, a process and a sampler make images."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.models.base import Family
from trilemma.models.sampling import in_batches
from trilemma.processes.noise import Noise, NoiseSource
from trilemma.samplers.base import OnStep, Prediction, Sampler
from trilemma.samplers.guidance import Guidance


class Diffusion(Family):
    """A family whose samples are the end of a walk from noise.

    Attributes:
        codec: Image <-> code.
        process: The corruption.
        condition: Embeds labels or text.
        sampler: Default way to draw samples.
        guidance: Default guidance.
    """

    codec: Codec
    process: Any
    condition: ConditionEncoder
    sampler: Sampler
    guidance: Guidance

    @abstractmethod
    def denoise(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """The `Denoiser` that samplers see."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] of codes as the walk leaves them."""

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one image's state on the walk."""
        return tuple(self.codec.code_shape)

    def raw_condition(self, batch: Batch) -> Any:
        """The batch's captions or labels, as `condition` takes them."""
        return batch.get("caption", batch.get("label"))

    def codes(self, batch: Batch, noise: NoiseSource) -> Tensor:
        """The batch's codes: the cached ones, else encoded now; a codec that draws does so from `noise`."""
        if "code" in batch:
            return self.codec.from_cache(batch["code"], noise)
        with torch.no_grad():
            return self.codec.encode(batch["image"], noise)

    @torch.no_grad()
    def sample(
        self,
        num_images: int,
        *,
        condition: Any = None,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 256,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw images float [num_images, C, H, W] in [-1, 1]; see `trilemma.models.base.Samples`."""

        def draw(raw: Any, indices: Tensor) -> Tensor:
            noise = Noise(seed, indices, self.device)
            codes = self.sample_codes(noise, len(indices), raw, sampler=sampler, guidance=guidance, on_step=on_step)
            return self.decode(codes)

        return in_batches(self, draw, num_images, condition, first_index, batch_size, guidance or self.guidance)

    def sample_codes(
        self,
        noise: NoiseSource,
        num: int,
        raw: Any = None,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        on_step: OnStep | None = None,
        x_start: Tensor | None = None,
        t_start: float = 1.0,
    ) -> Tensor:
        """Draw codes [num, *state_shape] given raw labels or strings; `x_start` at `t_start` denoises from there."""
        return (sampler or self.sampler)(
            self.denoise,
            self.process,
            (num, *self.state_shape),
            condition=self.condition(raw, num=num),
            guidance=guidance or self.guidance,
            noise=noise,
            on_step=on_step,
            x_start=x_start,
            t_start=t_start,
        )
