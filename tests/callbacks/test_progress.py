import sys

import lightning as L
import pytest
import torch

from tiny_run import Evaluation, Stream, Tiny, TwoOptimizers, fit, trainer_of
from trilemma.callbacks import progress
from trilemma.callbacks.counting import num_batches, planned_batches
from trilemma.callbacks.learning_rate import LearningRate
from trilemma.callbacks.progress import BatchProgress
from trilemma.loggers.csv_file import CSVLogger
from trilemma.quiet import quieten


@pytest.fixture(autouse=True)
def _quiet(recwarn, monkeypatch):
    quieten()
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)


def run(folder, bar, module, num=4, **options):
    trainer = trainer_of(
        folder, [bar], enable_progress_bar=True, enable_checkpointing=False, val_check_interval=2, **options
    )
    trainer.fit(module, Stream(num), Evaluation())
    return trainer


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    run(tmp_path, BatchProgress(), Tiny(), max_steps=4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1/4", "2/4", "3/4", "4/4", "4/4"]
    assert " train/loss " in lines[-1]
    assert lines[-1].endswith("it/s")


def test_bar_in_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    run(tmp_path, BatchProgress(), Tiny(), max_steps=4)
    shown = capsys.readouterr().out.split("\r")
    assert [words for words in ("1/4", "2/4", "3/4", "4/4") if any(words in part for part in shown)] == [
        "1/4", "2/4", "3/4", "4/4",
    ]  # fmt: skip
    assert "4/4" in shown[-1]
    assert "train/loss=" in shown[-1]
    assert any(part.startswith("Validation") for part in shown)


@pytest.mark.parametrize("terminal", [True, False])
def test_other_processes_are_silent(tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(L.Trainer, "is_global_zero", False)
    run(tmp_path, BatchProgress(), Tiny(), max_steps=4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_resumed_run_goes_on_counting(tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    fit(tmp_path, max_steps=3, every=3)
    capsys.readouterr()
    trainer = trainer_of(tmp_path, [BatchProgress()], enable_progress_bar=True, enable_checkpointing=False, max_steps=5)
    trainer.fit(Tiny(), Stream(5), ckpt_path=next((tmp_path / "checkpoints").glob("step-*3.ckpt")))
    shown = capsys.readouterr().out
    assert "4/5" in shown
    assert "5/5" in shown
    assert "2/5" not in shown


def test_counts_batches_with_two_optimizers(tmp_path, capsys):
    trainer = run(tmp_path, BatchProgress(), TwoOptimizers())
    assert (num_batches(trainer), planned_batches(trainer), trainer.global_step) == (4, 4, 8)
    assert capsys.readouterr().out.splitlines()[-1].startswith("4/4")


def test_counts_batches_with_accumulated_gradients(tmp_path):
    trainer = run(tmp_path, BatchProgress(), Tiny(), max_steps=2, accumulate_grad_batches=2)
    assert (num_batches(trainer), planned_batches(trainer), trainer.global_step) == (4, 4, 2)


def test_learning_rate_stands_in_the_row_of_the_loss(tmp_path):
    options = {"enable_checkpointing": False, "logger": CSVLogger(tmp_path)}
    trainer = trainer_of(tmp_path, [LearningRate()], max_steps=3, **options)
    trainer.fit(Tiny(), Stream(3))
    header, *rows = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    rates = [float(row[header.index("train/lr")]) for row in rows]
    assert rates == pytest.approx([0.005, 0.01, 0.015])
    assert all(row[header.index("train/loss")] for row in rows)


def test_learning_rates_of_several_optimizers(tmp_path):
    trainer = trainer_of(tmp_path, [LearningRate()], enable_checkpointing=False, logger=CSVLogger(tmp_path))
    trainer.fit(TwoOptimizers(), Stream(2))
    assert {"train/lr_0", "train/lr_1"} <= set((tmp_path / "metrics.csv").read_text().splitlines()[0].split(","))


def test_groups_that_share_a_rate_are_one_metric(tmp_path):
    def two_groups(named):
        parameters = [p for _, p in named]
        return torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=0.05)

    options = {"enable_checkpointing": False, "logger": CSVLogger(tmp_path)}
    trainer = trainer_of(tmp_path, [LearningRate()], max_steps=3, **options)
    trainer.fit(Tiny(optimizer=two_groups), Stream(3), Evaluation())
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "train/lr" in header
    assert "train/lr_0" not in header
