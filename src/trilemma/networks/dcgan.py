"""The generator and the discriminator of a DCGAN.

Differences from the paper: images of any size are made, 28 x 28 from grids of 4, 7 and 14; kernels are 4 x 4 as in the code that was
released with it, not 5 x 5, and 3 x 3 where the larger grid is odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normalised

from trilemma.networks.batch_norm import BatchNorm2d
from trilemma.networks.given import check_given


class DCGenerator(nn.Module):
    """Turns a latent into an image by transposed convolutions, with batch normalisation and ReLU; no dense layer, no pooling.

    A condition is concatenated to the latent (Mirza and Osindero 2014).

    Source: Radford et al. 2016, section 3 and figure 1.

    Args:
        latent_dim: Width d of the latent.
        out_channels: Channels C of the images.
        image_size: Height and width.
        channels: Width of each grid, the first one first; the grid doubles after each (4, 7, 14, 28).
        condition_dim: Width of the pooled condition; None for an unconditional generator.

    Raises:
        ValueError: If the image cannot be halved so often, or a width is not positive.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        out_channels: int,
        image_size: int,
        channels: Sequence[int],
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        *sides, side = grid_sides(image_size, channels, len(channels))
        if latent_dim < 1:
            raise ValueError(f"latent_dim={latent_dim} must be at least 1")
        self.latent_dim = latent_dim
        self.condition_dim = condition_dim
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent_dim + (condition_dim or 0), channels[0], side, bias=False),
            BatchNorm2d(channels[0]),
            nn.ReLU(),
        ]
        for (wide, narrow), side in zip(pairwise(channels), sides[:0:-1], strict=True):
            layers += [
                nn.ConvTranspose2d(wide, narrow, _kernel(side), stride=2, padding=1, bias=False),
                BatchNorm2d(narrow),
                nn.ReLU(),
            ]
        layers.append(nn.ConvTranspose2d(channels[-1], out_channels, _kernel(image_size), stride=2, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): one."""
        return [self]

    def forward(self, z: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Generate images.

        Args:
            z: Latents [B, d].
            pooled: Condition [B, condition_dim]; given exactly where the network was built with one.

        Returns:
            [B, C, H, W], unbounded: the family applies the paper's tanh.

        Raises:
            ValueError: If the condition is missing, or given to a network that was built without.
        """
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        x = z if pooled is None else torch.cat([z, pooled], dim=1)
        images: Tensor = self.layers(x[:, :, None, None])
        return images


class DCDiscriminator(nn.Module):
    """Scores images by strided convolutions, with batch normalisation and LeakyReLU; no dense layer, no pooling.

    A condition is read by projection: the score gains its inner product with the last grid, averaged over positions.

    Source: Radford et al. 2016, section 3; Miyato et al. 2018 (spectral normalisation); Miyato and Koyama 2018 (projection),
    equation 3.

    Args:
        in_channels: Channels C of the images.
        image_size: Height and width.
        channels: Width of each grid, the first one first; the grid halves before each, rounded up.
        batch_norm: Whether all grids but the first are normalised over the batch.
        spectral_norm: Whether each convolution is divided by its largest singular value; usually without `batch_norm`.
        condition_dim: Width of the pooled condition; None for an unconditional discriminator.

    Raises:
        ValueError: If the image cannot be halved so often, or a width is not positive.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        channels: Sequence[int],
        batch_norm: bool = True,
        spectral_norm: bool = False,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        *sides, side = grid_sides(image_size, channels, len(channels))
        self.condition_dim = condition_dim
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels[0], _kernel(image_size), stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for (narrow, wide), before in zip(pairwise(channels), sides[1:], strict=True):
            layers.append(nn.Conv2d(narrow, wide, _kernel(before), stride=2, padding=1, bias=not batch_norm))
            layers += [*([BatchNorm2d(wide)] if batch_norm else []), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels[-1], 1, side)
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, channels[-1], bias=False)
        self.apply(initialise)
        if spectral_norm:
            for module in [m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]:
                spectrally_normalised(module)

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): one."""
        return [self]

    def forward(self, x: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Score images.

        Args:
            x: [B, C, H, W].
            pooled: Condition [B, condition_dim]; given exactly where the network was built with one.

        Returns:
            Logits [B], high for data.

        Raises:
            ValueError: If the condition is missing, or given to a network that was built without.
        """
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        grid = self.layers(x.contiguous(memory_format=torch.channels_last))
        score: Tensor = self.head(grid).flatten()
        if self.condition is not None and pooled is not None:
            score = score + (self.condition(pooled) * grid.mean((2, 3))).sum(1)
        return score


def grid_sides(image_size: int, channels: Sequence[int], num_halvings: int) -> list[int]:
    """Compute the sides of all grids, the image's first: each is half the one before, rounded up.

    Raises:
        ValueError: If the image cannot be halved so often, or a width is not positive.
    """
    if not channels or min(channels) < 1:
        raise ValueError(f"channels={list(channels)}: one or more widths of at least 1 are needed")
    sides = [-(-image_size // 2**i) for i in range(num_halvings + 1)]
    if sides[-1] < 1 or (num_halvings and sides[-2] < 2):
        raise ValueError(
            f"channels={list(channels)}: an image of {image_size} x {image_size} cannot be halved {num_halvings} times"
        )
    return sides


def _kernel(larger: int) -> int:
    """Get the kernel, of stride 2 and padding 1, between a grid of that side and one of half, rounded up."""
    return 4 - larger % 2


def initialise(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02^2), scales of batch normalisation from N(1, 0.02^2) as in the released code; no offsets."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, BatchNorm2d):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
