"""Muon for the matrices inside a network's layers, AdamW for everything else, as one optimiser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Muon, Optimizer

from trilemma.distributed.sharding import local, sharded_like, whole

_MARK = "is_embedding_table"


class MuonAdamW(Optimizer):
    """Orthogonalised momentum for hidden matrices; AdamW for embedding tables, heads, biases, convolutions and gains.

    Muon's step is scaled to the size of AdamW's (0.2 sqrt(max(rows, columns))), so both share learning rate and weight
    decay. It is one optimiser with two parameter groups: schedules, checkpoints and callbacks need to know nothing.

    Of a matrix whose rows are divided over processes, the momentum is divided alike. What it says to do is gathered, orthogonalised
    whole by every process, and each takes its rows of the result.

    Sources: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is scalable
    for LLM training", equation 4.

    Args:
        named_parameters: Names and parameters, as `named_parameters()` gives them.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        momentum: Of Muon.
        betas: Of AdamW.
        hidden: Regular expression found in the names of those matrices that Muon takes.

    Raises:
        ValueError: If no matrix has such a name, or every parameter is such a matrix.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        *,
        lr: float,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        hidden: str = r"(^|\.)layers\.",
    ) -> None:
        named = list(named_parameters)
        tables = {id(p) for p in embedding_tables(p for _, p in named)}
        matrices = [(name, p) for name, p in named if p.ndim == 2 and id(p) not in tables and re.search(hidden, name)]
        if not matrices:
            raise ValueError(f"no matrix has a name that matches hidden={hidden!r}: use optimizer=adamw")
        taken = {name for name, _ in matrices}
        rest = [(name, p) for name, p in named if name not in taken]
        # Torch's Muon names the settings of its group; it takes no step, for it always orthogonalises in bfloat16.
        muon = Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), fused=True)
        super().__init__(muon.param_groups + self._adamw.param_groups, {})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        muon, adamw = self.param_groups
        self._step_matrices(muon)
        self._adamw.param_groups, self._adamw.state = [adamw], self.state  # loading a state replaces both
        self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        wanted = {p: self._momentum(p, group) for p in group["params"] if p.grad is not None}
        by_shape: dict[tuple[torch.Size, torch.device], list[Parameter]] = {}
        for p in wanted:
            by_shape.setdefault((p.shape, p.device), []).append(p)
        for (shape, _), alike in by_shape.items():  # matrices of one shape are orthogonalised as one batch
            steps = orthogonalise(torch.stack([whole(wanted[p]) for p in alike]), group)
            size = 0.2 * max(shape) ** 0.5
            for p, step in zip(alike, steps, strict=True):
                own = local(sharded_like(step.to(p.dtype), p))
                local(p).mul_(1 - group["lr"] * group["weight_decay"]).add_(own, alpha=-group["lr"] * size)

    def _momentum(self, p: Parameter, group: dict[str, Any]) -> Tensor:
        """Update the momentum of a matrix; returns what it says to do, divided over processes as the matrix is."""
        state, gradient = self.state[p], p.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum


def orthogonalise(matrices: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Replace the singular values of matrices [n, rows, columns] by values near 1, by Newton-Schulz iterations.

    In bfloat16 on a GPU, which has units for it, and in float32 elsewhere: a CPU without bfloat16 instructions takes 30 times as long
    for it.

    Args:
        matrices: Any floating dtype.
        group: Of Muon: ns_coefficients, ns_steps, eps.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    a, b, c = group["ns_coefficients"]
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.promote_types(matrices.dtype, torch.float32))
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def mark_embeddings(module: nn.Module) -> None:
    """Note on the tables of `nn.Embedding` what they are: their rows are vectors of their own, and no matrix that maps one to another."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            setattr(part.weight, _MARK, True)


def embedding_tables(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Select the parameters that `mark_embeddings` has noted."""
    return [p for p in parameters if getattr(p, _MARK, False)]
