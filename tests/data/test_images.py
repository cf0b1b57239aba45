import pytest
import torch

from trilemma.data.images import to_float, to_uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_level_survives_the_round_trip(dtype):
    levels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(levels)
    assert floats.dtype == torch.float32
    assert (floats[0], floats[255]) == (-1.0, 1.0)
    torch.testing.assert_close(floats.double(), levels.double() / 127.5 - 1.0, rtol=0, atol=1e-7)
    assert torch.equal(to_uint8(floats.to(dtype)), levels)


def test_to_uint8_rounds_to_the_nearest_level_and_clips():
    images = torch.tensor([-7.0, -1.0, 127.4 / 127.5 - 1, 127.6 / 127.5 - 1, 1.0, 9.0], dtype=torch.float64)
    assert to_uint8(images).tolist() == [0, 0, 127, 128, 255, 255]


def test_the_input_is_left_alone():
    images = torch.tensor([0.3, -0.7])
    to_uint8(images)
    assert torch.equal(images, torch.tensor([0.3, -0.7]))


def test_a_second_conversion_is_an_error():
    with pytest.raises(TypeError, match="uint8"):
        to_float(torch.zeros(3))
    with pytest.raises(TypeError, match="float"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))
