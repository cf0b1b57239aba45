"""Two processes write the row of one."""

import json

import pytest

from two import run_two

pytest.importorskip("mlxtend")


def without_speed(row):
    """The row without what is measured anew each time: the times, and the machine that they hold for."""
    work = row["ledger"]["work"]
    protocol = {key: value for key, value in row["protocol"].items() if key != "machine"}
    return {**row, "protocol": protocol, "ledger": {"work": work}}


def numbers_of(node, name=""):
    """Everything in nested containers, by its place."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from numbers_of(value, f"{name}/{key}")
    else:
        yield name, node


def test_two_processes_write_the_row_of_one(command, prior, cache, tmp_path):
    arguments = [
        f"ckpt={prior}",
        "num_images=45",
        "batch_size=8",
        "sampler.num_steps=2",
        "likelihood.num_images=10",
        "ledger.batch_sizes=[1]",
        "ledger.max_seconds=0.1",
        "keep_samples=true",
    ]
    rows = {}
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "cache").mkdir(parents=True)
        (cache / "features").mkdir(exist_ok=True)
        (folder / "cache/features").symlink_to(cache / "features")  # of real images; all else is made by each
        where = [f"output_dir={folder}", f"cache_dir={folder}/cache"]
        if name == "one":
            assert command("evaluate", *arguments, "num_threads=1", *where).status == 0
        else:
            done = run_two("evaluate", *arguments, *where)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("row: ") == 1
        [path] = folder.glob("*.json")
        rows[name] = json.loads(path.read_text())
    assert rows["two"]["ledger"]["num_processes"] == 1  # the other waits while one draw is timed
    one, two = (dict(numbers_of(without_speed(rows[name]))) for name in ("one", "two"))
    # Images, features and counts are those of one process; a library's last digit of a decomposition hangs on where memory lies.
    assert rows["two"]["samples_sha256"] == rows["one"]["samples_sha256"]
    assert one.keys() == two.keys()
    for name, value in one.items():
        expected = pytest.approx(value, rel=1e-9, nan_ok=True) if isinstance(value, float) else value
        assert two[name] == expected, name
    files = [sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*")) for name in rows]
    assert files[0] == files[1]
