"""Sources of randomness: counter-based for sampling, torch's generators for training."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from trilemma.processes.inverse_cdf import inverse_cdf

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_SECOND_KEY = 0xD1B54A32D192ED03


class NoiseSource(ABC):
    """A source of random tensors whose first axis runs over images.

    Attributes:
        device: Where the tensors are made.
    """

    device: torch.device

    def place(self, num: int) -> tuple[int, int]:
        """Locate a batch of `num` images: the position of its first one, and the size of the batch it is a part of."""
        return 0, num

    @abstractmethod
    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw from [0, 1).

        Args:
            shape: (B, ...), B the number of images.
            dtype: float32 (24 random bits) or float64 (53).
        """

    @abstractmethod
    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw from the standard normal distribution.

        Args:
            shape: (B, ...), B the number of images.
            dtype: float32 or float64.
        """

    def categorical(self, probs: Tensor, *, log: bool = False) -> Tensor:
        """Draw classes by inverse CDF, exact in the tail.

        Args:
            probs: Non-negative weights, unnormalised, [B, ..., K]; log-weights where `log`.
            log: Whether `probs` holds logarithms.

        Returns:
            Classes int64 [B, ...], never one of probability zero.

        Raises:
            RuntimeError: If the weights of a position sum to zero, infinity or NaN.
        """
        uniform = self.uniform(tuple(probs.shape[:-1]), dtype=torch.float64)
        drawn = inverse_cdf(probs.flatten(0, -2), uniform.flatten(), log=log)
        return drawn.view(probs.shape[:-1])


class Noise(NoiseSource):
    """Counter-based noise: a hash of (seed, image index, draw, position).

    Every call is one draw. Image 17 of a seed sees the same numbers whatever the batch it is in, the device count or
    the rank; uniform numbers are the same bit for bit on every device type, since they are integer arithmetic.

    The hash is SplitMix64 (Steele, Lea and Flood 2014) over the position, with a second key added between its two
    multiplications so that two streams whose starting points happen to lie a whole number of increments apart do not
    run parallel.

    Args:
        seed: Any integer, taken modulo 2^64.
        image_indices: Index of each image of the batch, int64 [B].
        device: Where the tensors are made; that of `image_indices` where None.
    """

    def __init__(self, seed: int, image_indices: Tensor, device: torch.device | str | None = None) -> None:
        self.device = torch.device(device) if device is not None else image_indices.device
        indices = image_indices.to(self.device, torch.int64)
        self._key_b = _mix(_mix(torch.full_like(indices, _signed(seed))) + indices * _signed(_GOLDEN))
        self._num_draws = 0

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `NoiseSource`."""
        if dtype == torch.float32:
            return _shift(self._bits(shape), 40).to(dtype) * 2.0**-24
        if dtype == torch.float64:
            return _shift(self._bits(shape), 11).to(dtype) * 2.0**-53
        raise ValueError(f"noise is drawn in float32 or float64, not {dtype}")

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `NoiseSource`; by the inverse of the normal CDF in float64, one hash a number."""
        # 52 bits and a half keep the argument strictly inside (0, 1) and exactly symmetric about 1/2.
        middle = (_shift(self._bits(shape), 12).to(torch.float64) + 0.5) * 2.0**-52
        normal: Tensor = torch.special.ndtri(middle)
        return normal.to(dtype)

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        """Hash 64 random bits an element, int64."""
        if not shape or shape[0] != len(self._key_b):
            raise ValueError(f"noise for {len(self._key_b)} images cannot have shape {tuple(shape)}")
        key_b = _mix(self._key_b + _signed(_GOLDEN * (self._num_draws + 1)))
        self._num_draws += 1
        second_b = _mix(key_b + _signed(_SECOND_KEY))
        position_n = torch.arange(1, math.prod(shape[1:]) + 1, device=self.device) * _signed(_GOLDEN)
        return _mix(key_b[:, None] + position_n, second_b[:, None]).view(shape)


class TorchNoise(NoiseSource):
    """Torch's own generators, for training and validation.

    Where several processes share a batch, each draws the noise of the whole batch, from generators in equal states, and
    keeps its part: what an image sees does not depend on how many processes there are.

    Args:
        generator: None for the global generator of the device.
        device: Where the tensors are made; that of `generator` where None, else the CPU.
        rank: Which part of the batch is this process's; parts are equal and contiguous.
        world_size: Number of parts.
    """

    def __init__(
        self,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if device is None:
            device = generator.device if generator is not None else "cpu"
        self.device = torch.device(device)
        self._generator = generator
        self._rank, self._world_size = rank, world_size

    def place(self, num: int) -> tuple[int, int]:
        """See `NoiseSource`."""
        return self._rank * num, self._world_size * num

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `NoiseSource`."""
        return self._part(torch.rand(self._whole(shape), generator=self._generator, device=self.device, dtype=dtype))

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `NoiseSource`."""
        return self._part(torch.randn(self._whole(shape), generator=self._generator, device=self.device, dtype=dtype))

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self._world_size * shape[0], *shape[1:])

    def _part(self, drawn: Tensor) -> Tensor:
        # A copy, so that the others' parts need not stay in memory until the gradient is there.
        return drawn if self._world_size == 1 else drawn.chunk(self._world_size)[self._rank].clone()


def mixed_seed(*numbers: int) -> int:
    """Mix integers into a 64-bit seed: other numbers, or the same in another order, give another seed."""
    text = ",".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _signed(value: int) -> int:
    """Convert `value` modulo 2^64 to the int64 with the same bits."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def _shift(x: Tensor, num_bits: int) -> Tensor:
    """Shift right logically (torch's own shift keeps the sign)."""
    shifted: Tensor = (x >> num_bits) & (2 ** (64 - num_bits) - 1)
    return shifted


def _mix(x: Tensor, second_key: Tensor | None = None) -> Tensor:
    """Apply SplitMix64's finaliser, a bijection of the 64-bit integers."""
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    if second_key is not None:
        x = x + second_key
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)
