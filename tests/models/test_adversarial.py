"""Two networks that take turns: counts, clipping, accumulation, averages, resuming, several processes."""

import os
import socket

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.functional import softplus

from tiny_run import Evaluation, Stream, assert_equal, seed_all, trainer_of
from trilemma.callbacks.checkpoint import Checkpoints
from trilemma.callbacks.counting import num_batches, planned_batches
from trilemma.callbacks.ema import EMA
from trilemma.callbacks.learning_rate import LearningRate
from trilemma.callbacks.monitors.discriminator import DiscriminatorGap
from trilemma.callbacks.monitors.non_finite import NonFinite
from trilemma.callbacks.random_state import RandomState
from trilemma.checkpoints.read import newest_valid, read_checkpoint
from trilemma.errors import UserError
from trilemma.loggers.csv_file import CSVLogger
from trilemma.models.adversarial import Adversarial
from trilemma.models.base import Loss
from trilemma.quiet import quieten

TRAINED = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "adversarial")


def sgd(named):
    return torch.optim.SGD([p for _, p in named], lr=0.1)


def adam(named):
    return torch.optim.Adam([p for _, p in named], lr=0.01, betas=(0.5, 0.9))


def decay(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (n + 1))


class Toy(Adversarial):
    """A noisy pair of small networks; every third update the discriminator's loss has a penalty."""

    def __init__(self, *, noise=True, discriminator_from=0, **options):
        super().__init__(**{"optimizer": adam, "discriminator_optimizer": sgd, "scheduler": decay, **options})
        torch.manual_seed(3)
        dropout = nn.Dropout(0.3 if noise else 0.0)
        self.generator = nn.Sequential(nn.Linear(3, 5), dropout, nn.Linear(5, 3))
        self.discriminator = nn.Sequential(nn.Linear(3, 4), dropout, nn.Tanh(), nn.Linear(4, 1))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.noise = noise
        self.discriminator_from = discriminator_from
        self.seen = []

    def _fake(self, batch):
        latent = torch.randn_like(batch["image"]) if self.noise else batch["image"].flip(1)
        return self.generator(latent)

    def discriminator_loss(self, batch):
        if self.num_updates < self.discriminator_from:
            return None
        assert not any(p.requires_grad for p in self.generator.parameters())
        assert all(p.requires_grad for p in self.discriminator.parameters())
        real, fake = (self.discriminator(x)[:, 0] for x in (batch["image"], self._fake(batch)))
        total, terms = softplus(-real).mean() + softplus(fake).mean(), {}
        if self.num_updates % 3 == 0:
            terms["penalty"] = self.discriminator[0].weight.square().sum()
            total = total + terms["penalty"]
        return Loss(total, terms, {"real_score": real.detach(), "fake_score": fake.detach()})

    def generator_loss(self, batch):
        assert all(p.requires_grad for p in self.generator.parameters())
        assert not any(p.requires_grad for p in self.discriminator.parameters())
        return Loss(softplus(-self.discriminator(self._fake(batch))).mean())

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.discriminator(batch["image"]).mean())


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    quieten()


def fit(folder, *, batches=20, every=4, resume=None, extra=(), accumulate=1, model=None, **options):
    seed_all()
    ema = EMA([0.9])
    callbacks = [ema, NonFinite(every_n_batches=2), DiscriminatorGap(), RandomState(), LearningRate()]
    trainer = trainer_of(
        folder,
        [*callbacks, Checkpoints(every, keep_last=9, monitor="val/loss"), *extra],
        max_steps=batches // accumulate,
        logger=CSVLogger(folder),
        val_check_interval=5,
        **options,
    )
    model = model or Toy(accumulate_grad_batches=accumulate)
    trainer.fit(model, Stream(batches), Evaluation(), ckpt_path=resume, weights_only=True)
    return trainer


class Watch(L.Callback):
    """Something noted after each batch."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.append(self.look(trainer, pl_module))


class CrashAt(L.Callback):
    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, *args):
        if num_batches(trainer) == self.batch:
            raise RuntimeError("crash")


# --- counting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_a_run_has_max_steps_updates_of_both_networks(tmp_path, accumulate):
    trainer = fit(tmp_path, accumulate=accumulate)
    module = trainer.lightning_module
    assert num_batches(trainer) == planned_batches(trainer) == module.num_batches == 20
    assert trainer.global_step == trainer.max_steps == module.num_updates == 20 // accumulate
    generator = trainer.optimizers[0].state[module.generator[0].weight]
    assert generator["step"] == 20 // accumulate
    assert [s.scheduler.last_epoch for s in trainer.lr_scheduler_configs] == [20 // accumulate] * 2


def test_the_average_moves_every_batch_and_holds_the_generator_alone(tmp_path):
    watch = Watch(lambda trainer, module: trainer.callbacks[0].average()["generator.0.bias"].clone())
    trainer = fit(tmp_path, extra=[watch])
    ema = trainer.callbacks[0]
    assert ema.num_updates == 20
    assert all(not torch.equal(a, b) for a, b in zip(watch.seen, watch.seen[1:], strict=False))
    assert {name.split(".")[0] for name in ema.average()} == {"generator"}


class TwoJudges(Toy):
    """A discriminator's side of two modules, of which one has another name."""

    discriminator_modules = ("discriminator", "judge")

    def __init__(self, **options):
        super().__init__(**options)
        self.judge = nn.Linear(3, 1)

    def discriminator_loss(self, batch):
        assert all(p.requires_grad for p in self.judge.parameters())
        loss = super().discriminator_loss(batch)
        return Loss(loss.total + softplus(self.judge(self._fake(batch).detach())).mean(), loss.terms, loss.diagnostics)

    def generator_loss(self, batch):
        assert not any(p.requires_grad for p in self.judge.parameters())
        return Loss(super().generator_loss(batch).total + softplus(-self.judge(self._fake(batch))).mean())


def test_a_discriminator_of_several_modules_is_trained_apart_and_not_averaged(tmp_path):
    model = TwoJudges()
    before = [p.detach().clone() for p in (model.judge.weight, model.generator[0].weight)]
    trainer = fit(tmp_path, model=model)
    generator, discriminator = trainer.optimizers
    sides = [{id(p) for group in o.param_groups for p in group["params"]} for o in (generator, discriminator)]
    assert sides[0] == {id(p) for p in model.generator.parameters()}
    assert sides[1] == {id(p) for part in (model.discriminator, model.judge) for p in part.parameters()}
    assert {name.split(".")[0] for name in trainer.callbacks[0].average()} == {"generator"}
    assert not any(
        torch.equal(a, b) for a, b in zip(before, (model.judge.weight, model.generator[0].weight), strict=True)
    )


def test_a_module_that_is_not_there_is_no_discriminator():
    class Misspelt(Toy):
        discriminator_modules = ("discriminatr",)

    with pytest.raises(AttributeError, match="discriminatr"):
        Misspelt().configure_optimizers()


def test_the_passes_of_a_plan_are_those_of_an_update():
    """In the first update the discriminator's loss has its penalty, in the second not; the count is left alone."""
    model, batch = Toy(noise=False, accumulate_grad_batches=2), {"image": torch.ones(2, 3)}
    model.num_batches = 7
    sides = [{id(p) for p in part.parameters()} for part in (model.discriminator, model.generator)]
    found = []
    for passes in model.backward_passes():
        assert [{id(p) for p in one.parameters} for one in passes] == sides
        model.generator.requires_grad_(False)
        found.append("penalty" in passes[0].loss(batch).terms)
        model.generator.requires_grad_(True)
    assert found == [True, False]
    assert model.num_batches == 7


def test_a_network_that_pauses_leaves_the_length_alone(tmp_path):
    model = Toy(discriminator_from=8)
    before = model.discriminator[0].weight.detach().clone()
    watch = Watch(lambda trainer, module: torch.equal(module.discriminator[0].weight, before))
    trainer = fit(tmp_path, model=model, extra=[watch])
    assert (num_batches(trainer), trainer.global_step) == (20, 20)
    assert watch.seen == [True] * 8 + [False] * 12
    assert [s.scheduler.last_epoch for s in trainer.lr_scheduler_configs] == [20, 12]


def test_losses_and_scores_are_logged(tmp_path):
    fit(tmp_path)
    header, *rows = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    for name in ("train/generator", "train/discriminator", "train/discriminator_gap", "train/lr_0", "train/lr_1"):
        assert sum(bool(row[header.index(name)]) for row in rows) == 20, name
    # A term that is not computed in every batch stays in the rows as it was last.
    assert len({row[header.index("train/penalty")] for row in rows} - {""}) == 7


# --- clipping and accumulation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_each_network_is_clipped_by_itself(tmp_path, name):
    """Plain gradient descent moves by rate * norm: at most rate * clip, and exactly that where the clip bites."""
    option = "gradient_clip_val" if name == "generator" else "discriminator_gradient_clip_val"
    moved = {}

    class Moved(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            self.before = [p.detach().clone() for p in pl_module.parameters()]

        def on_train_batch_end(self, trainer, pl_module, *args):
            parts = zip(pl_module.named_parameters(), self.before, strict=True)
            for (full, p), before in parts:
                part = full.split(".")[0]
                moved[part] = moved.get(part, 0) + float((p - before).double().square().sum())

    model = Toy(optimizer=sgd, discriminator_optimizer=sgd, scheduler=None, **{option: 1e-3})
    fit(tmp_path, batches=1, model=model, extra=[Moved()])
    other = "discriminator" if name == "generator" else "generator"
    # The weights themselves are float32: a step of 1e-4 is known to a few parts in a thousand.
    assert moved[name] ** 0.5 == pytest.approx(0.1 * 1e-3, rel=1e-2)
    assert moved[other] ** 0.5 > 1e-3


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Fixed(Stream):
    """The same rows, in batches of any size."""

    def __init__(self, size, rank=0, world_size=1):
        super().__init__(24 // size)
        self.rows = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
        self.size, self.part = size, slice(rank * size // world_size, (rank + 1) * size // world_size)

    def __iter__(self):
        while self.position < self.num_batches:
            start = self.position * self.size
            self.position += 1
            yield {"image": self.rows[start : start + self.size][self.part]}


def quietly(folder, model, loader, **options):
    trainer = trainer_of(folder, [], enable_checkpointing=False, **options)
    trainer.fit(model, loader)
    return weights(model)


def toy(**options):
    # Plain descent: Adam would turn rounding in a gradient near zero into a whole step.
    clip = {"gradient_clip_val": 0.05, "discriminator_gradient_clip_val": 0.2}
    return Toy(noise=False, optimizer=sgd, **clip, **options)


def test_accumulating_equals_one_large_batch(tmp_path):
    whole = quietly(tmp_path, toy(), Fixed(12), max_steps=2)
    parts = quietly(tmp_path, toy(accumulate_grad_batches=3), Fixed(4), max_steps=2)
    start = weights(toy())
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-7, rtol=1e-5)
        assert name.startswith("frozen") == torch.equal(value, start[name])


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 0}, {"gradient_clip_val": -1.0}])
def test_options_out_of_range(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Toy(**options)


# --- resuming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accumulate", "every"), [(1, 4), (1, 5), (2, 4), (2, 3), (4, 5)])
@pytest.mark.parametrize("batch", [11, 16])
def test_resuming_equals_the_uninterrupted_run(tmp_path, accumulate, every, batch):
    """Bit for bit; a checkpoint that is due in the midst of an update waits for its end."""
    for name in ("alone", "stopped"):
        (tmp_path / name).mkdir()
    fit(tmp_path / "alone", accumulate=accumulate, every=every)
    with pytest.raises(RuntimeError, match="crash"):
        fit(tmp_path / "stopped", accumulate=accumulate, every=every, extra=[CrashAt(batch)])
    newest = newest_valid(tmp_path / "stopped" / "checkpoints")
    written = [-(-due // accumulate) * accumulate for due in range(every, batch, every)]
    assert newest.name == f"step-{max(n for n in written if n < batch):08d}.ckpt"
    fit(tmp_path / "stopped", accumulate=accumulate, every=every, resume=newest)
    last = [read_checkpoint(tmp_path / name / "checkpoints" / "step-00000020.ckpt") for name in ("alone", "stopped")]
    alone, stopped = ({key: checkpoint[key] for key in TRAINED} for checkpoint in last)
    assert len(alone["optimizer_states"]) == len(alone["lr_schedulers"]) == 2
    assert_equal(stopped, alone)
    assert (tmp_path / "stopped" / "metrics.csv").read_text() == (tmp_path / "alone" / "metrics.csv").read_text()


@pytest.mark.parametrize("first", [8, 10])
def test_a_finished_run_goes_on_when_it_is_given_more_steps(tmp_path, first):
    for name in ("alone", "extended"):
        (tmp_path / name).mkdir()
    fit(tmp_path / "alone")
    fit(tmp_path / "extended", batches=first)
    fit(tmp_path / "extended", resume=newest_valid(tmp_path / "extended" / "checkpoints"))
    last = [read_checkpoint(tmp_path / name / "checkpoints" / "step-00000020.ckpt") for name in ("alone", "extended")]
    assert_equal(*({key: checkpoint[key] for key in TRAINED} for checkpoint in last))


# --- several processes --------------------------------------------------------------------------------------------------


def work(rank, folder, port):
    """One of two processes, as a launcher would start it."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        TORCHELASTIC_RUN_ID="test",
    )
    quieten()
    found = {}
    try:
        for accumulate in (1, 2):
            found[accumulate] = quietly(
                folder,
                toy(accumulate_grad_batches=accumulate),
                Fixed(12 // accumulate, rank, 2),
                max_steps=2,
                strategy=DDPStrategy(process_group_backend="gloo"),
                devices=2,
                use_distributed_sampler=False,
            )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_processes_train_what_one_trains_on_the_whole_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [mp.get_context("spawn").Process(target=work, args=(rank, str(tmp_path), port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = quietly(tmp_path, toy(), Fixed(12), max_steps=2)
    for accumulate in (1, 2):
        assert_equal(ranks[0][accumulate], ranks[1][accumulate])
        for name, value in whole.items():
            torch.testing.assert_close(ranks[0][accumulate][name], value, atol=1e-6, rtol=1e-5)
