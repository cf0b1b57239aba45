"""Rows as tables for people, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from trilemma.evaluation.cost.contention import BUSY
from trilemma.evaluation.protocol import NO_EXTRACTOR

Content = Mapping[str, Any]  # of a row
_SHARE = "class_share/"
_NAMES = {  # of a metric for people, with the direction of better
    "FD": "Fréchet distance ↓",
    "FD_inf": "Fréchet distance, N → ∞ ↓",
    "rFD": "Fréchet distance (rFD) ↓",
    "KID": "kernel distance ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density ↑",
    "coverage": "coverage ↑",
    "precision_ratio": "precision / held-out's ↑",
    "coverage_ratio": "coverage / held-out's ↑",
    "authenticity": "authenticity (low: copies)",
    "ct": "C_T (below 0: copies)",
    "ct_judged": "share judged by C_T",
    "modes_hit": "classes found ↑",
    "class_kl": "class shares, KL ↓",
    "class_tv": "class shares, TV ↓",
    "uniform_kl": "KL to equal class shares",
    "label_accuracy": "label accuracy ↑",
    "psnr": "PSNR ↑",
    "psnr_pooled": "PSNR of the pooled error ↑",
    "ssim": "SSIM ↑",
    "codebook_perplexity": "codebook perplexity ↑",
    "codebook_usage": "codebook used ↑",
    "codebook_well_used": "codebook well used ↑",
    "codebook_dead": "dead codes ↓",
}
_SIGN = {"exact": "=", "bound": "<=", "estimate": "~"}


def row_table(row: Content) -> Table:
    """Tabulate the metrics beside the held-out and training-set baselines and, in two stages, those of a perfect prior."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    oracle = row.get("two_stage", {}).get("oracle")
    columns = {"model": row["metrics"], "perfect\nprior": oracle, "held-out\nimages": row["floor"]}
    columns["training\nimages"] = row.get("copycat")
    present = {title: scores for title, scores in columns.items() if scores}
    shown.add_column("", no_wrap=True)
    for title in present:
        shown.add_column(title, justify="right", no_wrap=True)
    for name in row["metrics"]:
        if name != "num_images" and not name.startswith(_SHARE) and not is_error(name):
            cells = (_display(name, scores, error=title == "model") for title, scores in present.items())
            shown.add_row(_plain(name), *cells)
    if _range(row["metrics"]):
        shown.add_row("class shares, min to max", *(_range(scores) for scores in present.values()))
    return shown


def cost_table(row: Content) -> Table:
    """Tabulate what the codec loses, the likelihood and what sampling takes."""
    shown = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    shown.add_column("", overflow="fold")
    for lines in (_stages(row), _likelihood(row), _cost(row)):
        for name, value in lines:
            shown.add_row(name, value)
        if lines:
            shown.add_row("", "")
    return shown


def print_row(row: Content, console: Console | None = None) -> None:
    """Print a line that says what was measured, the three corners of the trilemma, and both tables."""
    console = console or Console()
    protocol = row["protocol"]
    note = " (smoke: too few images to compare models by)" if protocol["tier"] == "smoke" else ""
    console.print(
        f"\n{protocol['model']} on {protocol['data']}, {protocol['num_images']} images{_judge(protocol)}{note}",
        highlight=False,
    )
    for corner, name, rest in _headline(row):
        console.print(f"  {corner:<9} {name} {rest}", style="bold", highlight=False)
    if row["floor"] or len(row["metrics"]) > 1:
        console.print(row_table(row))
    console.print(cost_table(row))


def _judge(protocol: Content) -> str:
    name = protocol.get("extractor", NO_EXTRACTOR)
    return "" if name == NO_EXTRACTOR else f", features of {name}"


def _headline(row: Content) -> Iterator[tuple[str, str, str]]:
    """Quality, coverage and speed, of what was measured: plain name with the direction of better, and value."""
    for corner, name in (("quality", "FD"), ("quality", "rFD"), ("coverage", "coverage")):
        key = next((key for key in row["metrics"] if key.partition("[")[0] == name), None)
        if key is not None:
            real = f", held-out images {_display(key, row['floor'], error=False)}" if key in row["floor"] else ""
            yield corner, f"{_plain(key)}:", _display(key, row["metrics"]) + real
    if "ledger" in row:
        calls = f", {_calls(row)} calls an image"
        yield "speed", "images per second ↑:", _rate(row) + calls


def print_sweep(rows: Sequence[Content], console: Console | None = None) -> None:
    """One line a row, under its model: settings, quality, coverage and cost; columns that no row fills are left out."""
    console = console or Console()
    first = rows[0]["protocol"]
    note = " (smoke: too few images to compare models by)" if first["tier"] == "smoke" else ""
    console.print(f"\n{first['data']}, {first['num_images']} images a row{_judge(first)}{note}", highlight=False)
    ordered = sorted(
        rows, key=lambda row: (_model(row), _setting(row, "guidance", "scale"), _setting(row, "sampler", "num_steps"))
    )
    columns = {
        "steps": [_text(row["protocol"]["sampler"].get("num_steps")) for row in ordered],
        "scale": [_text(row["protocol"]["guidance"].get("scale")) for row in ordered],
        "other": [_other(row) for row in ordered],
        "FD ↓": [_display(f"FD[{first.get('extractor')}]", row["metrics"]) for row in ordered],
        "prec.\n↑": [_display("precision", row["metrics"], error=False) for row in ordered],
        "cover.\n↑": [_display("coverage", row["metrics"], error=False) for row in ordered],
        "label\nacc. ↑": [_display("label_accuracy", row["metrics"], error=False) for row in ordered],
        "calls ↓": [_calls(row) for row in ordered],
        "images\n/s ↑": [_rate(row, batch=False) for row in ordered],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    names = [_model(row) for row in ordered]
    for name, members in groupby(range(len(ordered)), key=names.__getitem__):
        console.print(f"\n{name}", style="bold", highlight=False)
        shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for title, cells in filled.items():
            shown.add_column(
                title, justify="right", no_wrap=True, min_width=max(map(len, [*cells, *title.split("\n")]))
            )
        for i in members:
            shown.add_row(*(cells[i] for cells in filled.values()))
        console.print(shown)
    console.print()


def _setting(row: Content, part: str, name: str) -> float:
    value = row["protocol"][part].get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _model(row: Content) -> str:
    experiment = row["protocol"]["model"].partition(" (")[0]
    return f"{experiment} {row['protocol']['run']}"


def _other(row: Content) -> str:
    protocol = row["protocol"]
    parts = [
        f"{short} {v}"
        for k, short in (("temperature", "temp."), ("truncation", "trunc."))
        if (v := protocol["sampler"].get(k, 1.0)) != 1.0
    ]
    if protocol["condition"] == "none" and protocol["guidance"].get("scale") is not None:
        parts.append("unconditional")
    return ", ".join([*parts, *([f"seed {protocol['seed']}"] if protocol["seed"] else [])])


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _plain(name: str) -> str:
    """A metric's name for people; its extractor is named above the table."""
    return _NAMES.get(name.partition("[")[0], name.replace("[", r"\["))


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
    digits = 4 if error else 3
    return f"{value:.{digits}g}" + ("" if uncertain is None else f" ±{float(uncertain):.2g}")


def _range(scores: Content) -> str:
    shares = [float(value) for name, value in scores.items() if name.startswith(_SHARE)]
    return f"{min(shares):.2f}–{max(shares):.2f}" if shares else ""


def _stages(row: Content) -> list[tuple[str, str]]:
    stages = row.get("two_stage")
    if stages is None:
        return []
    codec = stages["codec"]
    lines = [(f"codec: {_plain(name)}", _display(name, codec)) for name in codec if name != "num_images"]
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


def _rate(row: Content, *, batch: bool = True) -> str:
    if "ledger" not in row:
        return ""
    rate = row["ledger"]["throughput"]
    return f"{rate['images_per_second']:.3g}" + (f", batch {rate['batch_size']}" if batch else "")
