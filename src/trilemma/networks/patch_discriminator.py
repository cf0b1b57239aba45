"""A discriminator of patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.batch_norm import BatchNorm2d
from trilemma.networks.dcgan import initialise


class PatchDiscriminator(nn.Module):
    """Scores each of many overlapping patches of an image, by strided convolutions, batch normalisation and LeakyReLU.

    Source: Isola et al. 2017 (pix2pix), section 3.2.2 and appendix 6.1.2, with the layers that Esser et al. 2021 (VQGAN) take.

    Args:
        in_channels: Channels C of the images.
        channels: Width of the first grid; doubled at each next one, up to eight times.
        num_halvings: How often the grid is halved; two convolutions follow that take one row and one column each.
        batch_norm: Whether all grids but the first and the last are normalised over the batch.

    Raises:
        ValueError: If a number is less than 1.
    """

    def __init__(self, *, in_channels: int, channels: int = 64, num_halvings: int = 3, batch_norm: bool = True) -> None:
        super().__init__()
        if min(channels, num_halvings) < 1:
            raise ValueError(f"channels={channels} and num_halvings={num_halvings} must be at least 1")
        self.num_halvings = num_halvings
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, num_halvings + 1):
            wider = channels * min(2**i, 8)
            stride = 2 if i < num_halvings else 1
            layers.append(nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=not batch_norm))
            layers += [*([BatchNorm2d(wider)] if batch_norm else []), nn.LeakyReLU(0.2)]
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): one."""
        return [self]

    def check_size(self, height: int, width: int) -> None:
        """Check that an image of that size has a patch.

        Raises:
            UserError: If it is too small.
        """
        if (min(height, width) >> self.num_halvings) < 3:
            raise UserError(
                f"images of {height}x{width} are too small for a patch discriminator that halves them {self.num_halvings} times: lower "
                "model.adversary.discriminator.num_halvings"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Score the patches of images [B, C, H, W]: logits [B, h, w], high for data."""
        scores: Tensor = self.layers(images.contiguous(memory_format=torch.channels_last))
        return scores[:, 0]
