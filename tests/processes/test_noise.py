import pytest
import torch
from scipy import stats

from trilemma.processes.noise import Noise, TorchNoise

DTYPES = [torch.float32, torch.float64]


def draws(noise, num, dtype):
    """One of each kind in a fixed order."""
    probs = torch.linspace(1, 2, 37, dtype=dtype).expand(num, 3, 37)
    return [
        noise.uniform((num, 5), dtype),
        noise.normal((num, 2, 3), dtype),
        noise.categorical(probs),
        noise.categorical(probs.log(), log=True),
        noise.uniform((num,), dtype),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_image_sees_the_same_numbers_bit_for_bit_in_any_batch(dtype):
    indices = torch.arange(70, 134)
    whole = draws(Noise(5, indices), 64, dtype)
    for size in (1, 7, 64):
        for start in range(0, 64, size):
            part = draws(Noise(5, indices[start : start + size]), len(indices[start : start + size]), dtype)
            for ours, theirs in zip(part, whole, strict=True):
                assert torch.equal(ours, theirs[start : start + size])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(draws(Noise(5, indices[order]), 64, dtype), whole, strict=True):
        assert torch.equal(ours, theirs[order])


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_is_uniform(dtype):
    u = Noise(0, torch.arange(400)).uniform((400, 500), dtype)
    assert u.dtype == dtype
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.double().flatten().numpy(), "uniform").pvalue > 1e-3


def test_uniform_has_as_many_bits_as_its_dtype_holds():
    noise = Noise(0, torch.arange(100))
    for dtype, bits in ((torch.float32, 24), (torch.float64, 53)):
        scaled = noise.uniform((100, 100), dtype).double() * 2.0**bits
        assert torch.equal(scaled, scaled.floor())
        ones = torch.stack([(scaled.long() >> k) & 1 for k in range(bits)]).double().mean((1, 2))
        assert (ones - 0.5).abs().max() < 5 * 0.5 / 100


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_is_normal(dtype):
    x = Noise(1, torch.arange(300)).normal((300, 20, 50), dtype)
    assert x.dtype == dtype
    assert stats.kstest(x.double().flatten().numpy(), "norm").pvalue > 1e-3
    moments = [float((x.double() ** k).mean()) for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.06)


def test_seeds_images_draws_and_positions_are_uncorrelated():
    num, length = 50, 4000
    noise, other = Noise(0, torch.arange(num)), Noise(1, torch.arange(num))
    first, second = (noise.uniform((num, length), torch.float64) - 0.5 for _ in range(2))
    third = other.uniform((num, length), torch.float64) - 0.5
    sigma = 1 / 12 / (num * length) ** 0.5
    for a, b in (
        (first, second),
        (first, third),
        (first[1:], first[:-1]),
        (first[:, 1:], first[:, :-1]),
        (first[:, 1:], second[:, :-1]),
        (first[1:], third[:-1]),
    ):
        assert abs(float((a * b).mean())) < 4.5 * sigma
    streams = torch.cat([first, second, third])
    correlation = torch.corrcoef(streams).fill_diagonal_(0).abs().max()
    assert correlation < 5.5 / length**0.5


def test_no_two_numbers_of_many_streams_are_equal():
    noise = Noise(0, torch.arange(100))
    u = torch.cat([noise.uniform((100, 500), torch.float64).flatten() for _ in range(4)])
    assert len(u.unique()) == len(u)


def test_any_integer_is_a_seed():
    def first(seed):
        return Noise(seed, torch.arange(2)).uniform((2, 3), torch.float64)

    assert torch.equal(first(-1), first(2**64 - 1))
    assert not torch.equal(first(2**40), first(2**41))


def test_a_wrong_number_of_images_or_dtype_is_refused():
    noise = Noise(0, torch.arange(4))
    with pytest.raises(ValueError, match="4 images"):
        noise.uniform((5, 2))
    with pytest.raises(ValueError, match="float32 or float64"):
        noise.uniform((4, 2), torch.float16)


def test_torch_noise_follows_its_generator():
    def run():
        return draws(TorchNoise(torch.Generator().manual_seed(3)), 4, torch.float32)

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)
    assert TorchNoise().uniform((2, 3), torch.float64).dtype == torch.float64
