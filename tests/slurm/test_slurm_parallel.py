"""One process or two nodes: the same weights, the same images, the same numbers."""

import json
import sys

import numpy as np
import pytest
import torch

from training import SPY, TWO_NODES, state_of

ONE = ("--nodes=1", "--ntasks-per-node=1")


def weights(run_dir):
    """All weights of a run's network in one vector."""
    state = state_of(run_dir)["state_dict"]
    return torch.cat([tensor.flatten() for name, tensor in sorted(state.items()) if name.startswith("network.")])


@pytest.fixture(scope="module")
def two(module_runs):
    """A run over two nodes, and what each of its processes says of itself."""
    python = f"env PYTHONPATH={SPY.parent}:{SPY.parents[1]} {sys.executable} {SPY}"
    job = module_runs.prior("two", 30, TRILEMMA_PYTHON=python, SPY=str(module_runs.folder))
    module_runs.cluster.finish(job)
    return module_runs.run_dir("two"), job


@pytest.fixture(scope="module")
def checkpoint(two):
    return two[0] / "checkpoints/last.ckpt"


def test_two_nodes_are_one_training(two, module_runs):
    run_dir, job = two
    first, second = (json.loads((module_runs.folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["world_size"] == second["world_size"] == 2
    assert (first["node"], second["node"]) == ("node1", "node2")
    assert first["digest"] == second["digest"]
    assert json.loads((run_dir / "run.json").read_text())["status"] == "finished"
    assert "2 x 1 processes" in module_runs.cluster.log(job)


def test_two_nodes_learn_what_one_process_learns_from_the_whole_batch(two, module_runs):
    """Sums of floats come in another order, which thirty steps of an optimiser that divides by small numbers make larger."""
    module_runs.cluster.finish(module_runs.prior("one", 30, options=ONE))
    module_runs.cluster.finish(module_runs.prior("begin", 1, options=ONE))
    both, one, begin = (weights(module_runs.run_dir(name)) for name in ("two", "one", "begin"))
    print(f"apart {(both - one).norm():.2e} after having moved by {(one - begin).norm():.2e}")
    assert (both - one).norm() < 1e-2 * (one - begin).norm()


@pytest.mark.slow
def test_sharded_training_samples_on_one_process(runs, cluster):
    job = runs.prior("sharded", 30, "trainer=fsdp")
    cluster.finish(job)
    last = runs.run_dir("sharded") / "checkpoints/last.ckpt"
    sampled = runs.sbatch(
        *ONE, "slurm/sample.sbatch", f"ckpt={last}", "num_images=4", f"output_dir={runs.folder}/drawn"
    )
    cluster.finish(sampled)
    assert np.load(runs.folder / "drawn/samples.npz")["arr_0"].shape == (4, 28, 28, 1)


@pytest.mark.slow
def test_samples_do_not_depend_on_the_number_of_processes(runs, cluster, checkpoint):
    images = []
    for name, options in (("one", ONE), ("two", TWO_NODES)):
        folder = runs.folder / name
        what = (f"ckpt={checkpoint}", "num_images=20", "batch_size=4", f"output_dir={folder}", "sampler.num_steps=5")
        cluster.finish(runs.sbatch(*options, "slurm/sample.sbatch", *what))
        images.append(np.load(folder / "samples.npz"))
    one, two = images
    assert len(one["arr_0"]) == 20
    assert np.array_equal(one["arr_0"], two["arr_0"])
    assert np.array_equal(one["arr_1"], two["arr_1"])


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_number_of_processes(runs, cluster, checkpoint):
    rows = []
    for name, options in (("one", ONE), ("two", TWO_NODES)):
        folder = runs.folder / name
        what = (
            "num_images=40",
            "batch_size=8",
            "ledger.max_seconds=0",
            "likelihood.num_images=40",
            "sampler.num_steps=5",
        )
        cluster.finish(
            runs.sbatch(*options, "slurm/evaluate.sbatch", f"ckpt={checkpoint}", f"output_dir={folder}", *what)
        )
        (path,) = folder.rglob("*.json")
        rows.append(json.loads(path.read_text()))
    one, two = rows
    assert one["samples_sha256"] == two["samples_sha256"]
    for part in ("metrics", "floor", "copycat", "likelihood", "two_stage"):
        assert one[part] == two[part], part
