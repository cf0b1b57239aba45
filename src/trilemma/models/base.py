"""The interface of a family: all that the entry points, callbacks and evaluation know of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trilemma.data.batch import Batch
from trilemma.distributed.sharding import shard
from trilemma.processes.noise import NoiseSource, TorchNoise, mixed_seed
from trilemma.training.diagnostics import Diagnostics
from trilemma.training.muon import mark_embeddings

if TYPE_CHECKING:
    pass

CHECKPOINT_FORMAT = 2

OptimizerFactory = Callable[[Iterable[tuple[str, Parameter]]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


@dataclass
class Loss:
    """A training loss.

    Attributes:
        total: Scalar that is minimised.
        terms: Named parts, each a scalar, logged as `train/<name>`.
        diagnostics: For monitors; not logged as such.
    """

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: Diagnostics = field(default_factory=Diagnostics)


class StepOutput(TypedDict):
    """What a step returns; callbacks see it in `on_train_batch_end`, detached.

    Attributes:
        loss: Scalar that Lightning minimises.
        terms: See `Loss`.
        diagnostics: See `Loss`.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    diagnostics: Diagnostics


@dataclass(frozen=True, kw_only=True)
class BackwardPass:
    """One backward pass of an update, as `debug=plan` computes it.

    Attributes:
        loss: Computes the loss of a batch; None where the pass is left out of that update.
        parameters: Parameters that require gradients in this pass.
    """

    loss: Callable[[Batch], Loss | None]
    parameters: Sequence[Parameter]


class Family(L.LightningModule, ABC):
    """One kind of generative model: joins a codec, a process, a network, samplers and a condition.

    Args:
        optimizer: Builds the optimiser from the trainable parameters and their names.
        scheduler: Builds a learning-rate schedule that is stepped once a batch; None keeps the rate constant.

    Attributes:
        noise_seed: Seed of the noise that training draws, the same in all processes of a run.
        config: Plain containers that rebuild this model (`runs/` writes it into every checkpoint); empty where built by hand.
        monitor: The validation metric that says which checkpoint is best, and whether its least or its greatest value is.
        shardable: Whether its weights can be sharded over processes (`trainer=fsdp`).
        optimises_by_hand: Whether it accumulates, clips and averages gradients by itself: the trainer must not, and several processes
            take `trainer=ddp_adversarial`.
        unsupported: Capabilities (`Reconstructs`, ...) of the class that this model lacks, given its parts; see `supports`.
    """

    unsupported: frozenset[type] = frozenset()
    monitor: ClassVar[tuple[str, Literal["min", "max"]] | None] = None
    shardable: ClassVar[bool] = True
    optimises_by_hand: ClassVar[bool] = False

    def __init__(self, *, optimizer: OptimizerFactory | None = None, scheduler: SchedulerFactory | None = None) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.noise_seed = 0
        self._noise: tuple[int, int] = (-1, 0)  # the batch that noise was last drawn for, and how often
        self.config: dict[str, Any] = {}

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Compute the training loss of a batch."""

    def check_training(self, *, num_updates: int, num_images: int | None) -> None:
        """Check that training makes sense, before it starts; here it always does.

        Args:
            num_updates: Length of the run.
            num_images: Images of the training set; None where that is not known.

        Raises:
            UserError: If it does not.
        """

    def averaged_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """List the parameters that moving averages are kept of, with their names: those that are trained."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def averaged(self) -> dict[str, Tensor]:
        """Name all that moving averages are kept of: `averaged_parameters`, and the running statistics of their batch normalisations.

        The statistics of the last weights do not fit averaged ones.
        """
        averaged: dict[str, Tensor] = dict(self.averaged_parameters())
        for name, module in self.named_modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and f"{name}.weight" in averaged:
                statistics = (("running_mean", module.running_mean), ("running_var", module.running_var))
                averaged |= {f"{name}.{key}": value for key, value in statistics if value is not None}
        return averaged

    def completes_update(self) -> bool:
        """Check whether the last batch completed an update: a checkpoint does not hold accumulated gradients."""
        # Only Lightning's loop knows when it steps, and it offers no public method for it.
        return not self.trainer.fit_loop.epoch_loop._should_accumulate()

    def backward_passes(self) -> list[list[BackwardPass]]:
        """List the backward passes of an update, in order, for each kind of update; the ordinary kind comes last."""
        return [[BackwardPass(loss=self.loss, parameters=[p for p in self.parameters() if p.requires_grad])]]

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Log the named terms and return the total, with the diagnostics for monitors."""
        loss = self.loss(batch)
        terms = {name: term.detach() for name, term in loss.terms.items()}
        shown = self.over_processes({"loss": loss.total.detach(), **terms})
        self.log("train/loss", shown.pop("loss"), prog_bar=True)
        self.log_dict({f"train/{name}": term for name, term in shown.items()})
        return {"loss": loss.total, "terms": terms, "diagnostics": loss.diagnostics}

    def log(  # type: ignore[override]
        self, name: str, value: Any, *, batch_size: int | None = None, **options: Any
    ) -> None:
        """Log as Lightning does, whose mean over processes is wrong where their numbers of images are odd in sum.

        Lightning averages the batch sizes as integers. Here they are passed as multiples of the number it divides by.
        """
        if batch_size is not None and options.get("sync_dist") and self._trainer is not None:
            batch_size *= self._trainer.world_size
        super().log(name, value, batch_size=batch_size, **options)

    def configure_model(self) -> None:
        """Shard the trainable weights where the strategy has set up a device mesh for it."""
        mesh = self.device_mesh
        if mesh is not None:
            mixed = self.trainer.precision == "bf16-mixed"
            shard(self, mesh["data_parallel"], block_dtype=torch.bfloat16 if mixed else None)

    def training_noise(self) -> NoiseSource:
        """Build the noise for this process's part of the training batch: a function of seed, batch and image.

        It depends neither on the number of processes nor on a resume, and has no state to save. A second call in one batch
        returns other noise. Outside a trainer it comes from torch's global generator.
        """
        trainer = self._trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return TorchNoise(device=self.device)
        batch, calls = trainer.fit_loop.total_batch_idx, 0
        if self._noise[0] == batch:
            calls = self._noise[1]
        self._noise = (batch, calls + 1)
        generator = torch.Generator(self.device).manual_seed(mixed_seed(self.noise_seed, batch, calls))
        return TorchNoise(generator, rank=trainer.global_rank, world_size=trainer.world_size)

    def over_processes(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average named scalars over the processes of the run, whose parts of a batch are equal."""
        if not values or self._trainer is None or self._trainer.world_size == 1:
            return values
        # One reduction for all, in float64 if any of them is.
        kinds = [value.dtype for value in values.values()]
        widest = torch.float64 if torch.float64 in kinds else torch.float32
        means = self._trainer.strategy.reduce(torch.stack([v.to(widest) for v in values.values()]), reduce_op="mean")
        assert isinstance(means, Tensor)
        return {name: mean.to(kind) for name, mean, kind in zip(values, means.unbind(), kinds, strict=True)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser of the trainable parameters; step the schedule once a batch."""
        if self._optimizer is None:
            raise ValueError(f"{type(self).__name__} was built without an optimiser: it can sample, not train")
        mark_embeddings(self)
        optimizer = self._optimizer([(name, p) for name, p in self.named_parameters() if p.requires_grad])
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the whole gradient.

        Lightning's own refuses fused optimisers in bf16-mixed precision, although that scales no gradients.
        """
        if self.trainer.scaler is not None or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what rebuilds the model; a family that overrides this calls it too."""
        checkpoint["trilemma"] = {
            "format": CHECKPOINT_FORMAT,
            "version": version("trilemma"),
            "config": self.config,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Shard the optimisers' states as the weights are sharded; a family that overrides this calls it too.

        A fused optimiser assumes that layout, and a sharded run saves states row-major, not with channels last.
        """
        weights = dict(self.named_parameters())
        for state in checkpoint.get("optimizer_states", ()):
            for group in state["param_groups"]:
                for number, name in zip(group["params"], group.get("param_names", ()), strict=False):
                    remembered = state["state"].get(number, {})
                    remembered.update({key: _laid_out(value, weights.get(name)) for key, value in remembered.items()})


def _laid_out(value: Any, weight: Tensor | None) -> Any:
    if (
        weight is None
        or not isinstance(value, Tensor)
        or value.shape != weight.shape
        or value.stride() == weight.stride()
    ):
        return value
    return torch.empty_strided(value.shape, weight.stride(), dtype=value.dtype, device=value.device).copy_(value)
