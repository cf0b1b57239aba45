"""The interfaces of a first stage's encoder and decoder networks."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ImageEncoder(Protocol):
    """A module that turns images into a grid of latents; a dense one gives a grid of 1 x 1.

    Attributes:
        in_channels: Channels C of the images.
        out_channels: Width d of the latents.
    """

    in_channels: int
    out_channels: int

    def code_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the height and width (h, w) of the latents of images of that size.

        Raises:
            UserError: If it reads no images of that size; it names the setting to change.
        """

    def __call__(self, images: Tensor, /) -> Tensor:
        """Encode images [B, C, H, W] as latents [B, d, h, w]."""


@runtime_checkable
class ImageDecoder(Protocol):
    """A module that turns a grid of latents into images.

    Attributes:
        in_channels: Width d of the latents.
        out_channels: Channels C of the images.
    """

    in_channels: int
    out_channels: int

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the height and width (H, W) of the images of latents of that size.

        Raises:
            UserError: If it reads no latents of that size; it names the setting to change.
        """

    def __call__(self, latents: Tensor, /) -> Tensor:
        """Decode latents [B, d, h, w] to images [B, C, H, W]; not clipped."""


@runtime_checkable
class HasLastLayer(Protocol):
    """A decoder that names the weights of its last layer, where gradients of several losses are weighed against each other."""

    @property
    def last_layer(self) -> Tensor:
        """The weights."""
