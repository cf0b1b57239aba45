"""A run that was stopped and resumed equals the one that was left alone."""

import contextlib
import os
import signal

import lightning as L
import pytest
import torch

from tiny_run import Tiny, assert_equal, fit
from trilemma.callbacks.checkpoint import step_checkpoints
from trilemma.checkpoints.read import newest_valid, read_checkpoint
from trilemma.distributed import signals
from trilemma.errors import Stopped
from trilemma.quiet import quieten

TRAINED = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "trilemma")


class At(L.Callback):
    """Does something at a batch."""

    def __init__(self, batch_idx, act, hook):
        self.batch_idx, self.act = batch_idx, act
        setattr(self, hook, self._maybe)

    def _maybe(self, trainer, module, *args):
        if trainer.fit_loop.total_batch_idx + 1 == self.batch_idx:
            self.act()


def crash():
    raise RuntimeError("crash")


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def preempt():
    os.kill(os.getpid(), signal.SIGUSR1)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def signals_heard():
    """As an entry point does."""
    signals.listen()
    try:
        with signals.waiting(*signals.PREEMPTION):
            yield
    finally:
        signals.stop_listening()


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    quieten()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    quieten()
    fit(folder)
    return folder


def final(folder):
    checkpoint = read_checkpoint(folder / "checkpoints" / "step-00000020.ckpt")
    return {name: checkpoint[name] for name in TRAINED}


def assert_same_run(folder, alone, *, metrics=True):
    assert_equal(final(folder), final(alone))
    if metrics:
        assert (folder / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()


def test_randomness_matters(alone, tmp_path):
    """The test below could not fail if nothing random were drawn."""
    fit(tmp_path, extra=[At(3, lambda: torch.rand(1), "on_train_batch_start")])
    assert not torch.equal(final(tmp_path)["state_dict"]["net.0.weight"], final(alone)["state_dict"]["net.0.weight"])


@pytest.mark.parametrize("batch", [3, 5, 7, 10, 12, 19, 20])
def test_crash_then_resume(alone, tmp_path, batch):
    """A crash in any batch, in validation's place or not; checkpoints every 5, where validation is, and elsewhere."""
    every = 5 if batch in (10, 12) else 2
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, every=every, extra=[At(batch, crash, "on_train_batch_start")])
    newest = newest_valid(tmp_path / "checkpoints")
    assert newest.name == f"step-{(batch - 1) // every * every:08d}.ckpt"
    fit(tmp_path, every=every, resume=newest)
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_end"])
def test_crash_in_validation(alone, tmp_path, hook):
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path, every=5, extra=[At(10, crash, hook)])
    newest = newest_valid(tmp_path / "checkpoints")
    assert newest.name == "step-00000005.ckpt"
    fit(tmp_path, every=5, resume=newest)
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize(
    ("hook", "batch", "signal_it", "status"),
    [
        ("on_train_batch_start", 8, press_ctrl_c, 130),
        ("on_train_batch_end", 8, terminate, 75),
        ("on_train_batch_start", 10, preempt, 75),
        ("on_train_batch_end", 10, press_ctrl_c, 130),
        ("on_validation_start", 10, preempt, 75),
        ("on_validation_batch_start", 15, press_ctrl_c, 130),
        ("on_validation_batch_end", 15, terminate, 75),
    ],
)
def test_stop_then_resume(alone, tmp_path, signal_it, status, hook, batch):
    """The batch ends and is written down, whenever the signal comes; a validation that it cuts short is done anew."""
    handlers = {number: signal.getsignal(number) for number in signals.ALL}
    with pytest.raises(Stopped) as stop:
        fit(tmp_path, every=100, extra=[At(batch, signal_it, hook)])
    assert stop.value.status == status
    assert {number: signal.getsignal(number) for number in signals.ALL} == handlers
    newest = newest_valid(tmp_path / "checkpoints")
    assert newest.name == f"step-{batch:08d}.ckpt"
    assert read_checkpoint(newest)["callbacks"]["Checkpoints"]["validation_due"] == (batch % 5 == 0)
    fit(tmp_path, resume=newest)
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_start", "on_validation_end"])
def test_a_signal_at_the_very_end_comes_too_late(alone, tmp_path, hook):
    fit(tmp_path, every=100, extra=[At(20, terminate, hook)])
    assert_same_run(tmp_path, alone)


def test_stopped_again_in_the_validation_that_was_put_off(alone, tmp_path):
    newest = None
    for _ in range(3):
        with pytest.raises(Stopped):
            fit(tmp_path, every=100, resume=newest, extra=[At(10, terminate, "on_validation_batch_start")])
        newest = newest_valid(tmp_path / "checkpoints")
        assert newest.name == "step-00000010.ckpt"
    fit(tmp_path, resume=newest)
    assert_same_run(tmp_path, alone)


def test_stopped_again_and_again_in_training(alone, tmp_path):
    newest = None
    for batch in (1, 2, 4, 5, 6, 9, 10, 11, 19):
        with pytest.raises(Stopped):
            fit(tmp_path, every=100, resume=newest, extra=[At(batch, preempt, "on_train_batch_end")])
        newest = newest_valid(tmp_path / "checkpoints")
        assert newest.name == f"step-{batch:08d}.ckpt"
    fit(tmp_path, resume=newest)
    assert_same_run(tmp_path, alone)


def test_asked_to_stop_before_the_first_batch(alone, tmp_path):
    with signals_heard():
        preempt()
        with pytest.raises(Stopped):
            fit(tmp_path)
    assert step_checkpoints(tmp_path / "checkpoints") == []
    fit(tmp_path)
    assert_same_run(tmp_path, alone)


def test_second_ctrl_c_does_not_wait(tmp_path):
    def twice():
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(SystemExit):
        fit(tmp_path, every=100, extra=[At(8, twice, "on_train_batch_start")])
    assert step_checkpoints(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("first", [7, 10])
def test_extended_run(alone, tmp_path, first):
    """A finished run goes on where it ended when it is given more steps."""
    fit(tmp_path, max_steps=first)
    fit(tmp_path, resume=newest_valid(tmp_path / "checkpoints"))
    assert_same_run(tmp_path, alone, metrics=False)


def test_accumulated_gradients(tmp_path):
    for name in ("alone", "stopped"):
        (tmp_path / name).mkdir()
    fit(tmp_path / "alone", accumulate=2)
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path / "stopped", every=4, accumulate=2, extra=[At(11, crash, "on_train_batch_start")])
    fit(tmp_path / "stopped", every=4, accumulate=2, resume=newest_valid(tmp_path / "stopped" / "checkpoints"))
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")


@pytest.mark.parametrize("batch", [11, 12, 15])
def test_stop_waits_for_the_gradients_that_are_being_accumulated(tmp_path, batch):
    for name in ("alone", "stopped"):
        (tmp_path / name).mkdir()
    fit(tmp_path / "alone", accumulate=2)
    with pytest.raises(Stopped):
        fit(tmp_path / "stopped", every=3, accumulate=2, extra=[At(batch, terminate, "on_train_batch_start")])
    names = [path.name for path in step_checkpoints(tmp_path / "stopped" / "checkpoints")]
    assert names[-3:] == [f"step-{n:08d}.ckpt" for n in (10, 6, 4)]  # those of batches 9, 6 and 3
    assert names[0] == f"step-{batch + batch % 2:08d}.ckpt"
    fit(tmp_path / "stopped", accumulate=2, resume=newest_valid(tmp_path / "stopped" / "checkpoints"))
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")


def test_resume_refuses_other_averages(alone, tmp_path):
    from trilemma.errors import UserError

    class Wider(Tiny):
        def __init__(self):
            super().__init__()
            self.extra = torch.nn.Linear(1, 1)
            self.strict_loading = False

    with pytest.raises(UserError, match="averages other weights"):
        fit(tmp_path, resume=newest_valid(alone / "checkpoints"), model=Wider())
