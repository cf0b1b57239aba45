"""Monitors: each says the one thing it watches for, stops cleanly where told to, and changes no weight."""

import math

import pytest
import torch

from tiny_run import Evaluation, Stream, Tiny, assert_equal, fit, seed_all, trainer_of
from trilemma.callbacks.checkpoint import Checkpoints
from trilemma.callbacks.monitors.codebook import CodebookUse
from trilemma.callbacks.monitors.collapse import Collapse
from trilemma.callbacks.monitors.discriminator import DiscriminatorGap
from trilemma.callbacks.monitors.latents import ActiveLatents
from trilemma.callbacks.monitors.loss_by_time import TimeLoss
from trilemma.callbacks.monitors.modes import ModeHistogram
from trilemma.callbacks.monitors.non_finite import NonFinite
from trilemma.checkpoints.read import newest_valid, read_checkpoint
from trilemma.codecs.usage import CodebookUsage
from trilemma.conditions.label import LabelCondition
from trilemma.data.base import ImageData
from trilemma.data.split import Split
from trilemma.errors import TrainingError, UserError
from trilemma.models.base import Loss
from trilemma.quiet import quieten


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    quieten()


class Watched(Tiny):
    """A family of which each validation and each batch can be told what it publishes."""

    def __init__(self, *, validation=None, training=None, terms=None):
        super().__init__()
        self.validation, self.training_diagnostics, self.terms = validation, training, terms
        self.batches = self.validations = 0

    def loss(self, batch):
        self.batches += 1
        total = super().loss(batch).total
        terms = self.terms(self.batches, total) if self.terms else {}
        extra = sum(terms.values(), torch.zeros(()))
        published = self.training_diagnostics(self.batches) if self.training_diagnostics else {}
        return Loss(total + 0 * extra, terms, published)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.validations += batch_idx == 0
        return {"diagnostics": self.validation(self.validations, batch_idx)} if self.validation else None


def warnings_of(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]


def run(folder, monitor, model, *, max_steps=10, **options):
    seed_all()
    trainer = trainer_of(
        folder, [monitor], max_steps=max_steps, enable_checkpointing=False, val_check_interval=2, **options
    )
    trainer.fit(model, Stream(max_steps), Evaluation())
    return trainer


# --- non-finite losses --------------------------------------------------------------------------------------------------


def nan_term(at):
    def terms(batch, total):
        return {"fine": total, "bad": total * (math.nan if batch >= at else 1), "late": total}

    return terms


@pytest.mark.parametrize(("at", "noticed"), [(8, 9), (11, 12), (13, 14), (20, 20)])
def test_stops_at_a_loss_that_is_not_finite(tmp_path, at, noticed):
    """The first batch and term are named even where they are read later; what is on disk is finite and can be resumed."""
    model = Watched(terms=nan_term(at))
    with pytest.raises(TrainingError) as stop:
        fit(tmp_path, max_steps=20, every=7, model=model, extra=[NonFinite(3)])
    newest = newest_valid(tmp_path / "checkpoints")
    assert newest.name == f"step-{(at - 1) // 7 * 7:08d}.ckpt"
    line = f"training stopped at batch {noticed}: train/bad of batch {at} is not finite; the last good checkpoint is {newest}"
    assert str(stop.value) == line
    assert all(weight.isfinite().all() for weight in read_checkpoint(newest)["state_dict"].values())


def test_no_checkpoint_yet(tmp_path):
    with pytest.raises(
        TrainingError, match=r"batch 2: train/bad of batch 2 is not finite; no checkpoint was written yet"
    ):
        fit(tmp_path, every=7, model=Watched(terms=nan_term(2)), extra=[NonFinite(1)])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["net.0.weight", "count"])
def test_no_checkpoint_holds_broken_weights(tmp_path, name, value):
    """Even where every loss is finite, and with stop=False; a buffer may be infinite."""

    class Broken(Tiny):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 12:
                self.state_dict()[name].fill_(value)

        def loss(self, batch):
            return Loss(torch.nan_to_num(super().loss(batch).total))

    if name == "count" and math.isinf(value):
        fit(tmp_path, every=7, model=Broken(), extra=[NonFinite(stop=False)])
        return
    with pytest.raises(TrainingError, match=rf"batch 14: {name} is not finite; the last good .*step-00000007\.ckpt"):
        fit(tmp_path, every=7, model=Broken(), extra=[NonFinite(stop=False)])
    assert newest_valid(tmp_path / "checkpoints").name == "step-00000007.ckpt"


def test_the_notes_are_read_only_now_and_then(tmp_path, capsys):
    """Between readings nothing waits for the device; a warning is said once for as long as it lasts."""
    reads = []

    class Counting(NonFinite):
        def _read(self, trainer):
            reads.append(trainer.fit_loop.total_batch_idx + 1)
            super()._read(trainer)

    def terms(batch, total):
        return {"x": total * (math.inf if batch in (2, 3, 8) else 1)}

    seed_all()
    monitor = Counting(4, stop=False)
    trainer = trainer_of(tmp_path, [monitor], max_steps=12, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(Watched(terms=terms), Stream(12))
    assert reads == [1, 4, 8, 12]  # and at the first batch, where the names become known
    assert warnings_of(capsys) == ["WARNING: batch 4: train/x of batch 2 is not finite"]


# --- what is measured in validation -------------------------------------------------------------------------------------


class VQ(Tiny):
    """Logs the usage of a codebook as the VQ-VAE does."""

    def __init__(self, shares):
        super().__init__()
        self.shares = list(shares)
        self.usage = CodebookUsage(10)

    def validation_step(self, batch, batch_idx):
        self.usage.update(torch.arange(10)[: self.shares[0]])

    def on_validation_epoch_end(self):
        self.shares.pop(0)
        self.log_dict({f"val/codebook_{name}": value for name, value in self.usage.compute().items()})
        self.usage.reset()


def test_dead_codes(tmp_path, capsys):
    """Said when it appears, and again when it comes back."""
    run(tmp_path, CodebookUse(0.5), VQ([9, 4, 3, 5, 1]))
    assert warnings_of(capsys) == [
        "WARNING: batch 4: 40.0% of the codes are in use, below 50%",
        "WARNING: batch 10: 10.0% of the codes are in use, below 50%",
    ]


def test_dead_codes_stop(tmp_path):
    """The validation's row is written, its checkpoint is not."""
    seed_all()
    monitor, checkpoints = CodebookUse(0.5, stop=True), Checkpoints(2, monitor="val/codebook_usage", mode="max")
    trainer = trainer_of(tmp_path, [monitor, checkpoints], max_steps=10, val_check_interval=2)
    with pytest.raises(TrainingError, match=r"batch 6: 20\.0% of the codes .*step-00000004\.ckpt"):
        trainer.fit(VQ([9, 8, 2, 9]), Stream(10), Evaluation())
    assert float(trainer.callback_metrics["val/codebook_usage"]) == pytest.approx(0.2)
    assert newest_valid(tmp_path / "checkpoints").name == "step-00000004.ckpt"


def test_loss_by_time(tmp_path):
    """Each part's mean is over its own examples of all batches, and they make up the mean over all."""
    times = torch.tensor([[0.05, 0.1, 0.15, 0.2], [0.9, 0.95, 1.0, 0.01]])  # 0.1 and 0.2 belong to the part they end
    losses = torch.tensor([[1.0, 3.0, 5.0, 7.0], [9.0, 11.0, 13.0, 14.0]])
    model = Watched(validation=lambda n, i: {"time": times[i], "time_loss": losses[i]})
    logged = run(tmp_path, TimeLoss(10), model, max_steps=2).callback_metrics
    parts = {name: float(value) for name, value in logged.items() if name.startswith("val/loss_t")}
    assert parts == {"val/loss_t00": 6.0, "val/loss_t01": 6.0, "val/loss_t08": 9.0, "val/loss_t09": 12.0}
    counts = {"val/loss_t00": 3, "val/loss_t01": 2, "val/loss_t08": 1, "val/loss_t09": 2}
    assert sum(parts[k] * counts[k] for k in parts) == pytest.approx(float(losses.sum()))


def rising(n, batch_idx):
    late = [8.0, 4.0, 7.9, 8.1, 8.2][n - 1]
    return {"time": torch.tensor([0.2, 0.8]), "time_loss": torch.tensor([100.0 / n, late])}


def test_loss_that_rises_at_one_end(tmp_path, capsys):
    """It is compared with its least, while the mean goes on falling."""
    run(tmp_path, TimeLoss(2), Watched(validation=rising))
    assert warnings_of(capsys) == ["WARNING: batch 8: the validation loss at t in (0.5, 1] is 8.1 and was 4 before"]


def test_the_least_loss_is_remembered_over_a_resume(tmp_path, capsys):
    fit(tmp_path, max_steps=10, every=10, model=Watched(validation=rising), extra=[TimeLoss(2)])
    assert warnings_of(capsys) == []
    newest = newest_valid(tmp_path / "checkpoints")
    model = Watched(validation=lambda n, i: rising(4, i))
    fit(tmp_path, max_steps=15, resume=newest, model=model, extra=[TimeLoss(2)])
    assert warnings_of(capsys) == ["WARNING: batch 15: the validation loss at t in (0.5, 1] is 8.1 and was 4 before"]


def test_latents_that_are_not_used(tmp_path, capsys):
    """KL of a Gaussian posterior to N(0, 1): latents that equal the prior have none."""
    mean = torch.tensor([[1.0, 0.0, 0.0, 0.1], [-1.0, 0.0, 0.0, 0.1]])
    variance = torch.tensor([0.25, 1.0, 1.0, 1.0])
    kl = 0.5 * (mean**2 + variance - 1 - variance.log())
    model = Watched(validation=lambda n, i: {"latent_kl": kl})
    logged = run(tmp_path, ActiveLatents(0.3), model, max_steps=2).callback_metrics
    assert float(logged["val/active_latents"]) == 0.25  # 0.005 nats is below the threshold
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
    )
    assert float(logged["val/latent_kl"]) == pytest.approx(float(exact.sum(1).mean()))
    assert warnings_of(capsys) == ["WARNING: batch 2: 25.0% of the latents have a KL above 0.01 nats, below 30%"]


# --- what is measured in training ---------------------------------------------------------------------------------------


def scores(gaps):
    def published(batch):
        d = torch.tensor([0.5 + gaps[batch - 1] / 2, 0.5 - gaps[batch - 1] / 2])
        real, fake = d.logit()
        return {"real_score": real.expand(3), "fake_score": fake.expand(3)}

    return published


def test_a_discriminator_that_stays_saturated(tmp_path, capsys):
    gaps = [0.99, 0.99, 0.2, 0.99, 0.98, 0.97, 0.99, 0.1]
    trainer = run(tmp_path, DiscriminatorGap(1, patience=3), Watched(training=scores(gaps)), max_steps=8)
    assert float(trainer.callback_metrics["train/discriminator_gap"]) == pytest.approx(0.1)
    expected = "the discriminator tells data from samples with a gap of 0.970, above 0.95 for 3 batches"
    assert warnings_of(capsys) == [f"WARNING: batch 6: {expected}"]


def distances(diversities):
    def published(batch):
        return {
            "real_nearest": torch.tensor([1.0, 3.0]),
            "fake_nearest": torch.tensor([1.0, 3.0]) * diversities[batch - 1],
        }

    return published


def test_a_generator_that_goes_on_repeating_itself(tmp_path, capsys):
    diversities = [0.1, 0.1, 0.8, 0.1, 0.2, 0.25, 0.9]
    trainer = run(tmp_path, Collapse(1, patience=3), Watched(training=distances(diversities)), max_steps=7)
    assert float(trainer.callback_metrics["train/sample_diversity"]) == pytest.approx(0.9)
    expected = "samples lie 0.250 times as far from each other as data do, below 0.3 for 3 batches"
    assert warnings_of(capsys) == [f"WARNING: batch 6: {expected}"]


@pytest.mark.parametrize(
    ("monitor", "published", "problem"),
    [(DiscriminatorGap, scores([0.99] * 6), "the discriminator"), (Collapse, distances([0.1] * 6), "samples lie")],
)
def test_patience_goes_on_after_a_resume(tmp_path, monitor, published, problem):
    first, second = (monitor(1, patience=5, stop=True) for _ in range(2))
    fit(tmp_path, max_steps=4, every=2, model=Watched(training=published), extra=[first])
    newest = newest_valid(tmp_path / "checkpoints")
    with pytest.raises(TrainingError, match=f"training stopped at batch 5: {problem}"):
        fit(tmp_path, max_steps=6, resume=newest, model=Watched(training=published), extra=[second])


# --- modes --------------------------------------------------------------------------------------------------------------


class Blank(ImageData):
    """Images of a name that the labeller below knows."""

    name = "blank"

    def read(self):
        images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
        split = Split(images=images, labels=torch.zeros(8, dtype=torch.int64), captions=None, index=torch.arange(8))
        return {"train": split, "val": split, "test": split}, ["0", "1", "2", "3"]


class Grey:
    """Tells greys apart."""

    def __init__(self, num=4):
        self.num = num

    def num_classes(self, data):
        return self.num if data.name == "blank" else None

    def labels(self, data, images):
        return images[:, 0, 0, 0].long() // 64


class Painter(Tiny):
    """Paints each image in a grey of the classes that it is told to know."""

    def __init__(self, condition=None, classes=(0, 1, 2, 3)):
        super().__init__()
        self.condition, self.classes, self.asked = condition, classes, []
        self.count = self.count.clone()

    def loss(self, batch):
        return super().loss({"image": batch["image"].flatten(1)[:, :3]})

    def validation_step(self, batch, batch_idx):
        pass

    def examples(self, num):
        return None if self.condition is None else self.condition.examples(num)

    def sample(self, num_images, *, condition=None, sampler=None, guidance=None, seed=0, first_index=0, on_step=None):
        torch.rand(5)
        self.asked.append(condition)
        drawn = [self.classes[i % len(self.classes)] for i in condition or range(num_images)]
        return ((torch.tensor(drawn) * 64 + 10) / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def train(folder, model, callbacks, max_steps=8):
    seed_all()
    data = Blank(batch_size=2, seed=0)
    data.num_train_batches = max_steps
    trainer = trainer_of(folder, callbacks, max_steps=max_steps, val_check_interval=2, enable_checkpointing=False)
    trainer.fit(model, datamodule=data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_modes_of_samples(tmp_path, capsys):
    """Half of four classes: total variation 1/2 to the uniform distribution; drawn at every second validation."""
    model = Painter(classes=(0, 3))
    metrics = train(tmp_path, model, [ModeHistogram(labeller=Grey(), every_n_batches=4, num_images=8, min_share=0.6)])
    assert metrics["val/modes_hit"] == 2
    assert metrics["val/class_tv"] == pytest.approx(0.5)
    assert "val/label_accuracy" not in metrics
    assert model.asked == [None, None]
    assert warnings_of(capsys) == ["WARNING: batch 4: 8 samples show 2 of 4 classes"]


def test_modes_of_a_model_that_is_asked_for_labels(tmp_path):
    model = Painter(LabelCondition(4, 2), classes=(0, 1, 2, 2))
    metrics = train(tmp_path, model, [ModeHistogram(labeller=Grey(), every_n_batches=2, num_images=8)])
    assert model.asked[0] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert metrics["val/label_accuracy"] == 0.75
    assert metrics["val/modes_hit"] == 3


def test_modes_pass_over_what_they_do_not_know(tmp_path):
    assert not any("modes" in name for name in train(tmp_path, Painter(), [ModeHistogram(labeller=Grey(None))]))


def test_the_shipped_labeller_knows_its_own_data():
    """Classes of a shipped extractor; other data, or the same at another size, it does not know."""
    from trilemma.evaluation.features.extractor import load_extractor
    from trilemma.evaluation.features.labeller import ShippedLabeller

    labeller, data = ShippedLabeller(), Blank(batch_size=2, seed=0)
    assert labeller.num_classes(data) is None
    data.name = "mnist"
    assert labeller.num_classes(data) is None  # 4 x 4
    data.name = "fashion"  # the beginning of a name is not a name
    assert labeller.num_classes(data) is None

    class Digits(Blank):
        name = "mnist"
        image_shape = (1, 28, 28)

    digits = Digits(batch_size=2, seed=0)
    assert labeller.num_classes(digits) == 10
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(labeller.labels(digits, images), load_extractor("mnist").logits(images).argmax(1))

    class Stacks(Digits):
        image_shape = (3, 28, 28)
        channels_are_images = True

    stacked = Stacks(batch_size=2, seed=0)
    assert labeller.num_classes(stacked) == 1000
    hundreds, tens, units = labeller.labels(digits, images)
    assert labeller.labels(stacked, images.transpose(0, 1)).tolist() == [100 * hundreds + 10 * tens + units]


# --- all of them --------------------------------------------------------------------------------------------------------


def everything():
    return [NonFinite(3), CodebookUse(), TimeLoss(), ActiveLatents(), DiscriminatorGap(2), Collapse(2)]


def test_monitors_change_no_weight(tmp_path):
    """The whole state of training, random generators included, is bit for bit the same with them and without."""

    def published(n, batch_idx):
        return {"time": torch.full((2,), 0.5), "time_loss": torch.ones(2), "latent_kl": torch.ones(2, 3)}

    for name, extra in (("with", everything()), ("without", [])):
        (tmp_path / name).mkdir()
        seed_all()  # the model's first weights
        fit(tmp_path / name, model=Watched(validation=published, training=scores([0.1] * 20)), extra=extra)
    a, b = (read_checkpoint(tmp_path / name / "checkpoints" / "step-00000020.ckpt") for name in ("with", "without"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(a[key], b[key], key)
    for key in b["callbacks"]:
        assert_equal(a["callbacks"][key], b["callbacks"][key], key)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """Checkpoint and metrics, with all monitors on and a stop between two validations."""

    def watched():
        seed_all()
        return Watched(
            validation=lambda n, i: {
                "time": torch.tensor([0.5]),
                "time_loss": torch.ones(1),
                "latent_kl": torch.ones(1, 3),
            },
            training=lambda batch: {
                **{"real_score": torch.full((2,), 9.0), "fake_score": torch.full((2,), -9.0)},
                **{"real_nearest": torch.ones(2), "fake_nearest": torch.zeros(2)},
            },
        )

    for name in ("alone", "stopped"):
        (tmp_path / name).mkdir()
    fit(tmp_path / "alone", model=watched(), extra=everything())
    crashing = watched()
    crashing.terms = lambda batch, total: {} if batch < 9 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "stopped", model=crashing, extra=everything())
    newest = newest_valid(tmp_path / "stopped" / "checkpoints")
    fit(tmp_path / "stopped", model=watched(), extra=everything(), resume=newest)
    a, b = (read_checkpoint(tmp_path / name / "checkpoints" / "step-00000020.ckpt") for name in ("alone", "stopped"))
    for key in ("state_dict", "optimizer_states", "callbacks"):
        assert_equal(a[key], b[key], key)
    a, b = ((tmp_path / name / "metrics.csv").read_text() for name in ("alone", "stopped"))
    assert a == b
    assert "train/discriminator_gap" in a
    assert "train/sample_diversity" in a
    assert "val/active_latents" in a


def test_sampling_modes_changes_no_weight(tmp_path):
    models = [Painter(), Painter()]
    models[1].load_state_dict(models[0].state_dict())
    train(tmp_path, models[0], [ModeHistogram(labeller=Grey(), every_n_batches=2)])
    train(tmp_path, models[1], [])
    assert models[0].asked
    assert_equal(dict(models[0].state_dict()), dict(models[1].state_dict()))


def test_families_that_publish_nothing_are_passed_over(tmp_path, capsys):
    fit(tmp_path, extra=[*everything(), ModeHistogram(labeller=Grey())])
    assert warnings_of(capsys) == []


@pytest.mark.parametrize(
    "build",
    [
        lambda: NonFinite(0),
        lambda: CodebookUse(1.5),
        lambda: TimeLoss(0),
        lambda: TimeLoss(max_rise=1.0),
        lambda: ActiveLatents(-0.1),
        lambda: ActiveLatents(min_nats=-1),
        lambda: DiscriminatorGap(patience=0),
        lambda: Collapse(0),
        lambda: Collapse(min_diversity=-0.1),
        lambda: ModeHistogram(labeller=Grey(), num_images=0),
    ],
)
def test_refuses_bad_settings(build):
    with pytest.raises(UserError, match=r"must|be at least"):
        build()
