"""Trainings over two nodes of a real SLURM."""

import json
import sys

from training import SPY


def test_two_nodes_are_one_training(runs, cluster, tmp_path):
    python = f"env PYTHONPATH={SPY.parent}:{SPY.parents[1]} {sys.executable} {SPY}"
    job = runs.prior("two", 30, TRILEMMA_PYTHON=python, SPY=str(tmp_path))
    cluster.finish(job)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["world_size"] == second["world_size"] == 2
    assert (first["node"], second["node"]) == ("node1", "node2")
    assert first["digest"] == second["digest"]
    assert runs.record("two")["status"] == "finished"
    assert "2 x 1 processes" in cluster.log(job)
