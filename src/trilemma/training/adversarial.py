"""Losses of a generator and a discriminator, and the penalty on the discriminator's slope.

Shapes: scores (logits, high for data) [B], or [B, ...] where there are several an image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(ABC):
    """What both networks minimise, from the scores of data and of samples."""

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the discriminator's loss, a scalar in nats."""

    @abstractmethod
    def generator(self, real: Tensor | None, fake: Tensor) -> Tensor:
        """Compute the generator's loss, a scalar in nats; `real` is given where the loss `needs_real`."""

    needs_real: bool = False


class NonSaturating(AdversarialLoss):
    """The generator maximises log D of its samples, D the sigmoid of the score (Goodfellow et al. 2014, section 3)."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compute -log D(data) - log(1 - D(samples))."""
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator(self, real: Tensor | None, fake: Tensor) -> Tensor:
        """Compute -log D(samples)."""
        return F.softplus(-fake).mean()


class Relativistic(AdversarialLoss):
    """RpGAN: each network is judged by the difference of the scores of a sample and an image, in pairs.

    Source: Jolicoeur-Martineau 2019, section 4.1; Huang et al. 2024 (R3GAN), equation 2 with f(t) = -log(1 + e^-t).
    """

    needs_real = True

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compute log(1 + exp(D(sample) - D(data)))."""
        return F.softplus(fake - real).mean()

    def generator(self, real: Tensor | None, fake: Tensor) -> Tensor:
        """Compute log(1 + exp(D(data) - D(sample)))."""
        assert real is not None
        return F.softplus(real - fake).mean()


class Hinge(AdversarialLoss):
    """The discriminator separates scores by a margin of 1 on either side of 0; the generator raises those of its samples.

    Source: Lim and Ye 2017; half of the sum over data and samples, as Esser et al. 2021 (VQGAN) take it.
    """

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compute half of max(0, 1 - D(data)) + max(0, 1 + D(samples))."""
        return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())

    def generator(self, real: Tensor | None, fake: Tensor) -> Tensor:
        """Compute -D(samples)."""
        return -fake.mean()


def adaptive_weight(error: Tensor, adversarial: Tensor, weight: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the factor that gives an adversarial loss the pull of a reconstruction error: |grad error| / |grad adversarial|.

    Both gradients are those by the weights of the decoder's last layer, through which both losses act. Whatever scales the adversarial
    loss changes nothing.

    Source: Esser et al. 2021 (VQGAN), equation 7, with a delta of 1e-4 as in the released code, and at most 1e4.

    Args:
        error: A scalar.
        adversarial: A scalar.
        weight: The weights of the last layer.
        average: Averages a tensor over the processes that have a part of the batch each.

    Returns:
        A scalar without gradient.
    """
    both = torch.stack(
        [torch.autograd.grad(loss, weight, retain_graph=True)[0].flatten() for loss in (error, adversarial)]
    )
    error_norm, adversarial_norm = average(both).norm(dim=1)
    factor: Tensor = error_norm / (adversarial_norm + 1e-4)
    return factor.clamp(max=1e4).detach()


def squared_slope(score: Tensor, x: Tensor) -> Tensor:
    """Compute |grad_x D(x)|^2 of each image, [B], differentiable by the discriminator's weights.

    On data its mean is the penalty R1, on samples R2, both times gamma / 2.

    Source: Mescheder et al. 2018, equation 9.

    Args:
        score: D(x) [B].
        x: Images [B, ...] that require gradients.
    """
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)
