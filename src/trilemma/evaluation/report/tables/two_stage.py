"""Where the error of a model in two stages comes from: its codec, or the prior over the codec's tokens."""

from __future__ import annotations

from collections.abc import Sequence

from trilemma.evaluation.report import show
from trilemma.evaluation.report.row import Entry, Row
from trilemma.evaluation.report.tables.columns import Column
from trilemma.evaluation.report.tables.group import Group, groups_of
from trilemma.evaluation.report.tables.quantities import Number, at, metric


def of_codec(name: str) -> Number:
    """How well reconstructions keep the test images; older rows state it among their metrics."""

    def number(row: Row) -> float | None:
        value = row.number("two_stage", "codec", name)
        return row.number("metrics", f"reconstruction/{name}") if value is None else value

    return number


def of_oracle(name: str) -> Number:
    """What the decoded tokens of test images score as if they were samples: a perfect prior would score no better."""
    return at("two_stage", "oracle", name)


def stages_of(entries: Sequence[Entry], columns: Sequence[Column]) -> list[tuple[Group, float | None]]:
    """Each model that has a codec, with the least Frechet distance of its settings."""
    found = []
    for entry in entries:
        # All rows of a checkpoint state the same of its codec: one of them is enough.
        rows = {
            row.protocol.get("checkpoint"): row
            for row in entry.rows
            if any(column.number(row) is not None for column in columns)
        }
        if rows:
            scores = [s.mean for group in groups_of(entry) if (s := group.spread(metric("{FD}"))) is not None]
            found.append((Group(entry.name, tuple(rows.values())), min(scores, default=None)))
    return found


def stage_columns(extractor: object) -> list[Column]:
    """What is shown of codec, oracle and prior."""
    return [
        Column(title="PSNR", unit="codec, dB ↑", number=of_codec("psnr")),
        Column(title="SSIM", unit="codec, reflected border ↑", number=of_codec("ssim"), shown=show.share),
        Column(title="rFD", unit=f"codec, [{extractor}] ↓", number=of_codec("{rFD}"), shown=show.distance),
        Column(title="Perplexity", unit="of the codebook ↑", number=of_codec("codebook_perplexity")),
        Column(title="Used", unit="share of codes ↑", number=of_codec("codebook_usage"), shown=show.share),
        Column(title="Oracle FD", unit="perfect prior ↓", number=of_oracle("{FD}"), shown=show.distance),
        Column(title="Oracle precision", unit="↑", number=of_oracle("precision"), shown=show.share),
        Column(title="Oracle recall", unit="↑", number=of_oracle("recall"), shown=show.share),
        Column(title="Oracle coverage", unit="↑", number=of_oracle("coverage"), shown=show.share),
        Column(title="Code", unit="bits per image", number=at("two_stage", "code_bits_per_image"), shown=show.short),
        Column(
            title="Prior", unit="bits per image ↓", number=at("two_stage", "prior_bits_per_image"), shown=show.short
        ),
    ]
