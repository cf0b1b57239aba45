"""What a family can do beyond training: small protocols, asked by `trilemma.capabilities.supports`, never by a family's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from trilemma.data.batch import Batch

if TYPE_CHECKING:
    from trilemma.networks.classifier import FeatureClassifier
    from trilemma.samplers.base import OnStep, Sampler
    from trilemma.samplers.guidance import Guidance


@runtime_checkable
class Samples(Protocol):
    """A family that draws images."""

    def examples(self, num: int) -> list[Any] | None:
        """Choose conditions for `num` images, the same at every call; None for an unconditional family."""

    def sample(
        self,
        num_images: int,
        *,
        condition: Any = None,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        seed: int = 0,
        first_index: int = 0,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw images float [num_images, C, H, W] in [-1, 1].

        Args:
            num_images: How many.
            condition: One label or string for all, a sequence of `num_images`, or None for unconditional samples.
            sampler: How to draw; the family's own where None.
            guidance: How the condition is strengthened; the family's own where None.
            seed: Of the counter-based noise.
            first_index: Index of the first image: image i of a seed is the same picture in whatever batch it is drawn.
            on_step: See `Sampler`.

        Raises:
            UserError: If the condition is not one this model knows.
        """


@runtime_checkable
class Reconstructs(Protocol):
    """A family that reconstructs images."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images [B, C, H, W] in [-1, 1]."""


@dataclass(frozen=True)
class Likelihood:
    """A log-likelihood with its kind: exact, bound or estimate.

    Attributes:
        nats: Negative log-likelihood per image, [B].
        kind: "exact", "bound" (an upper bound of the true value) or "estimate".
        num_dims: Dimensions that bits/dim divide by.
        unit: What one dimension is ("token", "subpixel").
        num_samples: Importance samples an image that an estimate is made of; None where there are none.
    """

    nats: Tensor
    kind: Literal["exact", "bound", "estimate"]
    num_dims: int
    unit: str
    num_samples: int | None = None


@runtime_checkable
class ScoresLikelihood(Protocol):
    """A family that scores data."""

    def score_likelihood(self, batch: Batch, *, seed: int = 0) -> Likelihood:
        """Score a batch."""


@runtime_checkable
class EstimatesLikelihood(ScoresLikelihood, Protocol):
    """A family whose likelihood is estimated by importance sampling, with as many samples as it is told."""

    def set_likelihood_samples(self, num: int) -> None:
        """Choose the number of importance samples an image; more come closer to log p(x), from below.

        Raises:
            UserError: If it is below 1.
        """


@runtime_checkable
class DecodesLatents(Protocol):
    """A family whose images are a function of one standard normal vector, such as a VAE or a GAN."""

    def latent_dim(self) -> int:
        """Width d of that vector."""

    def from_latents(self, z: Tensor, raw: Any = None) -> Tensor:
        """Decode latents [B, d] to images [B, C, H, W] in [-1, 1], given raw conditions, one each, or the null one."""


@runtime_checkable
class EncodesLatents(DecodesLatents, Protocol):
    """A family that also finds the latents of images."""

    def to_latents(self, images: Tensor, raw: Any = None) -> Tensor:
        """Encode images [B, C, H, W] in [-1, 1] as the means of their latents, [B, d]."""


class LabelScore(NamedTuple):
    """How labelled images were classified.

    Attributes:
        right: Whether the most likely label is the image's own, bool [B].
        nats: Cross-entropy of the image's own label, [B].
    """

    right: Tensor
    nats: Tensor


@runtime_checkable
class Classifies(Protocol):
    """A family that predicts the labels of images."""

    def score_labels(self, batch: Batch, *, seed: int = 0) -> dict[str, LabelScore]:
        """Score labelled images under each condition that the family names ("t = 0.1"), the easiest first."""

    def feature_network(self) -> FeatureClassifier | None:
        """Get the network of clean images whose hidden layer can measure quality; None where the family has none."""
