"""What GPUs can do, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

import torch

from trilemma.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GPU:
    """A GPU's figures, without sparsity.

    Attributes:
        name: As on the command line.
        memory: GiB.
        half: 10^12 operations a second on matrices of 16-bit numbers.
        single: The same in single precision, off the units for matrices.
        bfloat16: Whether it has units for bfloat16.
        bandwidth: 10^9 bytes a second to its memory.
        link: 10^9 bytes a second to the other GPUs of its node, each way.
        source: Where the figures are from.
    """

    name: str
    memory: float
    half: float
    single: float
    bfloat16: bool
    bandwidth: float
    link: float
    source: str

    def operations(self, precision: torch.dtype) -> float:
        """Operations a second at best.

        Raises:
            UserError: If it has no blocks for that precision.
        """
        if precision == torch.bfloat16 and not self.bfloat16:
            raise UserError(
                f"plan.gpu={self.name} has no blocks for bfloat16: take trainer.precision=16-mixed, or a later GPU"
            )
        return (self.half if precision in (torch.bfloat16, torch.float16) else self.single) * 1e12


_A100 = "NVIDIA A100 Tensor Core GPU data sheet, SXM4"
_H100 = "NVIDIA H100 Tensor Core GPU data sheet, SXM5"
_H200 = "NVIDIA H200 Tensor Core GPU data sheet, SXM"
_V100 = "NVIDIA V100 Tensor Core GPU data sheet, SXM2"

GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU(name="v100-16gb", memory=16, half=125, single=15.7, bfloat16=False, bandwidth=900, link=150, source=_V100),
        GPU(name="v100-32gb", memory=32, half=125, single=15.7, bfloat16=False, bandwidth=900, link=150, source=_V100),
        GPU(name="a100-40gb", memory=40, half=312, single=19.5, bfloat16=True, bandwidth=1555, link=300, source=_A100),
        GPU(name="a100-80gb", memory=80, half=312, single=19.5, bfloat16=True, bandwidth=2039, link=300, source=_A100),
        GPU(name="h100-80gb", memory=80, half=989, single=67, bfloat16=True, bandwidth=3350, link=450, source=_H100),
        GPU(name="h200-141gb", memory=141, half=989, single=67, bfloat16=True, bandwidth=4800, link=450, source=_H200),
    )
}


def find_gpu(name: str) -> GPU:
    """A GPU by its name.

    Raises:
        UserError: If it is not in the table.
    """
    if name in GPUS:
        return GPUS[name]
    text = name.lower()
    near = [known for known in GPUS if text and known.startswith(text)] or get_close_matches(
        text, list(GPUS), 1, cutoff=0.5
    )
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"plan.gpu={name} is not known: {hint}there are {', '.join(GPUS)}")
