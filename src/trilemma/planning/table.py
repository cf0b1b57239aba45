"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from trilemma.errors import UserError
from trilemma.planning.cluster import Strategy
from trilemma.planning.plan import ENOUGH, MOST_NODES, Fixed, Plan, falls_at, make_plan, time_on, ways_to_fit
from trilemma.quiet import quieten

_LAUNCH_BOUND = 0.02  # seconds
_SENT = {"ddp": "2 (N-1)/N x gradients", "fsdp": "(N-1)/N x (weights gathered twice, gradients shared out)"}


def show_plan(cfg: DictConfig) -> None:
    """Print what the run that `cfg` describes will take: what `debug=plan` does.

    Raises:
        UserError: If the configuration is wrong, or names something that a plan does not know.
    """
    quieten()
    plan = make_plan(cfg)
    print(plan_text(plan))
    if cfg.plan.nodes is not None:
        print(f"\n{scaling_text(plan, list(cfg.plan.nodes))}")


def plan_text(plan: Plan) -> str:
    """All that a plan says of the run as it is."""
    sections = [_head(plan), _parameters(plan), _operations(plan), _memory(plan), _time(plan)]
    if plan.model.notes:
        sections.append("\n".join(f"note: {note}" for note in plan.model.notes))
    return "\n\n".join(sections)


def scaling_text(plan: Plan, nodes: Sequence[int]) -> str:
    """Step time and efficiency by strategy and number of nodes, once with the batch of a GPU fixed and once that of all.

    Raises:
        UserError: If a number of nodes is not one.
    """
    if not nodes or any(not isinstance(n, int) or n < 1 for n in nodes):
        raise UserError(f"plan.nodes={list(nodes)}: a list of numbers of nodes, each at least 1")
    strategies: tuple[Strategy, ...] = ("ddp", "fsdp") if plan.model.family.shardable else ("ddp",)
    fixed: tuple[Fixed, ...] = ("gpu", "all")
    return "\n\n".join(_scaling(plan, nodes, strategy, which) for which in fixed for strategy in strategies)


def _head(plan: Plan) -> str:
    setup = plan.setup
    where = f"{setup.num_nodes} x {setup.gpus_per_node} {setup.gpu.name}" if setup.world_size > 1 else setup.gpu.name
    batches = f", accumulated over {setup.num_accumulated} batches" if setup.num_accumulated > 1 else ""
    return (
        f"Plan of {plan.name} on {where}, {setup.strategy}, {setup.precision}, {plan.num_updates:,} updates of {setup.batch:,} images"
        f" ({setup.batch_per_gpu} a GPU{batches})\nBy arithmetic: nothing was read, and nothing was measured on a GPU."
    )


def _parameters(plan: Plan) -> str:
    counts = plan.sizes.parts | {"in all": (plan.sizes.num_trainable, plan.sizes.num_frozen)}
    rows = [(f"  {name}", f"{trainable:,}", f"{frozen:,}") for name, (trainable, frozen) in counts.items()]
    return columns([("Parameters", "trainable", "frozen"), *rows], words=False)


def _operations(plan: Plan) -> str:
    setup, work = plan.setup, plan.work
    rows = [
        ("  of an image", 1 / setup.batch_per_gpu, "2 for a multiplication with its addition"),
        ("  of an update, a GPU", setup.num_accumulated, ""),
        ("  of an update, in all", setup.num_accumulated * setup.world_size, ""),
    ]
    if rows[2][1] == 1:
        del rows[1]
    passes = (work.forward_flops, work.backward_flops, work.flops)
    cells = [(name, *(_scaled(times * flops) for flops in passes), note) for name, times, note in rows]
    return columns([("Operations", "forward", "backward", "both", ""), *cells])


def _memory(plan: Plan) -> str:
    setup, work, otherwise = plan.setup, plan.work, plan.otherwise
    counted = setup.assumed.memory_share * setup.gpu.memory
    rows = [(f"  {name}", _gib(size), note) for name, size, note in plan.rows if size > plan.memory / 1000]
    of = f"of {setup.gpu.memory:g}, {setup.assumed.memory_share:.0%} of which ({counted:.1f}) is counted on"
    lines = [columns([("Memory of a GPU", "GiB", ""), *rows, ("  in all", _gib(plan.memory), of)])]
    if plan.fits:
        lines.append("It fits.")
    else:
        ways = ways_to_fit(plan)
        nor = "Nor does any setting that was tried: take fewer images a GPU, or a smaller model."
        last = f"It fits with {', or with '.join(ways)}." if ways else nor
        lines.append(f"It does not fit: {_gib(plan.memory)} of {counted:.1f} GiB. {last}")
    if otherwise is not None:
        now, then = _gib(work.peak_bytes), _gib(otherwise.peak_bytes)
        more = f"for {max(work.flops, otherwise.flops) / min(work.flops, otherwise.flops) - 1:.0%} more operations"
        lines.append(
            f"Activations are computed twice, {more}; kept, they would take {then} instead of {now} GiB."
            if setup.recomputes
            else f"activation_checkpointing=true would take activations from {now} to {then} GiB, {more}."
        )
    return "\n  ".join(lines)


def _time(plan: Plan) -> str:
    time, setup, images = plan.time, plan.setup, plan.model.num_train_images
    run = plan.num_updates * time.seconds
    rows = [
        ("Time (estimates)", "", ""),
        (
            "  forward",
            seconds(time.forward),
            f"operations / ({setup.assumed.utilisation:g} x {setup.rate / 1e12:g}e12 a second)",
        ),
        ("  backward", seconds(time.backward), "the same"),
        (
            "  optimiser, averages",
            seconds(time.optimiser),
            f"what they move / {setup.gpu.bandwidth:g}e9 bytes a second",
        ),
    ]
    rate = f"{setup.batch / time.seconds:,.0f} images a second"
    if setup.world_size > 1:
        formula = f"{_SENT[setup.strategy]} / {setup.bandwidth / 1e9:g}e9 bytes a second"
        rows.append(("  communication", seconds(time.sending), formula))
        rows.append(("  of it not hidden", seconds(time.exposed), "what the passes it runs beside do not cover"))
        rate += f"; {time.efficiency:.0%} of it is computing"
    rows.append(("  an update", seconds(time.seconds), rate))
    if images:
        rows.append(("  a pass over the data", _hours(images / setup.batch * time.seconds), f"{images:,} images"))
    rows.append(("  the run", _hours(run), f"{run / 3600 * setup.world_size:,.1f} GPU-hours"))
    text = columns(rows)
    if time.computing < _LAUNCH_BOUND:
        text += "\n  So short a step is bound by the launching of its kernels, not by operations: expect more."
    return text


def _scaling(plan: Plan, nodes: Sequence[int], strategy: Strategy, fixed: Fixed) -> str:
    setup = plan.setup
    rows: list[tuple[str, ...]] = [
        ("nodes", "GPUs", "a GPU", "computing", "sending", "step", "efficiency", "without overlap")
    ]
    for n in nodes:
        time, apart = (time_on(plan, strategy, n, fixed, overlap=overlap) for overlap in (True, False))
        batch = setup.batch_per_gpu * (setup.num_nodes / n if fixed == "all" else 1)
        shown = map(seconds, (time.computing, time.sending, time.seconds))
        shares = (f"{time.efficiency:.1%}", f"{apart.efficiency:.1%}")
        rows.append((f"{n}", f"{n * setup.gpus_per_node}", f"{batch:g}", *shown, *shares))
    falls = []
    for overlap, name in ((True, ""), (False, " without overlap")):
        first = falls_at(plan, strategy, fixed, overlap=overlap)
        falls.append((f"at {first} nodes" if first else f"not up to {MOST_NODES:,} nodes") + name)
    size = f"{setup.batch_per_gpu} images a GPU" if fixed == "gpu" else f"{setup.batch:,} images in all"
    return (
        f"Scaling with {size}, {strategy} (nodes of {setup.gpus_per_node} {setup.gpu.name})\n{columns(rows, words=False)}\n"
        f"Efficiency falls under {ENOUGH:.0%} {', '.join(falls)}."
    )


def _scaled(number: float) -> str:
    units = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6}
    return next((f"{number / size:.3g} {name}" for name, size in units.items() if number >= size), f"{number:.0f}")


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}" if size >= 2**30 else f"{size / 2**30:.2g}"


def seconds(value: float) -> str:
    """A time of a part of a step."""
    return f"{value:.3f} s" if value >= 0.1 else f"{1e3 * value:.2f} ms"


def _hours(value: float) -> str:
    if value >= 3600:
        return f"{value / 3600:,.1f} h"
    return f"{value / 60:.1f} min" if value >= 60 else f"{value:.1f} s"


def columns(rows: Sequence[Sequence[str]], *, words: bool = True) -> str:
    """Rows of cells under each other: the first to the left, numbers to the right, the last, if it is `words`, to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<", *">" * (len(widths) - 2), "<" if words else ">"]
    cells = ([f"{c:{side}{w}}" for c, side, w in zip(row, sides, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in cells)
