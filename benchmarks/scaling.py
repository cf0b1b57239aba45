"""Weak scaling, one process against two of one thread each, at a fixed batch a process: `python benchmarks/scaling.py`.

Both processes live throughout and take turns, in every round:
  alone     one steps, the other sleeps
  apart     both step, and exchange nothing: what sharing a machine costs
  together  both step with the strategy of trainer=ddp: gradients are averaged, losses by time gathered
  sharded   both step with that of trainer=fsdp

Efficiency is alone / together. The exchange's share of a step is (together - apart) / together. A bare all-reduce of as many numbers
as there are weights stands beside it. Ratios are taken within a round. Each is given by the clock and, in brackets, by the first
process's own time: that leaves out waiting, for the other process and for whatever else runs on the machine.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import discrete
import gaussian

import torch  # isort: skip
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from trilemma.distributed.sharding import shard
from trilemma.distributed.strategies import DDP
from trilemma.models.base import Family

NAMES = {
    "transformer": "network of mnist/vq_diffusion, 7 x 7 tokens",
    "unet": "network of conf/network/unet.yaml, 28 x 28 pixels",
}
Step = Callable[[], None]


class LossOf(nn.Module):
    """A family as the strategies of Lightning call it."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.family.loss(batch).total


def family_of(name: str) -> Family:
    return discrete.family("S") if name == "transformer" else gaussian.family("S")


def batch_of(name: str, size: int, rank: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    label = torch.randint(10, (size,), generator=generator)
    if name == "transformer":
        return {"code": torch.randint(128, (size, 49), generator=generator), "label": label}
    return {"image": torch.rand((size, 1, 28, 28), generator=generator) * 2 - 1, "label": label}


def steps(name: str, batch: dict[str, Tensor]) -> dict[str, Step]:
    """A training step in each of the ways."""
    whole, sharded = LossOf(family_of(name)), LossOf(family_of(name))
    shard(sharded.family, init_device_mesh("cpu", (2,)))
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    shared = DistributedDataParallel(whole, **DDP()._ddp_kwargs)

    def step(model: nn.Module) -> Step:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

        def run() -> None:
            optimizer.zero_grad()
            model(batch).backward()
            optimizer.step()

        return run

    together = step(shared)

    def apart() -> None:
        with ExitStack() as stack:
            stack.enter_context(shared.no_sync())
            stack.enter_context(patch.object(dist, "is_initialized", return_value=False))  # nothing is gathered either
            together()

    flat = torch.zeros(sum(p.numel() for p in whole.parameters() if p.requires_grad))
    return {"apart": apart, "together": together, "sharded": step(sharded), "all_reduce": lambda: dist.all_reduce(flat)}


def timed(step: Step, num: int) -> tuple[float, float]:
    """Seconds a step, by the clock and of this process's own."""
    clock, own = time.perf_counter(), time.process_time()
    for _ in range(num):
        step()
    return (time.perf_counter() - clock) / num, (time.process_time() - own) / num


def work(rank: int, name: str, options: argparse.Namespace, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    ways = steps(name, batch_of(name, options.batch_size, rank))
    order = {"alone": ways["apart"], **ways}
    for way in ways.values():
        for _ in range(2):
            way()
    rounds: list[dict[str, tuple[float, float]]] = []
    for _ in range(options.rounds):
        found = {}
        for way, step in order.items():
            dist.barrier()
            if way != "alone" or rank == 0:
                found[way] = timed(step, options.steps)
        rounds.append(found)
    if rank == 0:
        weights = sum(p.numel() for p in family_of(name).parameters() if p.requires_grad)
        report(name, weights, rounds, options)
    dist.barrier()
    dist.destroy_process_group()


def report(name: str, weights: int, rounds: list[Any], options: argparse.Namespace) -> None:
    def median(value: Callable[[Any], float]) -> float:
        return statistics.median(value(found) for found in rounds)

    def ms(way: str) -> str:
        return f"{median(lambda found: found[way][0]) * 1e3:.1f} ({median(lambda found: found[way][1]) * 1e3:.1f})"

    def ratio(a: str, b: str) -> str:
        clock, own = (median(lambda found, i=i: found[a][i] / found[b][i]) for i in (0, 1))
        return f"{clock:.2f} ({own:.2f})"

    exchange = [median(lambda f, i=i: (f["together"][i] - f["apart"][i]) / f["together"][i]) for i in (0, 1)]
    cells = [
        f"{NAMES[name]}, {weights / 1e6:.2f} M weights, batch {options.batch_size} a process",
        *map(ms, ("alone", "apart", "together", "sharded", "all_reduce")),
        ratio("alone", "together"),
        ratio("apart", "alone"),
        f"{exchange[0]:.1%} ({exchange[1]:.1%})",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


HEADER = (
    "| what | alone, ms | apart, ms | together, ms | sharded, ms | bare all-reduce, ms | efficiency | apart / alone "
    "| exchange's share |\n|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps in a measurement")
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--only", choices=tuple(NAMES))
    options = parser.parse_args()
    print(f"{options.rounds} rounds of {options.steps} steps; clock (process's own time)\n\n{HEADER}", flush=True)
    for name in NAMES if options.only is None else [options.only]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(work, args=(name, options, port), nprocs=2)


if __name__ == "__main__":
    main()
