"""Strategies: how the processes of a run share its work."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trilemma.distributed.sharding import gathered, local, sharded_like
from trilemma.errors import UserError


class DDP(DDPStrategy):
    """Data-parallel training: each process has the whole model and a part of every batch; gradients are averaged in the backward pass.

    Buffers are not broadcast: what training notes in them (a codebook's averages, losses by time) is summed over processes where it
    is noted, and what a process counts for itself in a validation must stay its own.

    Args:
        gradient_as_bucket_view: Whether gradients lie in the buffers that are sent, which saves their size in memory.
        find_unused_parameters: Whether weights may have no part in a loss; looking for them costs time in every batch.
        timeout_minutes: How long a process waits for the others before it gives them up.
    """

    def __init__(
        self,
        *,
        gradient_as_bucket_view: bool = True,
        find_unused_parameters: bool = False,
        timeout_minutes: float = 30.0,
    ) -> None:
        parameters = inspect.signature(DistributedDataParallel).parameters  # the name changed in torch 2.13
        name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
        buffers: dict[str, Any] = {name: False}
        super().__init__(
            **buffers,
            gradient_as_bucket_view=gradient_as_bucket_view,
            find_unused_parameters=find_unused_parameters,
            timeout=timedelta(minutes=timeout_minutes),
        )


class HandAveragedDDP(DDPStrategy):
    """DDP for families that average gradients by themselves: each process has the whole model, without DDP's hooks.

    `DDP` trains them too, but keeps buffers for both networks' gradients that are never used.

    Args:
        timeout_minutes: See `DDP`.
    """

    def __init__(self, *, timeout_minutes: float = 30.0) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))

    def configure_ddp(self) -> None:
        """Broadcast the weights and buffers of rank 0."""
        assert self.model is not None
        _sync_module_states(self.model)


class FullyShard(ModelParallelStrategy):
    """Fully sharded training (FSDP2): each process has a part of every weight, gradient, optimiser state and batch.

    `Family.configure_model` shards. Checkpoints are those of any other strategy: one file with whole tensors, which one process
    can sample from and any number can go on from.

    Args:
        timeout_minutes: See `DDP`.
    """

    def __init__(self, *, timeout_minutes: float = 30.0) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=timedelta(minutes=timeout_minutes),
        )

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False: callbacks need their states when fitting starts, and the model is sharded before its setup."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True, as for other strategies."""
        return True

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        self._data_parallel_size = self.world_size

    def setup(self, trainer: Trainer) -> None:
        """Set up as the parent strategy does, and check that every trainable weight is sharded."""
        super().setup(trainer)
        assert self.lightning_module is not None
        whole = [n for n, p in self.lightning_module.named_parameters() if p.requires_grad and local(p) is p]
        if whole:
            raise UserError(f"trainer=fsdp has not sharded {whole[0]}: take trainer=ddp")

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather whole weights and buffers; all processes call it at once, and rank 0 gets the weights."""
        assert self.lightning_module is not None
        return gathered(dict(self.lightning_module.state_dict()))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather an optimiser's state as it is for whole weights; all processes call it at once."""
        bare = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return gathered(bare.state_dict())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write one file, from rank 0."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the checkpoint in every process."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's parts of the weights."""
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        state = checkpoint["state_dict"]
        parts = {name: sharded_like(value, own[name]) if name in own else value for name, value in state.items()}
        module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's parts of the optimisers' states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            weight_of = dict(zip(numbers, weights, strict=True))
            parts = {
                number: {key: _part_of(value, weight_of[number]) for key, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


def _part_of(value: Any, weight: Tensor) -> Any:
    """Shard an optimiser's state of a weight: moments are sharded like the weight, a count of steps is not."""
    return sharded_like(value, weight) if isinstance(value, Tensor) and value.shape == weight.shape else value
