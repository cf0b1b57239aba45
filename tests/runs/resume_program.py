"""What `test_resume_distributed.py` starts in two processes: the same small run, left alone and stopped in many ways."""

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch

from tiny_run import assert_equal, fit
from trilemma.callbacks.checkpoint import step_checkpoints
from trilemma.checkpoints import write as checkpoint_io
from trilemma.checkpoints.read import read_checkpoint
from trilemma.distributed import signals
from trilemma.distributed.job import leave_group
from trilemma.errors import Stopped, UserError
from trilemma.quiet import quieten

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])
TWO = {"strategy": "ddp", "devices": 2}
EVERYTHING = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "trilemma")


class SignalAt(L.Callback):
    """SIGTERM to one process alone."""

    def __init__(self, rank, hook, batch):
        self.rank, self.batch = rank, batch
        setattr(self, hook, self._maybe)

    def _maybe(self, trainer, module, *args):
        if trainer.global_rank == self.rank and trainer.fit_loop.total_batch_idx + 1 == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


def final(folder):
    checkpoint = read_checkpoint(folder / "checkpoints" / "step-00000020.ckpt")
    return {name: checkpoint[name] for name in EVERYTHING}


def stopped_and_resumed(name, alone, *, rank, hook, batch, stops_at, accumulate=1):
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    status = None
    try:
        fit(folder, every=100, accumulate=accumulate, extra=[SignalAt(rank, hook, batch)], **TWO)
    except Stopped as stop:
        status = stop.status
    assert status == 75, status
    [newest] = step_checkpoints(folder / "checkpoints")
    assert newest.name == f"step-{stops_at:08d}.ckpt", newest
    states = read_checkpoint(newest)["callbacks"]["RandomState"]["ranks"]
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    torch.distributed.barrier()
    fit(folder, every=100, accumulate=accumulate, resume=newest, **TWO)
    assert_equal(final(folder), final(alone), name)
    assert (folder / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()


@contextmanager
def full_disk():
    def refuse(path):
        raise UserError(f"cannot write {path}: No space left on device")

    before = checkpoint_io.atomic_write
    checkpoint_io.atomic_write = refuse
    yield
    checkpoint_io.atomic_write = before


quieten()
for accumulate in (1, 2):
    (FOLDER / f"alone-{accumulate}").mkdir(exist_ok=True)
    fit(FOLDER / f"alone-{accumulate}", every=100, accumulate=accumulate, **TWO)
alone = FOLDER / "alone-1"
# What a process says at the end of a batch is heard at the end of the next.
stopped_and_resumed("batch", alone, rank=1, hook="on_train_batch_start", batch=7, stops_at=8)
stopped_and_resumed("first", alone, rank=0, hook="on_train_batch_start", batch=7, stops_at=8)
stopped_and_resumed("before validation", alone, rank=1, hook="on_train_batch_end", batch=9, stops_at=10)
stopped_and_resumed("in validation", alone, rank=1, hook="on_validation_batch_start", batch=10, stops_at=10)
stopped_and_resumed(
    "accumulating", FOLDER / "alone-2", rank=1, hook="on_train_batch_start", batch=12, stops_at=14, accumulate=2
)

signals.listen()  # as an entry point does
with signals.waiting(*signals.ALL):
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGUSR2)
    try:
        fit(FOLDER / "before", **TWO)
        before = "trained"
    except Stopped as stop:
        before = stop.status
signals.stop_listening()

try:
    with full_disk():
        fit(FOLDER / "full", **TWO)
    full = "trained"
except UserError as error:
    full = str(error)
except SystemExit as stop:
    full = stop.code
(FOLDER / f"{RANK}.json").write_text(json.dumps({"before": before, "full": full}))
leave_group()  # as an entry point does
