"""A DDPM that draws its times by their losses, stopped and resumed, is the one that was left alone, its history included."""

import lightning as L
import pytest
from test_ddpm import SIDE, T, batch_of, model_of

from tiny_run import Stream, adamw, assert_equal, seed_all, trainer_of
from trilemma.callbacks.checkpoint import Checkpoints
from trilemma.callbacks.ema import EMA
from trilemma.callbacks.random_state import RandomState
from trilemma.checkpoints.read import read_checkpoint
from trilemma.quiet import quieten
from trilemma.training.timesteps import ImportanceTimesteps


class OneBatch:
    """What is validated on."""

    def __len__(self):
        return 1

    def __iter__(self):
        return iter([batch_of()])


class Crash(L.Callback):
    """Ends the run at a batch."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, module, *args):
        if self.batch is not None and trainer.fit_loop.total_batch_idx + 1 == self.batch:
            raise RuntimeError("crash")


def run(folder, *, crash=None, resume=None):
    seed_all()
    times = ImportanceTimesteps(T, min_count=0)
    model = model_of(objective="bound", variance="learned", times=times, optimizer=adamw)
    callbacks = [EMA([0.9]), Crash(crash), RandomState(), Checkpoints(10, keep_last=9)]
    trainer = trainer_of(folder, callbacks, max_steps=40, val_check_interval=20)
    trainer.fit(model, Stream(40, (6, 1, SIDE, SIDE)), OneBatch(), ckpt_path=resume, weights_only=True)
    return times


def test_a_resumed_run_has_the_weights_and_the_history_of_one_left_alone(tmp_path):
    quieten()
    run(tmp_path / "alone")
    with pytest.raises(RuntimeError, match="crash"):
        run(tmp_path / "stopped", crash=27)
    times = run(tmp_path / "stopped", resume=tmp_path / "stopped/checkpoints/step-00000020.ckpt")
    assert (times.counts >= 1).all(), "the run must be long enough for the history to decide"
    assert float(times.probabilities().max()) > 1.5 / T
    a, b = (read_checkpoint(tmp_path / name / "checkpoints/step-00000040.ckpt") for name in ("alone", "stopped"))
    for key in ("state_dict", "optimizer_states", "callbacks", "global_step"):
        assert_equal(a[key], b[key], key)
