import logging
import warnings

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from tiny_run import fit
from trilemma.quiet import quieten


@pytest.fixture(autouse=True)
def _lightning_logs(monkeypatch):
    for name in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


def test_a_run_says_nothing(tmp_path, caplog, recwarn, capsys):
    caplog.set_level(logging.INFO)
    quieten()
    fit(tmp_path, max_steps=7)
    fit(tmp_path, resume=tmp_path / "checkpoints" / "step-00000007.ckpt")
    assert [record.getMessage() for record in caplog.records] == []
    assert [str(warning.message) for warning in recwarn] == []
    assert capsys.readouterr().out == ""


def test_what_is_not_listed_is_heard(caplog):
    caplog.set_level(logging.INFO)
    quieten()
    rank_zero_info("something new")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quieten()
        rank_zero_warn("something is wrong")
        rank_zero_warn("The 'train_dataloader' does not have many workers which may be a bottleneck.")
    assert "something new" in caplog.text
    assert [str(warning.message) for warning in heard] == ["something is wrong"]
