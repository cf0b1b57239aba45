"""Guidance by the gradient of a classifier that reads noisy images."""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from trilemma.conditions.base import Condition
from trilemma.conditions.label import check_labels, describe_labels, labels_in_turn
from trilemma.errors import UserError
from trilemma.samplers.guidance import Guidance


class NoisyLogProb(Protocol):
    """A classifier of noisy images, as a guidance calls it: in evaluation mode, on the device of the samples."""

    num_labels: int

    def log_prob(self, xt: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Compute log p(label | xt) [B] of xt [B, ...] at times t [B], both of any floating type, differentiable in xt."""


class ClassifierGuidance(Guidance):
    """Adds scale * grad log p(y | xt) to the score of a conditional or an unconditional model.

    Source: Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4. The gradient is taken at xt,
    where the released code takes it too, and not at the mean of xs.

    Args:
        classifier: A module with the method and the attribute of `NoisyLogProb`.
        scale: 0 is the unguided sampler itself, without a call of the classifier; 1 is the product of model and classifier,
            which for exact ones is the conditional distribution; above 1 sharpens the classifier.
        start: Time from which the guidance is on, in [0, 1]; before it (t > start) the classifier is not called. Near
            pure noise a learned gradient is mostly error, which samplers that move x0 by sigma^2 / alpha times it
            amplify: on a chain that ends in pure noise begin a little later than at 1.
        stop: Time down to which it is on; after it (t < stop) the classifier is not called.

    Raises:
        UserError: If there is no such classifier, the scale is not a number or the interval is not one.
    """

    def __init__(self, classifier: nn.Module | None, scale: float = 1.0, start: float = 1.0, stop: float = 0.0) -> None:
        if not isinstance(classifier, nn.Module) or not callable(getattr(classifier, "log_prob", None)):
            raise UserError(
                "guidance=classifier steers samples of a checkpoint by another one, a classifier of noisy images: give "
                "guidance.classifier=CHECKPOINT to sample.py or evaluate.py, and train without it"
            )
        if not math.isfinite(scale):
            raise UserError(
                f"guidance.scale={scale}: must be finite (0 unguided, 1 the classifier as it is, above 1 sharper)"
            )
        if not 0.0 <= stop <= start <= 1.0:
            raise UserError(f"guidance.start={start} guidance.stop={stop}: must satisfy 0 <= stop <= start <= 1")
        self.scale, self.start, self.stop = scale, start, stop
        self.num_labels = cast(NoisyLogProb, classifier).num_labels
        self._of_log_prob = ClassifierGradient(classifier)
        self.gradient = None if scale == 0.0 else self._scaled_gradient

    reads_condition = True

    def examples(self, num: int) -> list[int]:
        """See `Guidance`; all labels in turn."""
        return labels_in_turn(num, self.num_labels)

    def describe(self, raw: Any) -> str:
        """See `Guidance`."""
        return describe_labels(raw, self.num_labels)

    def check(self, raw: Any) -> None:
        """Refuse what is not a label of the classifier, and a missing label unless the scale is 0."""
        captions = isinstance(raw, str) or (isinstance(raw, list) and any(isinstance(value, str) for value in raw))
        if captions or (raw is None and self.scale != 0.0):
            raise UserError("guidance=classifier needs condition.label: without one there is nothing to steer to")
        check_labels(raw, self.num_labels)

    def _scaled_gradient(self, xt: Tensor, t: float, condition: Condition) -> Tensor:
        """See `Guidance`; zero outside the interval.

        Raises:
            UserError: If the condition has no labels.
        """
        if not self.stop <= t <= self.start:
            return torch.zeros_like(xt)
        if condition.label is None:
            self.check(None)
        assert condition.label is not None
        times = torch.full((len(xt),), t, dtype=xt.dtype, device=xt.device)
        gradient: Tensor = self._of_log_prob(xt, times, condition.label.to(xt.device))
        return self.scale * gradient


class ClassifierGradient(nn.Module):
    """The gradient of a classifier's log p(label | xt) in xt.

    A module, so that forward hooks count one call an evaluation, the backward pass included.

    Args:
        classifier: See `NoisyLogProb`.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, xt: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Compute the gradient, shaped like xt [B, ...], at times t [B] and labels [B]."""
        with torch.enable_grad():  # samplers run under no_grad
            x = xt.detach().requires_grad_()
            # Each image's term depends on that image alone, so the gradient of the sum holds each image's gradient.
            total = cast(NoisyLogProb, self.classifier).log_prob(x, t, label).sum()
            (gradient,) = torch.autograd.grad(total, x)
        return gradient
