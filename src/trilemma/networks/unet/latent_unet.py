"""A U-Net with a latent input: the generator of a denoising GAN."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class LatentMapping(nn.Module):
    """Normalises latents to the typical norm of a Gaussian draw and maps them by an MLP.

    Source: Karras et al. 2019 (StyleGAN), section 2, as Xiao et al. 2022 use it.

    Args:
        latent_dim: Width of z.
        hidden_dim: Width of the hidden layers.
        out_dim: Width of the result.
        num_layers: Linear layers, at least one.
    """

    def __init__(self, *, latent_dim: int, hidden_dim: int, out_dim: int, num_layers: int = 4) -> None:
        super().__init__()
        if min(latent_dim, hidden_dim, out_dim, num_layers) < 1:
            raise ValueError("latent_dim, hidden_dim, out_dim and num_layers must be at least 1")
        self.latent_dim = latent_dim
        self.out_dim = out_dim
        widths = [latent_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.SiLU()]
        # No activation at the end: the U-Net applies one to its pooled condition.
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        """Map z [B, latent_dim] to [B, out_dim]."""
        mapped: Tensor = self.layers(F.normalize(z, dim=1) * self.latent_dim**0.5)
        return mapped


class LatentUNet(nn.Module):
    """A U-Net whose pooled condition includes a latent: one input has as many outputs as there are latents.

    Args:
        unet: (x, t, pooled [B, d], context, context_mask) -> [B, c, h, w].
        mapping: From z to what is added to the pooled condition.
    """

    def __init__(self, *, unet: nn.Module, mapping: LatentMapping) -> None:
        super().__init__()
        self.unet = unet
        self.mapping = mapping

    @property
    def latent_dim(self) -> int:
        """Width of z."""
        return self.mapping.latent_dim

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        z: Tensor,
        pooled: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Transform noisy images.

        Args:
            x: [B, c, h, w].
            t: Times in [0, 1], [B].
            z: Latents, [B, latent_dim].
            pooled: Condition, [B, out_dim of the mapping], or None.
            context: See the U-Net.
            context_mask: See the U-Net.

        Returns:
            [B, c, h, w].
        """
        conditioning = self.mapping(z) if pooled is None else self.mapping(z) + pooled
        out: Tensor = self.unet(x, t, conditioning, context, context_mask)
        return out
