from trilemma.evaluation.report.entries import entries_of
from trilemma.evaluation.report.row import Row


def of(name, model, run, checkpoint):
    return Row(name, {"protocol": {"model": f"{model} (Family)", "run": run, "checkpoint": checkpoint}})


def test_a_checkpoint_is_an_entry_with_a_name_of_its_own():
    rows = [
        of("a", "mnist/x", "first", "aa" * 32),
        of("b", "mnist/y", "first", "bb" * 32),
        of("c", "mnist/x", "second", "cc" * 32),
        of("d", "mnist/x", "first", "aa" * 32),
        of("e", "mnist/x", "second", "dd" * 32),
    ]
    found = {entry.name: [row.name for row in entry.rows] for entry in entries_of(rows)}
    assert found == {
        "mnist/x, run first": ["a", "d"],
        "mnist/y": ["b"],
        "mnist/x, run second, checkpoint cccccccc": ["c"],
        "mnist/x, run second, checkpoint dddddddd": ["e"],
    }
