"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence

from trilemma.planning.estimates.step import StepWork
from trilemma.planning.figures import Plan

_GIB = 2**30
_LAUNCH_BOUND = 0.02  # seconds


def table(plan: Plan, *, otherwise: StepWork | None = None, ways: Sequence[str] = ()) -> str:
    """All that a plan says.

    Args:
        plan: The plan.
        otherwise: What a batch would take if activations were computed twice, or if they were not.
        ways: Settings under which it would fit, where it does not.
    """
    sections = [_head(plan), _parameters(plan), _operations(plan), _memory(plan, otherwise, ways), _time(plan)]
    if plan.notes:
        sections.append("\n".join(f"note: {note}" for note in plan.notes))
    return "\n\n".join(sections)


def _head(plan: Plan) -> str:
    layout = plan.layout
    where = f"{layout.num_nodes} x {layout.gpus_per_node} {plan.gpu.name}" if layout.world_size > 1 else plan.gpu.name
    return (
        f"Plan of {plan.name} on {where}, {layout.strategy}, {plan.precision}, {plan.num_updates:,} updates of {plan.batch:,} images"
        f" ({_batches(plan)})\nBy arithmetic: nothing was read, and nothing was measured on a GPU."
    )


def _batches(plan: Plan) -> str:
    text = f"{plan.batch_per_gpu} a GPU"
    return text if plan.num_accumulated == 1 else f"{text}, accumulated over {plan.num_accumulated} batches"


def _parameters(plan: Plan) -> str:
    rows = [("Parameters", "trainable", "frozen")]
    rows += [(f"  {part.name}", f"{part.trainable:,}", f"{part.frozen:,}") for part in plan.sizes.parts]
    rows.append(("  in all", f"{plan.sizes.num_trainable:,}", f"{plan.sizes.num_frozen:,}"))
    return columns(rows, words=False)


def _operations(plan: Plan) -> str:
    size, work = plan.batch_per_gpu, plan.work
    rows: list[tuple[str, ...]] = [("Operations", "forward", "backward", "both", "")]

    def row(name: str, times: float, note: str) -> tuple[str, ...]:
        both = (work.forward_flops * times, work.backward_flops * times, work.flops * times)
        return (name, *map(_operations_text, both), note)

    rows.append(row("  of an image", 1 / size, "2 for a multiplication with its addition"))
    if plan.num_accumulated * plan.layout.world_size > 1:
        rows.append(row("  of an update, a GPU", plan.num_accumulated, ""))
    rows.append(row("  of an update, in all", plan.num_accumulated * plan.layout.world_size, ""))
    return columns(rows)


def _memory(plan: Plan, otherwise: StepWork | None, ways: Sequence[str]) -> str:
    rows = [("Memory of a GPU", "GiB", "")]
    rows += [(f"  {row.name}", _gib(row.bytes), row.note) for row in plan.rows if row.bytes > plan.memory / 1000]
    counted = plan.memory_share * plan.gpu.memory
    of = f"of {plan.gpu.memory:g}, {plan.memory_share:.0%} of which ({counted:.1f}) is counted on"
    rows.append(("  in all", _gib(plan.memory), of))
    lines = [columns(rows), f"  {_verdict(plan, ways)}"]
    if otherwise is not None:
        lines.append(f"  {_recomputing(plan, otherwise)}")
    return "\n".join(lines)


def _verdict(plan: Plan, ways: Sequence[str]) -> str:
    if plan.fits:
        return "It fits."
    start = f"It does not fit: {_gib(plan.memory)} of {plan.memory_share * plan.gpu.memory:.1f} GiB."
    if not ways:
        return f"{start} Nor does any setting that was tried: take fewer images a GPU, or a smaller model."
    return f"{start} It fits with {', or with '.join(ways)}."


def _recomputing(plan: Plan, otherwise: StepWork) -> str:
    now, then = _gib(plan.work.peak_bytes), _gib(otherwise.peak_bytes)
    if plan.recomputes:
        more = plan.work.flops / otherwise.flops - 1
        return f"Activations are computed twice, for {more:.0%} more operations; kept, they would take {then} instead of {now} GiB."
    more = otherwise.flops / plan.work.flops - 1
    return f"activation_checkpointing=true would take activations from {now} to {then} GiB, for {more:.0%} more operations."


def _time(plan: Plan) -> str:
    time, gpu = plan.time, plan.gpu
    best = gpu.operations(plan.matrix_precision)
    rate = f"operations / ({plan.utilisation:g} x {best / 1e12:g}e12 a second)"
    rows = [
        ("Time (estimates)", "", ""),
        ("  forward", seconds(time.forward), rate),
        ("  backward", seconds(time.backward), "the same"),
        ("  optimiser, averages", seconds(time.optimiser), f"what they move / {gpu.bandwidth:g}e9 bytes a second"),
    ]
    if plan.layout.world_size > 1:
        sent, fabric = time.communication, plan.fabric
        bandwidth = fabric.bandwidth(gpu, plan.layout)
        rows.append(
            ("  communication", seconds(sent.seconds), f"{sent.formula} / {bandwidth / 1e9:g}e9 bytes a second")
        )
        rows.append(("  of it not hidden", seconds(time.exposed), "what the passes it runs beside do not cover"))
    rate = f"{plan.batch / time.seconds:,.0f} images a second"
    if plan.layout.world_size > 1:
        rate += f"; {time.efficiency:.0%} of it is computing"
    rows.append(("  an update", seconds(time.seconds), rate))
    if plan.num_train_images:
        per_epoch = plan.num_train_images / plan.batch
        rows.append(("  a pass over the data", _hours(per_epoch * time.seconds), f"{plan.num_train_images:,} images"))
    run = plan.num_updates * time.seconds
    rows.append(("  the run", _hours(run), f"{run / 3600 * plan.layout.world_size:,.1f} GPU-hours"))
    text = columns(rows)
    if time.computing < _LAUNCH_BOUND:
        text += "\n  So short a step is bound by the launching of its kernels, not by operations: expect more."
    return text


def _operations_text(number: float) -> str:
    for block, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= block:
            return f"{number / block:.3g} {name}"
    return f"{number:.0f}"


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f}" if size >= _GIB else f"{size / _GIB:.2g}"


def seconds(value: float) -> str:
    """A time of a part of a step."""
    return f"{value:.3f} s" if value >= 0.1 else f"{1e3 * value:.2f} ms"


def _hours(value: float) -> str:
    if value >= 3600:
        return f"{value / 3600:,.1f} h"
    return f"{value / 60:.1f} min" if value >= 60 else f"{value:.1f} s"


def columns(rows: Sequence[Sequence[str]], *, words: bool = True) -> str:
    """Rows of cells under each other: the first to the left, numbers to the right, the last, if it is `words`, to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = (0, len(widths) - 1) if words else (0,)
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
