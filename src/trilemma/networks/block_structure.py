"""The blocks that a network consists of."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasBlocks(Protocol):
    """A network whose blocks can be sharded over processes, checkpointed (activations recomputed) and compiled.

    Each of these happens block by block; what lies in no block goes with the network as a whole. Callers run the network as a module and
    its blocks as modules, and read their weights in no other way.
    """

    def layer_blocks(self) -> list[nn.Module]:
        """List blocks of about equal size that run one after another; the network itself where it is one block."""
