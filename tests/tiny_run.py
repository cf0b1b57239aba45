"""A training run of milliseconds that uses every source of randomness and state there is."""

import random

import lightning as L
import numpy as np
import torch
from torch import nn

from trilemma.callbacks.checkpoint import Checkpoints
from trilemma.callbacks.ema import EMA
from trilemma.callbacks.learning_rate import LearningRate
from trilemma.callbacks.random_state import RandomState
from trilemma.checkpoints.write import AtomicCheckpointIO
from trilemma.loggers.csv_file import CSVLogger
from trilemma.models.base import Family, Loss


class Stream:
    """Random batches without end but with a length, that can be taken up where they were left."""

    def __init__(self, num_batches, shape=(4, 3)):
        self.num_batches = num_batches
        self.shape = shape
        self.position = 0
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        while self.position < self.num_batches:
            self.position += 1
            yield {"image": torch.randn(self.shape, generator=self.generator) + 0.1 * torch.randn(self.shape)}

    def state_dict(self):
        return {"position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.position = state["position"]
        self.generator.set_state(state["generator"])


class Evaluation:
    """Two fixed batches."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter([{"image": torch.ones(2, 3)}, {"image": -torch.ones(2, 3)}])


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.05)


def warmup(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 10))


class Tiny(Family):
    def __init__(self, **options):
        super().__init__(**{"optimizer": adamw, "scheduler": warmup, **options})
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.3), nn.Linear(5, 3))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("count", torch.zeros(()))
        self.config = {"model": {"width": 5}}

    def loss(self, batch):
        self.count += 1
        target = torch.randn(3) + np.random.rand() + random.random()  # noqa: NPY002
        return Loss((self.net(batch["image"]) - target.float()).square().mean())

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch["image"]).square().mean())


class TwoOptimizers(Family):
    """Manual optimisation: two optimiser steps a batch."""

    optimises_by_hand = True

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(3, 1), nn.Linear(3, 1)

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.a, self.b)]

    def loss(self, batch):
        return Loss(sum(part(batch["image"]).square().mean() for part in (self.a, self.b)))

    def training_step(self, batch, batch_idx):
        for part, optimizer in zip((self.a, self.b), self.optimizers(), strict=True):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(part(batch["image"]).square().mean())
            optimizer.step()
            self.untoggle_optimizer(optimizer)


def trainer_of(folder, callbacks, *, max_steps=-1, logger=None, **options):
    return L.Trainer(
        **{
            "default_root_dir": folder,
            "max_steps": max_steps,
            "max_epochs": -1 if max_steps > 0 else 1,
            "accelerator": "cpu",
            "callbacks": callbacks,
            "logger": logger or False,
            "plugins": [AtomicCheckpointIO()],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            **options,
        }
    )


def seed_all():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def fit(folder, *, max_steps=20, every=7, keep_last=9, resume=None, extra=(), model=None, accumulate=1, **options):
    """Train `max_steps` batches with everything on; returns the trainer."""
    seed_all()
    callbacks = [
        EMA([0.9, 0.5]),
        RandomState(),
        LearningRate(),
        Checkpoints(every, keep_last=keep_last, monitor="val/loss"),
        *extra,
    ]
    trainer = trainer_of(
        folder,
        callbacks,
        max_steps=max_steps // accumulate,
        logger=CSVLogger(folder),
        val_check_interval=5,
        accumulate_grad_batches=accumulate,
        **options,
    )
    trainer.fit(model or Tiny(), Stream(max_steps), Evaluation(), ckpt_path=resume, weights_only=True)
    return trainer


def assert_equal(a, b, path=""):
    """Nested containers of tensors are equal bit for bit."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, path
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    else:
        assert a == b, path
