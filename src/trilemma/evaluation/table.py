"""Rows as tables for people, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from trilemma.evaluation.cost.contention import BUSY

Content = Mapping[str, Any]  # of a row
_SHARE = "class_share/"
_SIGN = {"exact": "=", "bound": "<=", "estimate": "~"}


def row_table(row: Content) -> Table:
    """Tabulate the metrics beside the held-out and training-set baselines and, in two stages, those of a perfect prior."""
    protocol = row["protocol"]
    note = " (smoke: too few images to compare models by)" if protocol["tier"] == "smoke" else ""
    shown = Table(title=f"{protocol['model']} on {protocol['data']}, {protocol['num_images']} images{note}")
    oracle = row.get("two_stage", {}).get("oracle")
    columns = {"model": row["metrics"], "perfect\nprior": oracle, "held-out\nimages": row["floor"]}
    columns["training\nimages"] = row.get("copycat")
    present = {title: scores for title, scores in columns.items() if scores}
    shown.add_column("", no_wrap=True)
    for title in present:
        shown.add_column(title, justify="right")
    for name in row["metrics"]:
        if not name.startswith(_SHARE) and not is_error(name):
            cells = (_display(name, scores, error=title == "model") for title, scores in present.items())
            shown.add_row(name.replace("[", r"\["), *cells)
    if _range(row["metrics"]):
        shown.add_row("class shares, min to max", *(_range(scores) for scores in present.values()))
    for lines in (_stages(row), _likelihood(row), _cost(row)):
        shown.add_section()
        for name, value in lines:
            shown.add_row(name.replace("[", r"\["), value)
    return shown


def print_row(row: Content, console: Console | None = None) -> None:
    """Print `row_table`."""
    (console or Console()).print(row_table(row))


def print_sweep(rows: Sequence[Content], console: Console | None = None) -> None:
    """One line a row: its settings, quality, coverage and cost; columns that no row fills are left out."""
    first = rows[0]["protocol"]
    note = " (smoke)" if first["tier"] == "smoke" else ""
    models = ", ".join(dict.fromkeys(row["protocol"]["model"] for row in rows))
    shown = Table(title=f"{models} on {first['data']}, {first['num_images']} images a row{note}")
    ordered = sorted(
        rows, key=lambda row: (_model(row), _setting(row, "guidance", "scale"), _setting(row, "sampler", "num_steps"))
    )
    checkpoints = {row["protocol"]["checkpoint"] for row in rows}
    columns = {
        "model": [_model(row) if len(checkpoints) > 1 else "" for row in ordered],
        "steps": [_text(row["protocol"]["sampler"].get("num_steps")) for row in ordered],
        "scale": [_text(row["protocol"]["guidance"].get("scale")) for row in ordered],
        "other": [_other(row) for row in ordered],
        "FD": [_display(f"FD[{first['extractor']}]", row["metrics"]) for row in ordered],
        "precision": [_display("precision", row["metrics"], error=False) for row in ordered],
        "coverage": [_display("coverage", row["metrics"], error=False) for row in ordered],
        "label acc.": [_display("label_accuracy", row["metrics"]) for row in ordered],
        "calls": [_calls(row) for row in ordered],
        "images/s": [_rate(row) for row in ordered],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    for name in filled:
        shown.add_column(name, justify="right")
    for cells in zip(*filled.values(), strict=True):
        shown.add_row(*cells)
    (console or Console()).print(shown)


def _setting(row: Content, part: str, name: str) -> float:
    value = row["protocol"][part].get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _model(row: Content) -> str:
    experiment = row["protocol"]["model"].partition(" (")[0]
    return f"{experiment} {row['protocol']['run']}"


def _other(row: Content) -> str:
    protocol = row["protocol"]
    parts = [f"{k} {v}" for k in ("temperature", "truncation") if (v := protocol["sampler"].get(k, 1.0)) != 1.0]
    return ", ".join([*parts, *([f"seed {protocol['seed']}"] if protocol["seed"] else [])])


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def is_error(name: str) -> bool:
    """Whether a metric is the standard error of another: shown behind it."""
    return name.partition("[")[0].endswith("_stderr")


def error_of(name: str) -> str:
    """Name of a metric's standard error."""
    head, bracket, rest = name.partition("[")
    return f"{head}_stderr{bracket}{rest}"


def _display(name: str, scores: Content, *, error: bool = True) -> str:
    if name not in scores:
        return ""
    value = float(scores[name])
    if name in ("num_images", "modes_hit"):
        return f"{value:.0f}"
    if "FD[" in name:  # rounding leaves the distance of equal sets a little below zero
        value = max(value, 0.0)
    uncertain = scores.get(error_of(name)) if error else None
    return f"{value:.4g}" + ("" if uncertain is None else f" ±{float(uncertain):.2g}")


def _range(scores: Content) -> str:
    shares = [float(value) for name, value in scores.items() if name.startswith(_SHARE)]
    return f"{min(shares):.3f} to {max(shares):.3f}" if shares else ""


def _stages(row: Content) -> list[tuple[str, str]]:
    stages = row.get("two_stage")
    if stages is None:
        return []
    codec = stages["codec"]
    lines = [(f"codec: {name}", _display(name, codec)) for name in codec if name != "num_images"]
    bits = [(name, stages[f"{name}_bits_per_image"]) for name in ("code", "prior")]
    return lines + [(f"bits per image, {name}", f"{value:.4g}") for name, value in bits if value is not None]


def _likelihood(row: Content) -> list[tuple[str, str]]:
    score = row.get("likelihood")
    if score is None:
        return []
    bits = f"{_SIGN[score['kind']]} {float(score['bits_per_dim']):.4g} ±{float(score['bits_standard_error']):.2g}"
    return [(f"bits per {score['unit']} ({score['kind']})", bits)]


def _cost(row: Content) -> list[tuple[str, str]]:
    ledger = row.get("ledger")
    if ledger is None:
        return []
    work, latency = ledger["work"], ledger["latency"]
    calls = [
        (f"calls of {part['name']} per image", f"{part['evaluations_per_image']:g}") for part in work["subnetworks"]
    ]
    peaks = [
        (f"peak memory ({peak['measure']}), batch {peak['batch_size']}", f"{peak['peak_bytes'] / 2**20:.0f} MiB")
        for peak in ledger["memory"]
    ]
    return [
        *calls,
        ("GFLOP per image", f"{work['flops_per_image'] / 1e9:.3g}"),
        ("parameters at sampling", f"{work['num_parameters'] / 1e6:.3g} M"),
        ("latency, p50", f"{latency['p50_seconds']:.3g} s"),
        ("latency, p95", f"{latency['p95_seconds']:.3g} s"),
        ("images per second", _rate(row)),
        *_load(ledger),
        *peaks,
    ]


def _load(ledger: Content) -> list[tuple[str, str]]:
    waited = ledger.get("waited")
    if waited is None or waited <= BUSY:
        return []
    return [
        (
            "times are too long",
            f"other programs held the cores {waited:.0%} of the time: measure again when it is quiet",
        )
    ]


def _calls(row: Content) -> str:
    """Evaluations of the network that is called most."""
    if "ledger" not in row:
        return ""
    return f"{max(part['evaluations_per_image'] for part in row['ledger']['work']['subnetworks']):g}"


def _rate(row: Content) -> str:
    if "ledger" not in row:
        return ""
    rate = row["ledger"]["throughput"]
    return f"{rate['images_per_second']:.3g}, batch {rate['batch_size']}"
