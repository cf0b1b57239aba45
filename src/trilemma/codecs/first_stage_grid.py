"""Checks that an encoder and a decoder form a first stage, and the code grid they give."""

from __future__ import annotations

from torch import nn

from trilemma.errors import UserError
from trilemma.networks.image_coder import ImageDecoder, ImageEncoder


def check_coders(encoder: ImageEncoder, decoder: ImageDecoder) -> None:
    """Check that both networks code images.

    Raises:
        UserError: If one does not.
    """
    for name, part, kind in (("encoder", encoder, ImageEncoder), ("decoder", decoder, ImageDecoder)):
        if not isinstance(part, nn.Module) or not isinstance(part, kind):
            raise UserError(
                f"a {type(part).__name__} is no {name} of images: name a module with what `{kind.__name__}` asks for, such as "
                f"trilemma.networks.autoencoder.Conv{name.capitalize()}"
            )


def code_grid(
    image_shape: tuple[int, int, int],
    encoder: ImageEncoder,
    decoder: ImageDecoder,
    *,
    encoded_channels: int,
    decoded_channels: int,
) -> tuple[int, int]:
    """Compute the height and width (h, w) of the codes of images.

    Args:
        image_shape: (C, H, W).
        encoder: Images to latents.
        decoder: Latents to images.
        encoded_channels: Channels that the encoder must give.
        decoded_channels: Channels that the decoder must read.

    Raises:
        UserError: If a network reads no such size.
        ValueError: If the networks do not fit each other or the images.
    """
    channels, height, width = image_shape
    for name, found, wanted in (
        ("encoder.in_channels", encoder.in_channels, channels),
        ("encoder.out_channels", encoder.out_channels, encoded_channels),
        ("decoder.in_channels", decoder.in_channels, decoded_channels),
        ("decoder.out_channels", decoder.out_channels, channels),
    ):
        if found != wanted:
            raise ValueError(f"{name}={found}, but the other parts need {wanted}")
    grid = encoder.code_size(height, width)
    back = decoder.image_size(*grid)
    if back != (height, width):
        raise ValueError(
            f"the decoder makes images of {back[0]}x{back[1]} from the {grid[0]}x{grid[1]} latents of images of "
            f"{height}x{width}: it must enlarge as much as the encoder shrinks"
        )
    return grid
