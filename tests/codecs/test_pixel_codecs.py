import pytest
import torch

from trilemma.codecs.base import flatten, unflatten
from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.errors import UserError
from trilemma.processes.noise import TorchNoise

GREY = torch.arange(256, dtype=torch.uint8)


def as_float(grey: torch.Tensor) -> torch.Tensor:
    return grey.float() / 127.5 - 1


def noise() -> TorchNoise:
    return TorchNoise(torch.Generator().manual_seed(0), torch.device("cpu"))


def test_pixels_are_the_identity():
    codec = Pixels([3, 4, 5])
    images = torch.rand(2, 3, 4, 5) * 2 - 1
    assert codec.num_classes is None
    assert codec.code_shape == codec.image_shape == (3, 4, 5)
    assert torch.equal(codec.decode(codec.encode(images)), images)
    assert codec.decode(3 * images).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_256_levels_keep_every_uint8_value(channels):
    codec = PixelLevels((channels, 16, 16), 256)
    grey = torch.stack([GREY.roll(i) for i in range(channels)]).view(1, channels, 16, 16)
    tokens = codec.encode(as_float(grey))
    assert tokens.shape == (1, *codec.code_shape)
    assert torch.equal(tokens.view(256, channels), grey.view(channels, 256).T.long())
    assert torch.equal(codec.decode(tokens).add(1).mul(127.5).round().to(torch.uint8), grey)


@pytest.mark.parametrize("num_classes", [2, 3, 8, 52, 255])
def test_the_nearest_level_is_taken_and_levels_are_fixed_points(num_classes):
    codec = PixelLevels((1, 16, 16), num_classes)
    levels = torch.linspace(-1, 1, num_classes, dtype=torch.float64)
    images = as_float(GREY).view(1, 1, 16, 16)
    nearest = (images.double().flatten()[:, None] - levels).abs().argmin(1)
    assert torch.equal(codec.encode(images).flatten(), nearest)
    decoded = codec.decode(nearest.view(1, 16, 16)).flatten().double()
    torch.testing.assert_close(decoded, levels[nearest], rtol=0, atol=1e-6)


def test_every_level_is_used():
    tokens = PixelLevels((1, 16, 16), 52).encode(as_float(GREY).view(1, 1, 16, 16))
    assert tokens.unique().tolist() == list(range(52))


def test_channels_are_the_fastest_axis():
    codec = PixelLevels((3, 2, 2), 256)
    image = torch.zeros(1, 3, 2, 2)
    image[0, 2, 0, 1] = 1
    sequence = flatten(codec.encode(image))
    assert sequence.argmax().item() == 1 * 3 + 2


@pytest.mark.parametrize("num_classes", [2, 5])
def test_stochastic_rounding_has_the_pixel_as_its_mean_and_only_neighbours_as_values(num_classes):
    codec = PixelLevels((1, 16, 16), num_classes, stochastic=True)
    images = as_float(GREY).view(1, 1, 16, 16).expand(4000, -1, -1, -1)
    tokens = codec.encode(images, noise())
    exact = (GREY.double() * (num_classes - 1) / 255).view(16, 16)
    assert ((tokens - exact).abs() < 1).all()
    # 256 means of 4000 draws of variance at most 1/4: five deviations
    assert ((tokens.double().mean(0) - exact).abs() <= 5 * 0.5 / 4000**0.5).all()


def test_rounding_is_to_the_nearest_unless_both_asked_and_given_noise():
    images = as_float(GREY).view(1, 1, 16, 16)
    plain = PixelLevels((1, 16, 16), 2)
    assert torch.equal(plain.encode(images, noise()), plain.encode(images))
    stochastic = PixelLevels((1, 16, 16), 2, stochastic=True)
    assert torch.equal(stochastic.encode(images), plain.encode(images))


def test_stochastic_rounding_leaves_exact_levels_alone():
    codec = PixelLevels((1, 16, 16), 256, stochastic=True)
    images = as_float(GREY).view(1, 1, 16, 16)
    assert torch.equal(codec.encode(images, noise()).flatten(), GREY.long())


@pytest.mark.parametrize("num_classes", [1, 257])
def test_impossible_numbers_of_levels_are_refused(num_classes):
    with pytest.raises(ValueError, match="2 to 256"):
        PixelLevels((1, 2, 2), num_classes)


def test_downsampled_levels_are_those_of_the_means_of_squares():
    codec = PixelLevels((1, 4, 6), 256, downsample=2)
    assert codec.code_shape == (2, 3)
    assert codec.length == 6
    images = torch.rand(3, 1, 4, 6) * 2 - 1
    means = images.view(3, 2, 2, 3, 2).mean((2, 4))
    assert torch.equal(codec.encode(images), ((means + 1) * 127.5).round().long())
    flat = torch.full((1, 1, 4, 6), 0.2)
    torch.testing.assert_close(codec.decode(codec.encode(flat)), flat, rtol=0, atol=1 / 255)
    with pytest.raises(UserError, match="downsample=4 does not divide images of 4 x 6"):
        PixelLevels((1, 4, 6), 2, downsample=4)


def test_an_image_shape_has_three_sizes():
    with pytest.raises(ValueError, match="image_shape"):
        Pixels((28, 28))


def test_unflatten_inverts_flatten_and_checks_the_length():
    code = torch.randint(9, (2, 3, 4, 5))
    assert torch.equal(unflatten(flatten(code), (3, 4, 5)), code)
    with pytest.raises(ValueError, match="do not fill"):
        unflatten(flatten(code), (3, 4))
