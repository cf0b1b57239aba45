"""Muon for the matrices inside a network's layers, AdamW for everything else, as one optimiser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import AdamW, Muon, Optimizer

from trilemma.distributed.sharding import local, sharded_like


class MuonAdamW(Optimizer):
    """Orthogonalised momentum for hidden matrices; AdamW for embeddings, heads, biases, convolutions and gains.

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
        matrices = [(name, p) for name, p in named if p.ndim == 2 and re.search(hidden, name)]
        if not matrices:
            raise ValueError(f"no matrix has a name that matches hidden={hidden!r}: use optimizer=adamw")
        taken = {name for name, _ in matrices}
        rest = [(name, p) for name, p in named if name not in taken]
        self._muon = Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), fused=True)
        super().__init__(self._muon.param_groups + self._adamw.param_groups, {})

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
        # Loading a state replaces groups and state, so both are handed on at every step.
        for optimizer, group in zip((self._muon, self._adamw), self.param_groups, strict=True):
            optimizer.param_groups, optimizer.state = [group], self.state
            if optimizer is self._muon and any(isinstance(p, DTensor) for p in group["params"]):
                self._step_divided(group)
            else:
                optimizer.step()
        return loss

    def _step_divided(self, group: dict[str, Any]) -> None:
        """Take the step of `Muon.step` for matrices that are sharded over processes."""
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p.grad)
            momentum, gradient = state["momentum_buffer"], p.grad
            momentum.lerp_(gradient, 1 - group["momentum"])
            wanted = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            step = _orthogonal_step(wanted.full_tensor(), group)
            local(p).mul_(1 - group["lr"] * group["weight_decay"]).add_(local(sharded_like(step, p)))


def _orthogonal_step(wanted: Tensor, group: dict[str, Any]) -> Tensor:
    """Compute Muon's step, without momentum and weight decay, for the gradient `wanted`."""
    origin = Parameter(torch.zeros_like(wanted))
    origin.grad = wanted
    options = {key: group[key] for key in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
    muon: Optimizer = Muon([origin], momentum=0.0, nesterov=False, weight_decay=0.0, **options)
    muon.step()
    return origin.detach()
