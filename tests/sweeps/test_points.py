"""Names of points, what becomes of them, and which sweeps are refused."""

import itertools
import math

import pytest

from trilemma.errors import Stopped, TrainingError, UserError
from trilemma.sweeps.points import PointResult, conclude, point_id, tasks_per_node

POINT = ["optimizer.lr=0.00123456789", "seed=1", "experiment=demo/vqvae", "debug=fast"]


def test_a_point_has_one_name_whatever_does_not_change_it():
    name = point_id(POINT)
    assert name.startswith("sweep-lr0.001235-seed1-debug-fast-")
    elsewhere = ["paths.output_dir=/a", "logger=wandb", "num_threads=1", "run.resume=never", "optimized_metric=val/x"]
    assert point_id([*POINT, *elsewhere]) == name
    assert (
        point_id(POINT[::-1]).rpartition("-")[2] == name.rpartition("-")[2]
    )  # the words follow the order, the hash does not
    assert point_id([*POINT, "run.id=first"]) == name.replace("sweep", "first", 1)


def test_points_that_differ_have_names_that_differ():
    values = itertools.product(["1e-3", "1e-4"], [1, 2], ["cosine", "linear"], ["'a b'", "[1,2]"])
    names = {
        point_id([f"optimizer.lr={rate}", f"seed={seed}", f"process/schedule={schedule}", f"x.tag={tag}"])
        for rate, seed, schedule, tag in values
    }
    assert len(names) == 16
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.+") for name in names)
    assert max(map(len, names)) < 80


def test_hydra_sees_a_point_that_failed_as_no_number():
    assert float(PointResult("a", value=2.5)) == 2.5
    assert math.isnan(float(PointResult("a", 1, "broken")))
    assert math.isnan(float(PointResult("a")))


@pytest.mark.parametrize(
    ("statuses", "error", "words"),
    [
        ([0, 1, 0], TrainingError, "1 of 3 points failed: b. The others are finished"),
        ([0, 2, 1], TrainingError, "2 of 3 points failed: b, c"),
        ([2, 2, 2], UserError, "every point of the sweep was refused: no"),
    ],
)
def test_the_end_of_a_sweep(statuses, error, words):
    with pytest.raises(error, match=words):
        conclude([PointResult(name, status, "no") for name, status in zip("abc", statuses, strict=True)])
    conclude([PointResult("a"), PointResult("b")])


@pytest.mark.parametrize(("devices", "num"), [(4, 4), ("2", 2), ("auto", 1), (-1, 1)])
def test_tasks_of_a_node(devices, num):
    assert tasks_per_node(devices) == num


def test_every_combination_is_run_and_runs_again_under_the_same_names(sweep):
    arguments = ["optimizer.lr=1e-3,1e-2", "seed=1,2"]
    done = sweep(*arguments)
    assert done.status == 0, done.err
    assert [rate for rate, _ in sweep.runs] == [1e-3, 1e-3, 1e-2, 1e-2]
    names = [name for _, name in sweep.runs]
    assert len(set(names)) == 4
    assert names[0].startswith("sweep-lr0.001-seed1-")
    assert [line.split()[1] for line in done.out.splitlines()] == names  # a value and a name for each
    sweep(*arguments)
    assert [name for _, name in sweep.runs] == 2 * names


def broken(rate, cfg):
    if rate == 1:
        raise TrainingError("diverged")
    if rate == 2:
        raise ZeroDivisionError("a bug")
    if rate == 3:
        raise UserError("not so")
    return rate


def test_points_that_fail_leave_the_others_alone(sweep):
    done = sweep("optimizer.lr=1,2,3,4", train=broken)
    assert done.status == 1
    assert [rate for rate, _ in sweep.runs] == [1, 2, 3, 4]
    names = [name for _, name in sweep.runs]
    assert done.out.split() == ["4", names[3]]
    lines = done.err.splitlines()
    for name, words in zip(names, ("diverged", "ZeroDivisionError: a bug", "not so"), strict=False):
        assert f"error: {name}: {words}" in lines
    assert lines[-1] == (
        f"error: 3 of 4 points failed: {', '.join(names[:3])}. The others are finished; the same command tries those again"
    )
    assert "Error executing job" not in done.err  # what Hydra says of an exception


def test_a_stop_ends_the_sweep(sweep):
    def stopped(rate, cfg):
        raise Stopped(75, "stopped")

    done = sweep("optimizer.lr=1,2", train=stopped)
    assert done.status == 75
    assert len(sweep.runs) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer=ddp", "trainer.devices=2"], ["hydra/launcher=submitit_slurm", "slurm/sweep.sbatch"]),
        (["hydra/launcher=joblib", "trainer=ddp", "trainer.devices=1,2"], ["hydra/launcher=submitit_slurm"]),
        (["optimizer.lrr=1"], ["optimizer.lrr", "did you mean optimizer.lr?"]),
        (["hydra/launcher=joblb"], ["did you mean joblib?"]),
        (["hydra/sweeper=optuna"], ["nothing is varied"]),
    ],
    ids=lambda value: "_".join(value) if value[0].startswith(("trainer", "hydra/l", "hydra/s", "opt")) else "",
)
def test_what_cannot_be_swept_is_refused_in_a_line(sweep, arguments, words):
    varied = [] if "optuna" in arguments[0] else ["seed=1,2"]
    done = sweep(*arguments, *varied)
    assert done.status == 2
    assert len(done.err.strip().splitlines()) == 1
    for word in words:
        assert word in done.err
    assert not sweep.runs


def test_one_of_several_processes_does_not_sweep(sweep, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    done = sweep("seed=1,2")
    assert done.status == 2
    assert "torchrun has started 2 processes" in done.err
