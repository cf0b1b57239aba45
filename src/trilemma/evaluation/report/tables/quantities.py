"""The numbers of a row that tables and plots show, in their base units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trilemma.evaluation.cost.contention import BUSY
from trilemma.evaluation.report.row import Row, number

Number = Callable[[Row], float | None]


def at(*path: str) -> Number:
    """The number under these names; `{FD}` names the extractor too."""
    return lambda row: row.number(*path)


def metric(name: str) -> Number:
    """Of the samples."""
    return at("metrics", name)


def real(name: str) -> Number:
    """The same of held-out real images."""
    return at("floor", name)


def ratio_to_real(name: str) -> Number:
    """The metric over that of held-out real images."""

    def ratio(row: Row) -> float | None:
        value, ceiling = metric(name)(row), real(name)(row)
        return None if value is None or not ceiling else value / ceiling

    return ratio


def calls_per_image(row: Row) -> float | None:
    """Function evaluations of the sub-network that is evaluated most often: the one that a sampler asks at every step."""
    work = row.part("ledger").get("work")
    return _most(work.get("subnetworks") if isinstance(work, Mapping) else None, "evaluations_per_image")


def peak_bytes(row: Row) -> float | None:
    """The most memory that a draw held, of the batch sizes that were measured."""
    return _most(row.part("ledger").get("memory"), "peak_bytes")


def _most(parts: Any, name: str) -> float | None:
    found = [number(part, name) for part in parts] if isinstance(parts, (list, tuple)) else []
    return max((value for value in found if value is not None), default=None)


flops_per_image = at("ledger", "work", "flops_per_image")  # 2 for a multiplication with its addition
num_parameters = at("ledger", "work", "num_parameters")  # that are read at sampling
latency = at("ledger", "latency", "p50_seconds")  # for one image by itself, the median
latency_p95 = at("ledger", "latency", "p95_seconds")
images_per_second = at("ledger", "throughput", "images_per_second")  # at the best batch size
best_batch_size = at("ledger", "throughput", "batch_size")
waited = at("ledger", "waited")  # share of the timing that other programs held the cores
bits_per_dim = at("likelihood", "bits_per_dim")  # whatever its kind and unit


def timed_while_busy(row: Row) -> bool:
    """Whether other programs held the cores while the row was timed, so that its speed is not to be ranked."""
    return (waited(row) or 0.0) > BUSY


def timed_on(row: Row) -> str | None:
    """The machine of the ledger, in words; None where nothing was timed."""
    if latency(row) is None:
        return None
    ledger = row.part("ledger").get("machine")
    machine = ledger if isinstance(ledger, Mapping) else row.protocol.get("machine")
    if not isinstance(machine, Mapping):
        return "a machine that is not stated"
    threads = f"{machine.get('num_threads')} threads of {machine.get('cpu')}"
    return str(machine["accelerator"]) if machine.get("accelerator") else threads.replace("1 threads", "1 thread")
