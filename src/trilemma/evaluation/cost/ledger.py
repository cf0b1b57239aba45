"""The ledger of one setting: counts that hold on any machine, and times that hold on this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.capabilities import supports
from trilemma.errors import UserError
from trilemma.evaluation.cost.contention import CoreWait
from trilemma.evaluation.cost.latency import Latency, measure_latency
from trilemma.evaluation.cost.memory import PeakMemory, measure_peak_memory
from trilemma.evaluation.cost.throughput import BATCH_SIZES, Throughput, measure_throughput
from trilemma.evaluation.cost.timing import Stopwatch
from trilemma.evaluation.cost.work import Work, count_work
from trilemma.models.capabilities import Samples
from trilemma.samplers.base import Sampler
from trilemma.samplers.guidance import Guidance


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What one image costs.

    Attributes:
        work: Function evaluations, operations and parameters; the same on every machine.
        latency: Seconds for one image by itself.
        throughput: Images a second at the best batch size.
        memory: Peak for one image, and at the best batch size; empty where nothing tells it.
        waited: Share of the timing that the process waited for a core that other programs held; None where nothing tells it.
    """

    work: Work
    latency: Latency
    throughput: Throughput
    memory: tuple[PeakMemory, ...]
    waited: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, equal to themselves after a round trip through JSON."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def measure_ledger(
    model: nn.Module,
    *,
    condition: int | str | None = None,
    sampler: Sampler | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_sizes: Sequence[int] = BATCH_SIZES,
    num_warmup: int = 3,
    num_runs: int = 20,
    max_seconds: float = 60.0,
) -> Ledger:
    """Measure a family that samples, in evaluation mode.

    What is timed is `model.sample`: condition encoder, sampler, network and decoder, to float images on the device.

    Args:
        model: The family; its training mode is restored.
        condition: One label or string for all images, or None.
        sampler: How to draw; the family's own where None.
        guidance: How the condition is strengthened; the family's own where None.
        seed: Of the samples.
        device: Where the model is.
        batch_sizes: Among which the best rate is looked for.
        num_warmup: Runs before the latency is timed.
        num_runs: Timed runs of the latency.
        max_seconds: For the latency, and again for the throughput. It bounds what is begun: a single draw that takes
            longer is not cut short.

    Raises:
        UserError: If the model does not sample, or does not know the condition.
        ValueError: If there are no batch sizes, or one below 1.
    """
    if not supports(model, Samples):
        raise UserError(f"a {type(model).__name__} does not sample: there is nothing to time")

    def draw(num_images: int) -> Tensor:
        return model.sample(num_images, condition=condition, sampler=sampler, guidance=guidance, seed=seed)

    stopwatch = Stopwatch.of(device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            work = count_work(model, draw)
            with CoreWait() as wait:
                latency = measure_latency(
                    draw, stopwatch, num_warmup=num_warmup, num_runs=num_runs, max_seconds=max_seconds
                )
                throughput = measure_throughput(draw, stopwatch, batch_sizes=batch_sizes, max_seconds=max_seconds)
            single = measure_peak_memory(draw, 1, device=device)
            best = measure_peak_memory(draw, throughput.batch_size, device=device)
    finally:
        model.train(was_training)
    memory = tuple(peak for peak in (single, best) if peak is not None)
    return Ledger(work=work, latency=latency, throughput=throughput, memory=memory, waited=wait.share)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value
