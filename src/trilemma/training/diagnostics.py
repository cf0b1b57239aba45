"""What a family reports to monitors of its training, beyond the loss."""

from __future__ import annotations

import math
from typing import Any, TypedDict

import torch
from torch import Tensor


class Diagnostics(TypedDict, total=False):
    """Detached tensors of one batch; a family sets those that it has, and monitors look for a key, never for a family.

    A family publishes what is measured in validation by returning it from `validation_step`, and what is measured in
    training as `Loss.diagnostics`.

    Attributes:
        time: Time t in (0, 1] at which each example was scored, [B]; with `time_loss`, in validation.
        time_loss: What each example contributes at its time to the validation loss, [B]: its mean over uniform t is that
            loss, up to what does not depend on t.
        latent_kl: KL(q(z|x) || p(z)) of each latent in nats, [B, d]; in validation.
        real_score: The discriminator's logits of data, [B]; in training.
        fake_score: The discriminator's logits of samples, [B]; in training.
        real_nearest: `nearest_in_group` of data, [B]; in training.
        fake_nearest: `nearest_in_group` of samples, [B]; in training.
    """

    time: Tensor
    time_loss: Tensor
    latent_kl: Tensor
    real_score: Tensor
    fake_score: Tensor
    real_nearest: Tensor
    fake_nearest: Tensor


def diagnostics_of(outputs: Any) -> Diagnostics:
    """Extract the diagnostics from the outputs that Lightning passes to callbacks of a batch; empty where there are none."""
    if not isinstance(outputs, dict):
        return {}
    found: Diagnostics = outputs.get("diagnostics", {})
    return found


def nearest_in_group(images: Tensor, group_size: int = 4) -> Tensor:
    """Measure the distance of each image to the nearest other one of its group, [B]: near 0 where a generator repeats itself.

    Groups are neighbours in the batch, so they are the same where processes have a part of it each.

    Args:
        images: [B, ...].
        group_size: Images in a group, at most; the largest number that divides both it and the batch is taken.
    """
    size = math.gcd(group_size, len(images))
    groups = images.reshape(len(images) // size, size, -1).to(torch.promote_types(images.dtype, torch.float32))
    distance = (groups[:, :, None] - groups[:, None]).square().sum(-1).sqrt()
    itself = torch.eye(size, dtype=torch.bool, device=images.device)
    nearest: Tensor = distance.masked_fill(itself, math.inf if size > 1 else 0.0).amin(-1)
    return nearest.flatten()
