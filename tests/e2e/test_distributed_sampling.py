"""Two processes draw the images of one, bit for bit, and say what one says."""

import numpy as np
import pytest

from two import run_two

pytest.importorskip("mlxtend")


def test_two_processes_draw_the_images_of_one(command, prior, tmp_path):
    # 37 images in batches of 8: of five batches the last is short, and the first process has one more than the other.
    arguments = [f"ckpt={prior}", "num_images=37", "batch_size=8", "sampler.num_steps=3", "guidance.scale=2"]
    one, two = (tmp_path / name for name in ("one", "two"))
    assert command("sample", *arguments, "num_threads=1", f"output_dir={one}").status == 0
    done = run_two("sample", *arguments, f"output_dir={two}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("37 images") == len(done.stdout.strip().splitlines()) == 1
    with np.load(one / "samples.npz") as left, np.load(two / "samples.npz") as right:
        assert left.files == right.files
        for key in left.files:
            np.testing.assert_array_equal(left[key], right[key])
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, two)]
    assert names[0] == names[1]
    assert (two / "grid.png").read_bytes() == (one / "grid.png").read_bytes()


def test_an_error_is_said_once_and_ends_both(prior, tmp_path):
    done = run_two("sample", f"ckpt={prior}", "condition.label=99", f"output_dir={tmp_path}")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "exitcode  : 2" in done.stderr
    assert not list(tmp_path.iterdir())
