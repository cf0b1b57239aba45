"""`evaluate.py experiment=oracle/...`: a table, a row, and an exit status that says whether all checks hold."""

import json
import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from trilemma.cli.evaluate import evaluate
from trilemma.cli.main import explain, register_resolvers
from trilemma.cli.train import train
from trilemma.config import CONF
from trilemma.errors import UserError
from trilemma.evaluation.oracles.base import Check
from trilemma.evaluation.oracles.gaussian_metrics import GaussianMetrics

NAME = "experiment=oracle/gaussian_metrics"
SMALL = ("oracle.dim=3", "oracle.num=50", "oracle.num_sets=10")


@pytest.fixture(autouse=True)
def in_a_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    HydraConfig.instance().cfg = None


def composed(entry, *overrides):
    cfg = compose(entry, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def without_hydra(cfg):
    return type(cfg)({key: cfg._get_node(key) for key in cfg if key != "hydra"}, flags={"struct": True})


def test_a_row_is_written_and_the_table_shown(capsys):
    evaluate(without_hydra(composed("evaluate", NAME, *SMALL, "seed=2", "output_dir=here")))
    content = json.loads(Path("here/gaussian_metrics.json").read_text())
    assert content["passed"] is True
    assert content["protocol"]["oracle"]["num"] == 50
    assert content["protocol"]["seed"] == 2
    assert set(content["protocol"]["machine"]) >= {"cpu", "torch_version"}
    expected = GaussianMetrics(dim=3, num=50, num_sets=10).run(2)
    assert [check["found"] for check in content["checks"]] == [check.found for check in expected]
    assert set(content["checks"][0]) == {"name", "expected", "found", "tolerance", "passed"}
    out = capsys.readouterr().out
    assert f"{len(expected)} of {len(expected)} checks hold; row: here/gaussian_metrics.json" in out
    assert "FAILS" not in out


def test_a_check_that_fails_is_exit_status_1(monkeypatch, capsys):
    checks = [Check("sound", 1.0, 1.0, 0.0), Check("broken", 1.0, math.nan, 0.5)]
    monkeypatch.setattr(GaussianMetrics, "run", lambda self, seed: checks)
    with pytest.raises(SystemExit) as stopped:
        evaluate(without_hydra(composed("evaluate", NAME)))
    assert stopped.value.code == 1
    content = json.loads(Path("outputs/oracle/gaussian_metrics.json").read_text())
    assert content["passed"] is False
    assert content["checks"][1] == {
        "name": "broken",
        "expected": 1.0,
        "found": "nan",
        "tolerance": 0.5,
        "passed": False,
    }
    out = capsys.readouterr().out
    assert "FAILS" in out
    assert "1 of 2 checks hold" in out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([NAME, "ckpt=a.ckpt"], "measures no checkpoint"),
        ([NAME, "oracle.dim=1"], "need dim >= 2"),
        ([NAME, "++oracle.dm=4"], "did you mean oracle.dim"),
        (["+oracle=3"], "names no oracle"),
        (["++oracle._target_=torch.nn.Identity"], "names no oracle"),
        ([], "one of ckpt=PATH"),
    ],
)
def test_what_cannot_be_meant_is_one_line(overrides, words):
    with pytest.raises(UserError, match=words):
        evaluate(without_hydra(composed("evaluate", *overrides)))


def test_an_oracle_is_not_trained():
    with pytest.raises(UserError, match=r"run python evaluate\.py experiment=oracle"):
        train(without_hydra(composed("train", NAME)))


def test_an_experiment_that_is_trained_is_not_evaluated():
    with pytest.raises(Exception, match="Could not override") as refused:
        composed("evaluate", "experiment=mnist/vqvae")
    assert "python train.py experiment=mnist/vqvae" in explain(refused.value)
