"""The most memory that a draw holds at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from trilemma.evaluation.cost.work import Draw

_PROC = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5): writing it to clear_refs sets the peak resident size back to the present one


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """A peak, and what it is a peak of: the two measures are not comparable with each other.

    Attributes:
        peak_bytes: The most at any time of the draw.
        before_bytes: The same quantity before the draw: weights, and on the CPU the program itself.
        measure: "allocated": tensors on the accelerator, without the allocator's reserve. "resident": the whole process
            in main memory, as the kernel counts it; what the C library keeps of earlier work is in both
            numbers.
        batch_size: Number of images drawn.
    """

    peak_bytes: int
    before_bytes: int
    measure: Literal["allocated", "resident"]
    batch_size: int


def measure_peak_memory(
    draw: Draw, batch_size: int, *, device: torch.device | str, proc: Path = _PROC
) -> PeakMemory | None:
    """Draw one batch and read the peak.

    Args:
        draw: Draws images.
        batch_size: How many.
        device: Where it draws.
        proc: Where Linux tells of this process.

    Returns:
        The peak, or None where nothing tells it: other devices than CUDA and the CPU, other kernels than Linux.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        draw(batch_size)
        torch.cuda.synchronize(device)
        return PeakMemory(
            peak_bytes=torch.cuda.max_memory_allocated(device),
            before_bytes=before,
            measure="allocated",
            batch_size=batch_size,
        )
    if device.type != "cpu":
        return None
    if not _reset_peak(proc):
        return None
    before = _status_bytes(proc, "VmRSS")
    draw(batch_size)
    peak = _status_bytes(proc, "VmHWM")
    return PeakMemory(peak_bytes=peak, before_bytes=before, measure="resident", batch_size=batch_size)


def _reset_peak(proc: Path) -> bool:
    """Set the peak resident size back; False where that cannot be done."""
    try:
        (proc / "clear_refs").write_text(_RESET_PEAK)
        _status_bytes(proc, "VmHWM")  # some sandboxes take the reset and tell no peak
    except (OSError, KeyError):
        return False
    return True


def _status_bytes(proc: Path, key: str) -> int:
    """A size of the process, such as "VmHWM:    1712 kB"."""
    for line in (proc / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)
