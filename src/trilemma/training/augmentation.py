"""Augmentations that gradients pass through, of whatever a discriminator is shown."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.noise import NoiseSource


class DifferentiableAugmentation:
    """Changes colours, moves images and cuts squares out of them, at random and each in its own way.

    Data and samples are augmented alike, in the turns of both networks; so the discriminator has more to learn from, and samples
    do not come out augmented.

    Source: Zhao et al. 2020 (differentiable augmentation), section 3.2.

    Args:
        color: Whether brightness, saturation and contrast change.
        translation: Largest shift, as a share of the side; zeros come in.
        cutout: Side of the square that is set to zero, as a share of the image's.

    Raises:
        UserError: If a share is not in [0, 1).
    """

    def __init__(self, *, color: bool = True, translation: float = 0.125, cutout: float = 0.5) -> None:
        if not (0.0 <= translation < 1.0 and 0.0 <= cutout < 1.0):
            raise UserError(f"model.augment: translation={translation} and cutout={cutout} must lie in [0, 1)")
        self.color = color
        self.translation = translation
        self.cutout = cutout

    def __call__(self, x: Tensor, noise: NoiseSource) -> Tensor:
        """Augment x [B, C, H, W]."""
        uniform = noise.uniform((len(x), 7)).to(x.dtype)
        brightness, saturation, contrast, *places = uniform[:, :, None, None, None].unbind(1)
        if self.color:
            x = x + brightness - 0.5
            x = torch.lerp(x.mean(1, keepdim=True), x, 2.0 * saturation)
            x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast + 0.5)
        for axis, place in zip((2, 3), places[:2], strict=True):
            x = self._moved(x, axis, place)
        return x if self.cutout == 0.0 else x * ~(self._cut(x, 2, places[2]) & self._cut(x, 3, places[3]))

    def _moved(self, x: Tensor, axis: int, place: Tensor) -> Tensor:
        side = x.shape[axis]
        furthest = round(self.translation * side)
        if furthest == 0:
            return x
        start = _positions(x, axis) - (torch.floor(place * (2 * furthest + 1)) - furthest).long()
        inside = (start >= 0) & (start < side)
        return x.gather(axis, start.clamp(0, side - 1).expand_as(x)) * inside

    def _cut(self, x: Tensor, axis: int, place: Tensor) -> Tensor:
        side = x.shape[axis]
        half = round(self.cutout * side) / 2
        return (_positions(x, axis) + 0.5 - torch.floor(place * (side + 1))).abs() < half


def _positions(x: Tensor, axis: int) -> Tensor:
    shape = [1, 1, 1, 1]
    shape[axis] = x.shape[axis]
    return torch.arange(x.shape[axis], device=x.device).view(shape)
