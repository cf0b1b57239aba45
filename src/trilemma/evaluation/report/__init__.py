"""Rows of results as people read them: the frontier of one checkpoint, the report of several."""

from trilemma.evaluation.report.comparable import check_comparable, comparable_among
from trilemma.evaluation.report.entries import entries_of
from trilemma.evaluation.report.frontier import write_frontier
from trilemma.evaluation.report.page import write_report
from trilemma.evaluation.report.row import Entry, Row, read_row

__all__ = [
    "Entry",
    "Row",
    "check_comparable",
    "comparable_among",
    "entries_of",
    "read_row",
    "write_frontier",
    "write_report",
]
