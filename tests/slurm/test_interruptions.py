"""Twenty interruptions, each of which loses nothing."""

import os
from pathlib import Path

import pytest
from interruptions import KINDS, Interruptions, table, write_table


@pytest.mark.slow
def test_twenty_interruptions(runs):
    interruptions = Interruptions(runs, number=int(os.environ.get("INTERRUPTIONS", "20")))
    try:
        done = interruptions.run()
    finally:
        print("\n" + table(interruptions.done))
    if place := os.environ.get("TABLE"):
        write_table(table(done), Path(place))
    assert len(done) == interruptions.number
    assert all(step > 0 for _, step in interruptions.unasked)
    assert all(one.state == "COMPLETED" for one in done)
    assert all(one.resumed > 0 for one in done)
    assert all(one.equal for one in done)
    assert len(done) < len(KINDS) or {one.kind.split(":")[0] == "array element" for one in done} == {True, False}
