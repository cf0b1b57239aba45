"""A process in which tokens turn into those that look like them."""

from __future__ import annotations

import torch
from trilemma.toys.matrix_process import MatrixProcess

from trilemma.codecs.base import Codec
from trilemma.codecs.vq import VQ
from trilemma.errors import UserError


class CodebookNeighbours(MatrixProcess):
    """Rates exp(-|e_i - e_j|^2 / mean square distance) between the codebook vectors of a first stage.

    Args:
        codec: Whose codebook is read, and not kept: the rates are the process's own.
        strength: See `MatrixProcess`.

    Raises:
        UserError: If the codec has no codebook.
    """

    def __init__(self, codec: Codec, *, strength: float) -> None:
        if not isinstance(codec, VQ):
            raise UserError(
                f"process=toy_codebook reads a codebook, and codec {type(codec).__name__} has none: take codec=vq"
            )
        vectors = codec.quantizer.codebook.detach().double()
        distance = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").square()
        super().__init__((-distance / distance.mean().clamp(min=1e-300)).exp(), strength, learned=True)
