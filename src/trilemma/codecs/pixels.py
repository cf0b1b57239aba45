"""Images as they are, and as tokens of K grey levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.codecs.base import Codec, image_shape_of
from trilemma.errors import UserError
from trilemma.processes.noise import NoiseSource


class Pixels(Codec):
    """The identity: a model of the pixels themselves, continuous in [-1, 1].

    Args:
        image_shape: (C, H, W).
    """

    num_classes = None
    bound = 1.0

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.image_shape = image_shape_of(image_shape)
        self.code_shape = self.image_shape

    def encode(self, images: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Return the images [B, C, H, W]."""
        return images

    def decode(self, code: Tensor) -> Tensor:
        """Return the code [B, C, H, W], clipped to [-1, 1]."""
        return code.clamp(-1.0, 1.0)


class PixelLevels(Codec):
    """Every subpixel is a token: one of K grey levels, evenly spaced from -1 to 1.

    K = 256 keeps uint8 images as they are; K = 2 binarises them.

    Args:
        image_shape: (C, H, W).
        num_classes: Number of levels K, 2 to 256.
        stochastic: Where `encode` is given noise, round to one of the two neighbouring levels at random, so that the
            mean is the pixel; at K = 2 this is the stochastic binarisation of Salakhutdinov and Murray 2008. Without
            noise, and by default, the nearest level is taken.
        downsample: Tokens are the means of squares of so many pixels a side, which makes long sequences short; decoding interpolates
            between them. 1 keeps every pixel.

    Raises:
        ValueError: If K is not in 2..256.
        UserError: If squares do not tile the image.
    """

    num_classes: int

    def __init__(
        self, image_shape: Sequence[int], num_classes: int, *, stochastic: bool = False, downsample: int = 1
    ) -> None:
        super().__init__()
        if not 2 <= num_classes <= 256:
            raise ValueError(f"num_classes={num_classes}: uint8 images have 2 to 256 levels")
        self.image_shape = image_shape_of(image_shape)
        channels, height, width = self.image_shape
        if downsample < 1 or height % downsample or width % downsample:
            raise UserError(f"codec.downsample={downsample} does not divide images of {height} x {width}")
        self.downsample = downsample
        grid = (height // downsample, width // downsample)
        self.code_shape = grid if channels == 1 else (*grid, channels)
        self.num_classes = num_classes
        self.stochastic = stochastic
        if num_classes == 2:
            self.binarize = "dynamic" if stochastic else "threshold"

    def encode(self, images: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Quantise images [B, C, H, W] to levels, int64 [B, h, w] or [B, h, w, C]."""
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        if self.downsample > 1:
            wide = F.avg_pool2d(wide, self.downsample)
        # Rounding to the uint8 grid first removes the error of x / 127.5 - 1, so that no level is missed by an ulp.
        grey = (wide.clamp(-1.0, 1.0).add(1.0) * 127.5).round()
        level = grey * (self.num_classes - 1) / 255
        if self.stochastic and noise is not None:
            level = (level + noise.uniform(tuple(level.shape)).to(level)).floor().clamp_(max=self.num_classes - 1)
        else:
            level = level.round()
        tokens = level.to(torch.int64)
        return tokens[:, 0] if len(self.code_shape) == 2 else tokens.permute(0, 2, 3, 1).contiguous()

    def decode(self, code: Tensor) -> Tensor:
        """Convert levels [B, h, w] or [B, h, w, C] to images [B, C, H, W] float32."""
        grid = code[:, None] if len(self.code_shape) == 2 else code.permute(0, 3, 1, 2).contiguous()
        images = grid.to(torch.float32) * (255 / (self.num_classes - 1)) / 127.5 - 1.0
        if self.downsample > 1:
            images = F.interpolate(images, scale_factor=self.downsample, mode="bilinear")
        return images
