"""Trilemma: train, sample and compare generative image models.

A few lines suffice::

    import trilemma

    model = trilemma.load("outputs/.../best.ckpt")
    images = model.sample(16, condition=7, num_steps=10, guidance=2.0)  # float [16, C, H, W] in [-1, 1]
    trilemma.to_pil(images)[0].show()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trilemma.errors import UserError

if TYPE_CHECKING:
    from trilemma.checkpoints.load import load
    from trilemma.figures.images import make_grid, to_pil

__version__ = "0.1.0"
__all__ = ["UserError", "load", "make_grid", "to_pil"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import trilemma` alone costs no torch."""
    if name == "load":
        from trilemma.checkpoints.load import load

        return load
    if name in ("to_pil", "make_grid"):
        from trilemma.figures import images

        return getattr(images, name)
    raise AttributeError(f"module 'trilemma' has no attribute {name!r}")
