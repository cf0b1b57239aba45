"""What adversarial families share: two networks, two optimisers, and one count of batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import Parameter

from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.base import BackwardPass, Family, Loss, OptimizerFactory, SchedulerFactory, StepOutput
from trilemma.training.diagnostics import Diagnostics
from trilemma.training.muon import mark_embeddings

_NETWORKS = ("generator", "discriminator")


class Adversarial(Family):
    """A generator and a discriminator, both trained on every batch.

    A subclass gives `discriminator_loss` and `generator_loss`, and names in `discriminator_modules` what the discriminator's turn
    trains. All other trainable parameters (encoder, decoder, embeddings of a condition) are the generator's: they share its
    optimiser, and only they are averaged.

    Lightning does not optimise such a family by itself and counts every optimiser's step, so this class takes over what
    the trainer does for others. A run has `trainer.max_steps` updates. An update takes `accumulate_grad_batches` batches:
    they are held until the last has come, then the discriminator is trained on all of them, and then the generator
    against the new discriminator, exactly as on one large batch. One step of an update is counted. Each network's
    gradient is averaged over processes and clipped by itself, and each schedule is stepped with its optimiser.

    Args:
        optimizer: Builds the generator's optimiser from its parameters and their names.
        discriminator_optimizer: Builds the discriminator's; `optimizer` builds it too where None.
        scheduler: Builds a learning-rate schedule for each of the two.
        gradient_clip_val: Norm that the generator's gradient is clipped to; None or 0 clips nothing.
        discriminator_gradient_clip_val: The same for the discriminator.
        accumulate_grad_batches: Batches an update.
        parts: Of the family that this is mixed into (`VQVAE` of a VQGAN); empty where it takes none.

    Attributes:
        discriminator_modules: Names of the modules whose parameters are the discriminator's.
        num_batches: Batches trained on before the current one; it goes on counting after a resume.

    Raises:
        UserError: If a number is out of range.
    """

    shardable = False
    optimises_by_hand = True
    discriminator_modules: tuple[str, ...] = ("discriminator",)

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory | None = None,
        discriminator_optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        gradient_clip_val: float | None = None,
        discriminator_gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
        **parts: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler, **parts)
        if accumulate_grad_batches < 1:
            raise UserError(f"model.accumulate_grad_batches={accumulate_grad_batches} must be at least 1")
        if min(gradient_clip_val or 0.0, discriminator_gradient_clip_val or 0.0) < 0.0:
            raise UserError("model.gradient_clip_val and model.discriminator_gradient_clip_val must not be negative")
        self.automatic_optimization = False
        self._discriminator_optimizer = discriminator_optimizer
        self.gradient_clip_val = gradient_clip_val
        self.discriminator_gradient_clip_val = discriminator_gradient_clip_val
        self.accumulate_grad_batches = accumulate_grad_batches
        self.num_batches = 0
        self._held: list[Batch] = []  # of an update that is not complete
        self._terms: dict[str, Tensor] = {}  # as each was last computed
        self._diagnostics = Diagnostics()  # likewise

    @abstractmethod
    def discriminator_loss(self, batch: Batch) -> Loss | None:
        """Compute the discriminator's loss; None where it is not trained in this update (see `num_updates`).

        It runs before `generator_loss`; the generator's parameters require no gradient meanwhile.
        """

    @abstractmethod
    def generator_loss(self, batch: Batch) -> Loss | None:
        """Compute the generator's loss; None where it is not trained in this update (see `num_updates`).

        The discriminator's parameters require no gradient meanwhile.
        """

    def loss(self, batch: Batch) -> Loss:
        """Compute the generator's loss.

        Raises:
            ValueError: If the generator is not trained in this update.
        """
        loss = self.generator_loss(batch)
        if loss is None:
            raise ValueError("the generator is not trained in this update")
        return loss

    @property
    def num_updates(self) -> int:
        """Updates before the current one."""
        return self.num_batches // self.accumulate_grad_batches

    def generator_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """List the generator's trainable parameters with their names."""
        others = self._of_discriminator()
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad and p not in others)

    def discriminator_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """List the discriminator's trainable parameters with their names."""
        its = self._of_discriminator()
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad and p in its)

    def _of_discriminator(self) -> set[Parameter]:
        return {p for name in self.discriminator_modules for p in self.get_submodule(name).parameters()}

    def averaged_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """List the parameters that moving averages are kept of: the generator's."""
        return self.generator_parameters()

    def completes_update(self) -> bool:
        """Check whether the last batch completed an update, so that no batch is held for the next one."""
        return self.num_batches % self.accumulate_grad_batches == 0

    @property
    def planned_updates(self) -> tuple[int, ...]:
        """Numbers of updates that show each kind there is, an ordinary one last; the first often carries a penalty."""
        return (0, 1)

    def backward_passes(self) -> list[list[BackwardPass]]:
        """List the backward passes of both networks in each of `planned_updates`."""
        turns = (
            (self.discriminator_loss, [p for _, p in self.discriminator_parameters()]),
            (self.generator_loss, [p for _, p in self.generator_parameters()]),
        )
        return [
            [BackwardPass(loss=self._in_update(number, loss_of), parameters=trained) for loss_of, trained in turns]
            for number in self.planned_updates
        ]

    def _in_update(self, number: int, loss_of: Callable[[Batch], Loss | None]) -> Callable[[Batch], Loss | None]:
        """Bind a loss to the update of that number, whenever it is computed."""

        def loss(batch: Batch) -> Loss | None:
            before, self.num_batches = self.num_batches, number * self.accumulate_grad_batches
            try:
                return loss_of(batch)
            finally:
                self.num_batches = before

        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the generator's optimiser, then the discriminator's, each with a schedule of its own."""
        if self._optimizer is None:
            raise ValueError(f"{type(self).__name__} was built without an optimiser: it can sample, not train")
        mark_embeddings(self)
        generator = self._optimizer(list(self.generator_parameters()))
        discriminator = (self._discriminator_optimizer or self._optimizer)(list(self.discriminator_parameters()))
        schedules = [] if self._scheduler is None else [self._scheduler(o) for o in (generator, discriminator)]
        return [generator, discriminator], schedules

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Hold the batch; where it completes an update, train the discriminator, then the generator."""
        self._held.append(batch)
        losses: dict[str, Loss] = {}
        if len(self._held) == self.accumulate_grad_batches:
            losses = self._update(self._held)
            self._held = []
        self.num_batches += 1
        return self._report(losses)

    def _update(self, batches: list[Batch]) -> dict[str, Loss]:
        losses: dict[str, Loss] = {}
        # Lightning returns None where there is no schedule.
        optimizers: Any = self.optimizers()
        schedules: Any = self.lr_schedulers() or (None, None)
        turns = (
            ("discriminator", self.discriminator_loss, self.discriminator_gradient_clip_val),
            ("generator", self.generator_loss, self.gradient_clip_val),
        )
        # Reversed: `configure_optimizers` lists the generator first.
        for (name, loss_of, clip), optimizer, schedule in zip(turns, optimizers[::-1], schedules[::-1], strict=True):
            loss = self._backward(loss_of, optimizer, batches)
            if loss is None:
                continue
            self._step(optimizer, clip, counts=not losses)
            if schedule is not None:
                schedule.step()
            losses[name] = loss
        return losses

    def _backward(
        self, loss_of: Callable[[Batch], Loss | None], optimizer: LightningOptimizer, batches: list[Batch]
    ) -> Loss | None:
        """Leave the mean gradient over the batches in one network's parameters; return the mean loss, detached."""
        losses = []
        with self.toggled_optimizer(optimizer), self._unsynchronised():
            for batch in batches:
                loss = loss_of(batch)
                if loss is None:
                    return None
                self.manual_backward(loss.total / len(batches))
                losses.append(loss)
        terms = {name: torch.stack([loss.terms[name].detach() for loss in losses]).mean() for name in losses[0].terms}
        total = torch.stack([loss.total.detach() for loss in losses]).mean()
        means = self.over_processes({"": total, **terms})
        return Loss(means.pop(""), means, losses[-1].diagnostics)

    def _step(self, optimizer: LightningOptimizer, clip: float | None, *, counts: bool) -> None:
        """Step one network; only a step that `counts` raises `trainer.global_step`."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._average_gradients(parameters)
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        if counts:
            optimizer.step()
        else:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        optimizer.zero_grad()

    def _average_gradients(self, parameters: list[Parameter]) -> None:
        """Average over processes, once per update and network: DDP's own hooks would wait for both networks."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.trainer.world_size == 1 or not gradients:
            return
        flat = self.trainer.strategy.reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
        assert isinstance(flat, Tensor)
        means = torch.split(flat, [g.numel() for g in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _report(self, losses: dict[str, Loss]) -> StepOutput:
        """Log every term at its last computed value, after a resume too, as Lightning does for other families."""
        for name, loss in losses.items():
            self._terms |= {name: loss.total, **loss.terms}
            self._diagnostics |= loss.diagnostics
        for name, term in self._terms.items():
            self.log(f"train/{name}", term, prog_bar=name in _NETWORKS)
        totals = [self._terms[name] for name in _NETWORKS if name in self._terms]
        total = torch.stack(totals).sum() if totals else torch.zeros((), device=self.device)
        return {"loss": total, "terms": dict(self._terms), "diagnostics": self._diagnostics}

    def _unsynchronised(self) -> AbstractContextManager[None]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def on_fit_start(self) -> None:
        """Refuse strategies and precisions that manual optimisation with two optimisers does not support.

        Raises:
            UserError: If parameters are sharded over devices, or gradients are scaled.
        """
        strategy = self.trainer.strategy
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise UserError(
                "trainer.strategy: a family with a discriminator trains with trainer=ddp_adversarial, or in one process"
            )
        if self.trainer.scaler is not None:
            raise UserError(
                f"trainer.precision={self.trainer.precision}: an adversarial family trains in bf16-mixed or 32-true"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the count, the logged terms and the whole batches of an incomplete update; all processes call it at once."""
        super().on_save_checkpoint(checkpoint)
        held, diagnostics = self._joined([*self._held, self._diagnostics])
        checkpoint["adversarial"] = {
            "num_batches": self.num_batches,
            "held": held,
            "terms": self._terms,
            "diagnostics": diagnostics,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load what `on_save_checkpoint` wrote; of the held batches, this process's part."""
        super().on_load_checkpoint(checkpoint)
        state, of, mine = checkpoint["adversarial"], self.trainer.world_size, self.trainer.global_rank
        self.num_batches, self._terms = state["num_batches"], state["terms"]
        self._held = [_part(batch, mine, of) for batch in state["held"]]
        self._diagnostics = _part(state["diagnostics"], mine, of)

    def _joined(self, batches: list[Any]) -> tuple[list[Any], Any]:
        """Join the parts of all processes in mappings of tensors [B, ...] and lists of B; the last mapping comes apart."""
        if self.trainer.world_size > 1:
            everyones: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(everyones, move_data_to_device(batches, "cpu"))
            batches = [
                {key: _cat([part[key] for part in parts]) for key in parts[0]} for parts in zip(*everyones, strict=True)
            ]
        return batches[:-1], batches[-1]

    def on_train_start(self) -> None:
        """Move what the checkpoint held to the device."""
        self._held = move_data_to_device(self._held, self.device)
        self._terms = move_data_to_device(self._terms, self.device)
        self._diagnostics = move_data_to_device(self._diagnostics, self.device)


def _cat(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [item for part in parts for item in part]


def _part(batch: Any, rank: int, world_size: int) -> Any:
    """Take one of equal parts of a mapping of tensors [B, ...] and lists of B."""
    return {key: x[rank * len(x) // world_size : (rank + 1) * len(x) // world_size] for key, x in batch.items()}
