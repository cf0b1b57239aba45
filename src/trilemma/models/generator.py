"""What families that draw images from a condition share: codec, condition, guidance, and sampling in batches."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.conditions.base import ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.base import Family
from trilemma.processes.noise import Noise, NoiseSource
from trilemma.samplers.base import OnStep, Sampler
from trilemma.samplers.guidance import Guidance
from trilemma.samplers.named import as_guidance, as_sampler


class ImageGenerator(Family):
    """A family that draws codes from a condition, and decodes them to images.

    A subclass gives `sample_codes`, sets the attributes and then calls `check_parts`. One that draws in a single call, such as a
    decoder of latents, has no sampler; `Diffusion` and `AutoregressiveModel` have one.

    Attributes:
        codec: Image <-> code.
        condition: Embeds labels or text.
        guidance: Default guidance.
        sampler: Default way to draw; None for a family that draws in a single call.
    """

    codec: Codec
    condition: ConditionEncoder
    guidance: Guidance
    sampler: Sampler | None = None

    @abstractmethod
    def sample_codes(
        self,
        noise: NoiseSource,
        num: int,
        raw: Any = None,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw codes [num, ...], as `decode` takes them.

        Args:
            noise: Source of all randomness, for `num` images.
            num: How many.
            raw: Raw conditions, one each; None for the null condition.
            sampler: The family's own where None.
            guidance: The family's own where None.
            on_step: See `trilemma.samplers.base.OnStep`.
        """

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes, as `sample_codes` returns them, to images [B, C, H, W] in [-1, 1]."""
        return self.codec.decode(codes)

    def validation_noise(self, batch: Batch, seed: int = 0) -> NoiseSource:
        """Build the noise for a validation batch: a function of the seed and of each image."""
        return Noise(seed, batch["index"], self.device)

    @classmethod
    def check_sampler_kind(cls, sampler: type[Sampler] | None, process: type[Any] | None) -> None:
        """Check, before either is built, that a class of samplers can draw from this family on a class of processes.

        Raises:
            UserError: If not, with what would fit.
        """
        del process
        if sampler is not None:
            raise UserError(
                f"a {cls.__name__} draws images in a single call, and sampler {sampler.__name__} has nothing to do: leave out sampler="
            )

    def check_sampler(self, sampler: Sampler | None) -> None:
        """Check that a sampler can draw from this model with its settings.

        Raises:
            UserError: If not, with what would fit.
        """
        self.check_sampler_kind(None if sampler is None else type(sampler), None)

    def check_guidance(self, guidance: Guidance) -> None:
        """Check that a guidance can guide this model; here none can, because images are drawn in a single call.

        Raises:
            UserError: If it cannot, with what would fit.
        """
        if type(guidance) is not Guidance:
            raise UserError(
                f"a {type(self).__name__} draws images in a single call, which no guidance reaches: take guidance=none, and no "
                "guidance.scale"
            )

    def check_parts(self) -> None:
        """Check that sampler, guidance and condition fit each other; the last line of a subclass's constructor.

        Raises:
            UserError: If they do not.
        """
        self.check_guidance(self.guidance)
        self.check_sampler(self.sampler)

    def examples(self, num: int) -> list[Any] | None:
        """Choose conditions for `num` images; see `ConditionEncoder.examples`."""
        return self.condition.examples(num)

    def codes(self, batch: Batch, noise: NoiseSource) -> Tensor:
        """Get the batch's codes: the cached ones, else encoded now; a stochastic codec draws from `noise`."""
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
        sampler: Sampler | str | None = None,
        guidance: Guidance | float | None = None,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 256,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Tensor:
        """Draw images float [num_images, C, H, W] in [-1, 1].

        `model.sample(16, condition=7, num_steps=10, guidance=2.0)`, `model.sample(16, sampler="ddim", eta=0.5)`.

        Args:
            num_images: How many.
            condition: One label or caption for all, a sequence of `num_images`, or None for unconditional samples.
            sampler: How to draw: an option of the command line's `sampler=` ("ddim"), a `Sampler`, or None for the model's own.
            guidance: How the condition is strengthened: the scale of classifier-free guidance (0 unconditional, 1 conditional,
                above 1 guided), a `Guidance`, or None for the model's own.
            seed: Of the counter-based noise: image i of a seed is the same picture in whatever batch it is drawn.
            first_index: Index of the first image.
            batch_size: Images at a time; no image depends on it.
            on_step: Called after each step, see `trilemma.samplers.base.OnStep`.
            settings: Of the sampler, to be changed: num_steps, temperature, truncation, eta, ...

        Raises:
            UserError: If the number of images or of conditions is wrong, a condition, sampler or setting is unknown, or sampler and
                guidance do not fit this model.
        """
        if num_images < 1:
            raise UserError(f"num_images={num_images}: ask for at least one image")
        sampler, guidance = as_sampler(sampler, self.sampler, settings), as_guidance(guidance, self.guidance)
        self.check_sampler(sampler)
        self.check_guidance(guidance)
        raw = one_each(condition, num_images)
        self.check_condition(raw, guidance)
        was_training = self.training
        self.train(False)
        try:
            parts = []
            for start in range(0, num_images, batch_size):
                stop = min(start + batch_size, num_images)
                noise = Noise(seed, torch.arange(first_index + start, first_index + stop), self.device)
                mine = None if raw is None else raw[start:stop]
                codes = self.sample_codes(
                    noise, stop - start, mine, sampler=sampler, guidance=guidance, on_step=on_step
                )
                parts.append(self.decode(codes))
            return torch.cat(parts)
        finally:
            self.train(was_training)

    def check_condition(self, raw: Any, guidance: Guidance | None = None) -> None:
        """Check that samples can be drawn given a raw condition.

        Args:
            raw: One label or string an image, or None.
            guidance: What the samples are drawn with; the family's own where None.

        Raises:
            UserError: If the guidance or the encoder does not know it, or neither of them would read it.
        """
        guidance = guidance or self.guidance
        guidance.check(raw)
        if self.condition.steers or not guidance.reads_condition:
            self.condition.check(raw)


def one_each(condition: Any, num: int) -> list[Any] | None:
    """Expand one label or string for all images to a list of `num`; None stays None.

    Raises:
        UserError: If there is another number of them.
    """
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        condition = condition.tolist()
    if isinstance(condition, (int, str)):
        return [condition] * num
    if isinstance(condition, (list, tuple)) and len(condition) == num:
        return list(condition)
    raise UserError(f"the condition must be one label for all or a sequence of {num} labels, not {condition!r}")
