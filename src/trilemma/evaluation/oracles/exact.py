"""Denoisers that know the data's distribution: the mean of x0 given xt in closed form, for Gaussians and their mixtures.

Shapes: B images, K components; data are [B, ...].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trilemma.conditions.base import Condition
from trilemma.processes.gaussian.process import GaussianProcess, broadcast_like
from trilemma.processes.noise import NoiseSource, TorchNoise
from trilemma.samplers.base import Prediction
from trilemma.samplers.guidance import Guidance


class GaussianDenoiser:
    """E[x0|xt] and Var[x0|xt] of data N(mean, std^2), every dimension by itself.

    Args:
        process: The noise.
        mean: A number, or [...] like one image.
        std: Likewise, positive.
    """

    def __init__(self, process: GaussianProcess, mean: float | Tensor, std: float | Tensor) -> None:
        self.process = process
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.variance = torch.as_tensor(std, dtype=torch.float64).square()

    def __call__(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """See `Denoiser`; the condition changes nothing."""
        alpha, noise_variance = (
            broadcast_like(self.process.alpha(t), xt),
            broadcast_like(self.process.sigma(t).square(), xt),
        )
        total = alpha.square() * self.variance + noise_variance
        x0 = self.mean + alpha * self.variance / total * (xt - alpha * self.mean)
        variance = self.variance * noise_variance / total
        return Prediction(x0=x0, x0_variance=variance.flatten(1).mean(1).view(-1, *(1,) * (xt.ndim - 1)))


class MixtureDenoiser:
    """E[x0|xt] and Var[x0|xt] of a mixture of isotropic Gaussians.

    A condition's `pooled` [B, K] holds the weight of each component, not all zero: one-hot rows condition on a component,
    rows of the mixture's own weights are the null condition. Without it the own weights are taken.

    Args:
        process: The noise.
        means: Of the components, [K, ...].
        stds: Of the components, positive, [K].
        weights: Of the components, summing to one, [K].
    """

    def __init__(self, process: GaussianProcess, means: Tensor, stds: Tensor, weights: Tensor) -> None:
        self.process = process
        self.means = means.double()
        self.stds = stds.double()
        self.weights = weights.double()

    def __call__(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """See `Denoiser`."""
        alpha, var = self.process.alpha(t), self.process.sigma(t).square()  # [B]
        # Images last: sums over the short axes then run along the long one.
        x, means = xt.double().flatten(1).T, self.means.flatten(1)[..., None]  # [D, B], [K, D, 1]
        data_var = self.stds.square()[:, None]  # [K, 1]
        total = alpha.square() * data_var + var  # [K, B]
        moved = x - alpha * means  # [K, D, B]
        weights = self.weights[:, None] if condition.pooled is None else condition.pooled.double().T
        log_p = weights.log() - 0.5 * (moved.square().sum(1) / total + len(x) * total.log())
        responsibility = log_p.softmax(0)
        means_given = means + (alpha * data_var / total)[:, None] * moved  # [K, D, B]
        x0 = (responsibility[:, None] * means_given).sum(0)
        within = (responsibility * data_var * var / total).sum(0)
        between = (responsibility * (means_given - x0).square().mean(1)).sum(0)
        return Prediction(x0=x0.T.reshape(xt.shape), x0_variance=(within + between).view(-1, *(1,) * (xt.ndim - 1)))

    def condition(self, components: Tensor) -> Condition:
        """The condition on one component an image, int64 [B], with its null twin."""
        num = len(components)
        null = Condition(num, pooled=self.weights.expand(num, -1), is_null=True)
        one_hot = torch.nn.functional.one_hot(components, len(self.weights)).double()
        return Condition(num, pooled=one_hot, null=null)


class ExactClassifier(Guidance):
    """scale * grad log p(y|xt) of a mixture: the network runs on the null condition, and this adds what the classes say.

    grad log p(y|xt) is the score of the component less that of the mixture, alpha / sigma^2 times the difference of
    their means of x0.

    Args:
        denoiser: Knows the mixture.
        scale: Of the gradient.

    Raises:
        ValueError: If the scale is not finite.
    """

    def __init__(self, denoiser: MixtureDenoiser, scale: float) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale}: must be finite")
        self.denoiser = denoiser
        self.scale = scale
        self.gradient = self._gradient

    def branches(self, condition: Condition, t: float) -> list[Condition]:
        """See `Guidance`: the unconditional twin alone."""
        return [condition if condition.null is None else condition.null]

    def _gradient(self, xt: Tensor, t: float, condition: Condition) -> Tensor:
        if condition.null is None:
            raise ValueError("nothing to guide towards: the condition is the null one")
        process, times = self.denoiser.process, torch.full((len(xt),), t, dtype=torch.float64)
        given, null = (self.denoiser(xt, times, c, TorchNoise()).x0 for c in (condition, condition.null))
        assert given is not None
        assert null is not None
        return self.scale * process.alpha(t) / process.sigma(t).square() * (given - null)
