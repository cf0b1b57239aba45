"""Where the error of a model in two stages comes from: its codec, or the prior over the codec's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from trilemma.evaluation.report import show
from trilemma.evaluation.report.row import Entry, Row
from trilemma.evaluation.report.tables.columns import MISSING, Column, distance
from trilemma.evaluation.report.tables.group import Group, Number, groups_of
from trilemma.evaluation.report.tables.quantities import metric
from trilemma.figures.html import Html, breakable, element


def of_codec(name: str) -> Number:
    """How well reconstructions keep the test images; older rows state it among their metrics."""

    def number(row: Row) -> float | None:
        value = row.number("two_stage", "codec", name)
        if value is None:
            value = row.number("metrics", f"reconstruction/{name}")
        return value

    return number


def of_oracle(name: str) -> Number:
    """What the decoded tokens of test images score as if they were samples: a perfect prior would score no better."""
    return lambda row: row.number("two_stage", "oracle", name)


def two_stage_table(entries: Sequence[Entry]) -> Html | None:
    """A line for each model that has a codec; None where none has."""
    lines = []
    shown = _columns(entries[0].rows[0])
    for entry in entries:
        # All rows of a checkpoint state the same of its codec: one of them is enough.
        rows = {
            row.protocol.get("checkpoint"): row
            for row in entry.rows
            if any(column.number(row) is not None for column in shown)
        }
        if not rows:
            continue
        group = Group(entry.name, tuple(rows.values()))
        cells = [element("td", column.cell(group)) for column in shown]
        lines.append(
            element("tr", element("th", breakable(entry.name), scope="row"), *cells, element("td", _best(entry)))
        )
    if not lines:
        return None
    heads = [element("th", "Model", scope="col", class_="name")]
    heads += [element("th", c.title, element("span", c.unit, class_="small"), scope="col") for c in shown]
    heads.append(element("th", "Samples’ FD", element("span", "best setting ↓", class_="small"), scope="col"))
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *lines))
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Errors of the two stages")


def _best(entry: Entry) -> Html:
    found = [spread.mean for group in groups_of(entry) if (spread := group.spread(metric("{FD}"))) is not None]
    return show.datum(min(found), distance) if found else MISSING


def _columns(row: Row) -> list[Column]:
    extractor = f"[{row.protocol.get('extractor')}]"
    return [
        Column(title="PSNR", unit="codec, dB ↑", number=of_codec("psnr"), shown=show.plain),
        Column(title="SSIM", unit="codec ↑", number=of_codec("ssim"), shown=show.share),
        Column(title="rFD", unit=f"codec, {extractor} ↓", number=of_codec("{rFD}"), shown=distance),
        Column(title="Perplexity", unit="of the codebook ↑", number=of_codec("codebook_perplexity"), shown=show.plain),
        Column(title="Used", unit="share of codes ↑", number=of_codec("codebook_usage"), shown=show.share),
        Column(title="Oracle FD", unit="perfect prior ↓", number=of_oracle("{FD}"), shown=distance),
        Column(title="Oracle precision", unit="↑", number=of_oracle("precision"), shown=show.share),
        Column(title="Oracle recall", unit="↑", number=of_oracle("recall"), shown=show.share),
        Column(title="Oracle coverage", unit="↑", number=of_oracle("coverage"), shown=show.share),
        Column(
            title="Code",
            unit="bits per image",
            number=lambda row: row.number("two_stage", "code_bits_per_image"),
            shown=show.short,
        ),
        Column(
            title="Prior",
            unit="bits per image ↓",
            number=lambda row: row.number("two_stage", "prior_bits_per_image"),
            shown=show.short,
        ),
    ]
