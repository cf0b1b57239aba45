"""What autoregressive models share: an exact likelihood, and sampling position by position.

Shapes: B images, L positions.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from trilemma.codecs.base import flatten, unflatten
from trilemma.conditions.base import Condition
from trilemma.data.batch import Batch
from trilemma.distributions.base import Distribution
from trilemma.errors import UserError
from trilemma.models.base import Loss
from trilemma.models.capabilities import Likelihood
from trilemma.models.generator import ImageGenerator
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.base import OnStep, Sampler
from trilemma.samplers.guidance import Guidance
from trilemma.training.diagnostics import Diagnostics


class AutoregressiveModel(ImageGenerator):
    """A family that learns p(x_i | x_1, ..., x_{i-1}, condition) of the codes of a frozen codec.

    A subclass gives `distribution` of all positions at once, for training, and `start` and `step` of
    `trilemma.samplers.autoregressive.Autoregressive`, for sampling; the two must agree.

    Attributes:
        sampler: Default way to draw samples.
        condition_dropout: Share of training examples whose condition is replaced by the learned null.
    """

    sampler: AutoregressiveSampler
    condition_dropout: float
    monitor = ("val/bits_per_dim", "min")

    @abstractmethod
    def distribution(self, x: Tensor, condition: Condition) -> Distribution:
        """Predict the distribution of every position given those before it, of values shaped as `sequence` gives them."""

    @abstractmethod
    def start(self, condition: Condition, context: Tensor | None = None) -> Any:
        """See `trilemma.samplers.autoregressive.Autoregressive`."""

    @abstractmethod
    def step(self, token: Tensor | None, state: Any) -> tuple[Distribution, Any]:
        """See `trilemma.samplers.autoregressive.Autoregressive`."""

    @property
    def num_positions(self) -> int:
        """Length L of a sequence."""
        return self.codec.length

    def sequence(self, batch: Batch, noise: NoiseSource) -> Tensor:
        """Encode the batch as what `distribution` scores: sequences [B, L], unless a family says otherwise."""
        return flatten(self.codes(batch, noise))

    def decode(self, codes: Tensor) -> Tensor:
        """Decode sequences [B, L] to images [B, C, H, W] in [-1, 1]."""
        return self.codec.decode(unflatten(codes, self.codec.code_shape))

    def loss(self, batch: Batch) -> Loss:
        """Compute the negative log-likelihood in nats a position."""
        noise = self.training_noise()
        x = self.sequence(batch, noise)
        drop = noise.uniform((len(x),)) < self.condition_dropout
        condition = self.condition(self.condition.raw_from(batch), num=len(x), drop=drop)
        return Loss(-self.distribution(x, condition).log_prob(x).mean())

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Diagnostics] | None:
        """Log the negative log-likelihood in bits a position."""
        likelihood = self.score_likelihood(batch)
        bits = likelihood.nats.mean() / (likelihood.num_dims * math.log(2))
        self.log("val/bits_per_dim", bits, batch_size=len(likelihood.nats), sync_dist=True, prog_bar=True)
        return None

    @torch.no_grad()
    def score_likelihood(self, batch: Batch, *, seed: int = 0) -> Likelihood:
        """Compute the exact negative log-likelihood in nats an image; `seed` is for a codec that draws."""
        x = self.sequence(batch, self.validation_noise(batch, seed))
        condition = self.condition(self.condition.raw_from(batch), num=len(x))
        nats = -self.distribution(x, condition).log_prob(x).flatten(1).sum(1)
        learned = any(True for _ in self.codec.parameters())
        return Likelihood(nats, "exact", x[0].numel(), "token" if learned else "subpixel")

    @classmethod
    def check_sampler_kind(cls, sampler: type[Sampler] | None, process: type[Any] | None) -> None:
        """See `ImageGenerator`."""
        del process
        if sampler is None:
            raise UserError(f"a {cls.__name__} needs a sampler: choose sampler=autoregressive")
        sampler.check_kind(cls)

    def check_guidance(self, guidance: Guidance) -> None:
        """See `ImageGenerator`; there is no noisy image to take a gradient in."""
        if guidance.gradient is not None or guidance.reads_condition:
            raise UserError(
                f"guidance {type(guidance).__name__} follows a gradient, and a {type(self).__name__} draws one position after the other: "
                "take guidance=classifier_free"
            )
        guidance.check_encoder(self.condition)

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
        """Draw sequences [num, L]; see `ImageGenerator`."""
        sampler = sampler or self.sampler
        self.check_sampler(sampler)
        assert isinstance(sampler, AutoregressiveSampler)
        return sampler(
            self,
            self.num_positions,
            condition=self.condition(raw, num=num),
            guidance=guidance or self.guidance,
            noise=noise,
            on_step=on_step,
        )
