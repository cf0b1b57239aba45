"""The numbers of a row that tables and plots show, in their base units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trilemma.evaluation.report.row import Row, number

Number = Callable[[Row], float | None]


def metric(name: str) -> Number:
    """Of the samples; `{FD}` names the extractor too."""
    return lambda row: row.number("metrics", name)


def real(name: str) -> Number:
    """The same of held-out real images."""
    return lambda row: row.number("floor", name)


def copied(name: str) -> Number:
    """The same of training images in the place of samples."""
    return lambda row: row.number("copycat", name)


def ratio_to_real(name: str) -> Number:
    """The metric over that of held-out real images."""

    def ratio(row: Row) -> float | None:
        value, ceiling = metric(name)(row), real(name)(row)
        return None if value is None or not ceiling else value / ceiling

    return ratio


def shown_distance(value: float) -> float:
    """Rounding leaves the distance of equal sets a little below zero."""
    return max(value, 0.0)


def calls_per_image(row: Row) -> float | None:
    """Function evaluations of the sub-network that is evaluated most often: the one that a sampler asks at every step."""
    found = [number(part, "evaluations_per_image") for part in subnetworks(row)]
    return max((calls for calls in found if calls is not None), default=None)


def subnetworks(row: Row) -> list[Mapping[str, Any]]:
    """What the ledger says of each sub-network that ran."""
    work = row.part("ledger").get("work")
    parts = work.get("subnetworks") if isinstance(work, Mapping) else None
    return [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, (list, tuple)) else []


def flops_per_image(row: Row) -> float | None:
    """Operations, 2 for a multiplication with its addition."""
    return row.number("ledger", "work", "flops_per_image")


def num_parameters(row: Row) -> float | None:
    """Parameters that are read at sampling."""
    return row.number("ledger", "work", "num_parameters")


def latency(row: Row) -> float | None:
    """Seconds for one image by itself, the median."""
    return row.number("ledger", "latency", "p50_seconds")


def latency_p95(row: Row) -> float | None:
    """Seconds for one image by itself, the 95th percentile."""
    return row.number("ledger", "latency", "p95_seconds")


def images_per_second(row: Row) -> float | None:
    """At the best batch size."""
    return row.number("ledger", "throughput", "images_per_second")


def best_batch_size(row: Row) -> float | None:
    """Where the most images a second were drawn."""
    return row.number("ledger", "throughput", "batch_size")


def peak_bytes(row: Row) -> float | None:
    """The most memory that a draw held, of the batch sizes that were measured."""
    memory = row.part("ledger").get("memory")
    found = [number(peak, "peak_bytes") for peak in memory] if isinstance(memory, (list, tuple)) else []
    return max((peak for peak in found if peak is not None), default=None)


def bits_per_dim(row: Row) -> float | None:
    """Of the likelihood, whatever its kind and unit."""
    return row.number("likelihood", "bits_per_dim")


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
