"""How a job lies on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Strategy = Literal["single", "ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Nodes, the GPUs that are used of each, and what they share.

    Attributes:
        num_nodes: Number of nodes n.
        gpus_per_node: Number of GPUs g that are used of a node.
        strategy: "single" for one device, "ddp" where each holds everything, "fsdp" where weights, gradients and states are
            shared by all.
        gathered_share: With "fsdp", the size that a unit's weights are gathered in over their own: 0.5 in bf16-mixed precision.
    """

    num_nodes: int = 1
    gpus_per_node: int = 1
    strategy: Strategy = "single"
    gathered_share: float = 1.0

    @property
    def world_size(self) -> int:
        """Number of GPUs N = n g."""
        return self.num_nodes * self.gpus_per_node
