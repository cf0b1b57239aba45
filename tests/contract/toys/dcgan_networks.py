"""The two networks of a DCGAN (Radford et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from trilemma.networks.batch_norm import BatchNorm2d


class DCGenerator(nn.Module):
    """A latent to an image, through transposed convolutions; the first grid is a quarter of the image.

    Args:
        latent_dim: Width d of the latent.
        out_channels: Channels C of the images.
        image_size: Side of the square images, a multiple of 4.
        channels: Width at the first grid.
    """

    def __init__(self, *, latent_dim: int, out_channels: int, image_size: int, channels: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent_dim, channels, image_size // 4, bias=False),
            BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False),
            BatchNorm2d(channels // 2),
            nn.ReLU(),
            nn.ConvTranspose2d(channels // 2, out_channels, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] of latents [B, d]."""
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class DCDiscriminator(nn.Module):
    """An image to a logit, through strided convolutions.

    Args:
        in_channels: Channels C of the images.
        image_size: Side of the square images, a multiple of 4.
        channels: Width at the last grid.
    """

    def __init__(self, *, in_channels: int, image_size: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels // 2, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels // 2, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 1, image_size // 4),
            nn.Flatten(0),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B] of images [B, C, H, W]."""
        logits: Tensor = self.layers(images)
        return logits
