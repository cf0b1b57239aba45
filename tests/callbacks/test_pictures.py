import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tiny_run import Stream, Tiny, assert_equal, fit, seed_all, trainer_of
from trilemma.callbacks.ema import EMA
from trilemma.callbacks.pictures.drawing import undisturbed
from trilemma.callbacks.pictures.grids import Reconstructions, SampleGrid
from trilemma.callbacks.pictures.latent_walk import LatentWalk
from trilemma.callbacks.pictures.latents import LatentInterpolation, LatentManifold, LatentScatter
from trilemma.callbacks.random_state import capture
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.distributed import signals
from trilemma.errors import UserError
from trilemma.quiet import quieten


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    quieten()


class Painter(Tiny):
    """Paints every image in the grey of its label, and disturbs what it can."""

    def __init__(self, condition):
        super().__init__()
        self.condition = condition
        self.calls = []
        self.frozen.eval()

    def loss(self, batch):
        return super().loss({"image": batch["image"].flatten(1)[:, :3]})

    def validation_step(self, batch, batch_idx):
        pass

    def examples(self, num):
        return self.condition.examples(num)

    def sample(self, num_images, *, condition=None, sampler=None, guidance=None, seed=0, first_index=0, on_step=None):
        torch.rand(9), random.random(), np.random.rand()  # noqa: NPY002
        self.train()
        self.calls.append((condition, seed, torch.is_grad_enabled(), self.net[0].weight.detach().clone()))
        labels = torch.zeros(num_images) if condition is None else torch.tensor(condition)
        return (labels / 5 - 1).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)

    def reconstruct(self, images):
        return -images


def train(folder, model, callbacks, num_batches=5):
    seed_all()
    trainer = trainer_of(folder, callbacks, enable_checkpointing=False, max_steps=num_batches, val_check_interval=2)
    trainer.fit(model, Stream(num_batches, (2, 1, 4, 4)), Stream(1, (3, 1, 4, 4)))
    return trainer


def test_grid_now_and_then_and_at_the_end(tmp_path):
    model = Painter(LabelCondition(3, 2))
    train(tmp_path, model, [SampleGrid(2, num_rows=4, num_columns=2, seed=7)])
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [f"step-{n:08d}.png" for n in (2, 4, 5)]
    assert {(tuple(call[0]), call[1], call[2]) for call in model.calls} == {((0, 0, 1, 1, 2, 2, 0, 0), 7, False)}


def test_unconditional(tmp_path):
    model = Painter(NoCondition())
    train(tmp_path, model, [SampleGrid(5, num_rows=2, num_columns=2)])
    assert [call[0] for call in model.calls] == [None]


class Decoder(Painter):
    """Paints the first number of a latent."""

    def latent_dim(self):
        return 3

    def from_latents(self, z, raw=None):
        self.train()
        self.calls.append((z, raw, self.net[0].weight.detach().clone()))
        return z[:, :1, None, None].clamp(-1, 1).expand(-1, 1, 4, 4)


@pytest.mark.parametrize("condition", [NoCondition(), LabelCondition(2, 2)])
def test_a_latent_walk_goes_on_where_the_row_above_ends(tmp_path, condition):
    model, ema = Decoder(condition), EMA([0.5])
    train(tmp_path, model, [ema, LatentWalk(2, num_rows=3, num_columns=4)])
    assert sorted(p.name for p in (tmp_path / "latent_walk").iterdir()) == [f"step-{n:08d}.png" for n in (2, 4, 5)]
    (first, *_), (z, raw, weight) = model.calls[0], model.calls[-1]
    assert torch.equal(first, z), "the same walk each time"
    assert torch.equal(weight, ema.average()["net.0.weight"])
    assert raw == (None if isinstance(condition, NoCondition) else [0] * 4 + [1] * 4 + [0] * 4)
    rows = z.view(3, 4, 3)
    torch.testing.assert_close(rows[1:, 0], rows[:-1, -1])
    a, b = rows[:, 0].double(), rows[:, -1].double()
    angle = torch.acos(torch.cosine_similarity(a, b))[:, None]
    third = (torch.sin(2 / 3 * angle) * a + torch.sin(angle / 3) * b) / torch.sin(angle)
    torch.testing.assert_close(rows[:, 1].double(), third, rtol=1e-4, atol=1e-5)


def test_a_family_without_latents_has_no_walk(tmp_path):
    train(tmp_path, Painter(NoCondition()), [LatentWalk(2)])
    assert not (tmp_path / "latent_walk").exists()
    with pytest.raises(UserError, match="num_columns=1"):
        LatentWalk(num_columns=1)


class Coder(Decoder):
    """A decoder of two latents that also finds them."""

    def latent_dim(self):
        return 2

    def to_latents(self, images, raw=None):
        return images.flatten(1)[:, :2]


def test_latents_of_a_model_of_two_are_pictured(tmp_path):
    callbacks = [LatentManifold(2, num_side=3), LatentScatter(4), LatentInterpolation(num_pairs=1, num_steps=3)]
    model = Coder(LabelCondition(2, 2))
    seed_all()
    trainer = trainer_of(tmp_path, callbacks, enable_checkpointing=False, max_steps=5, val_check_interval=2)
    images = [{"image": torch.randn(3, 1, 4, 4), "label": torch.arange(3)}] * 2
    trainer.fit(model, Stream(5, (2, 1, 4, 4)), DataLoader(images, batch_size=None))
    drawn = {folder.name: sorted(p.name for p in folder.iterdir()) for folder in tmp_path.iterdir()}
    at = [f"step-{n:08d}.png" for n in (2, 4, 5)]
    assert drawn == {"manifold": at, "latent_scatter": at[:2], "interpolation": at[:2]}
    assert [call[1] for call in model.calls if len(call[0]) == 9] == [[0] * 9] * 3


@pytest.mark.parametrize("model", [Painter(NoCondition()), Decoder(NoCondition())], ids=["none", "three"])
def test_other_latents_are_not_pictured(tmp_path, model):
    train(tmp_path, model, [LatentManifold(2), LatentScatter(), LatentInterpolation()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: LatentManifold(num_side=0), "num_side=0"),
        (lambda: LatentScatter(1), "num_images=1"),
        (lambda: LatentInterpolation(num_steps=1), "num_steps=1"),
    ],
)
def test_settings_of_pictures_of_latents(build, named):
    with pytest.raises(UserError, match=named):
        build()


def test_samples_from_the_average(tmp_path):
    model, ema = Painter(NoCondition()), EMA([0.5])
    train(tmp_path, model, [ema, SampleGrid(5, num_rows=1)])
    assert torch.equal(model.calls[0][3], ema.average()["net.0.weight"])
    assert not torch.equal(model.net[0].weight, ema.average()["net.0.weight"])


def test_training_is_undisturbed(tmp_path):
    models = [Painter(NoCondition()) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    train(tmp_path / "with", models[0], [EMA(), SampleGrid(1), Reconstructions()])
    train(tmp_path / "without", models[1], [EMA()])
    assert models[0].calls
    assert_equal(dict(models[0].state_dict()), dict(models[1].state_dict()))


def test_undisturbed():
    model = Painter(NoCondition())
    before = capture()
    with undisturbed(model):
        assert not any(part.training for part in model.modules())
        torch.rand(1)
    assert_equal(capture(), before)
    assert model.net.training
    assert not model.frozen.training


def test_reconstructions_stand_below_the_data(tmp_path):
    train(tmp_path, Painter(NoCondition()), [Reconstructions(2)])
    assert sorted(p.name for p in (tmp_path / "reconstructions").iterdir()) == [f"step-{n:08d}.png" for n in (2,)]
    picture = np.asarray(Image.open(tmp_path / "reconstructions" / "step-00000002.png").convert("L"))
    assert picture.std() > 0


def test_other_families_are_passed_over(tmp_path):
    model = Tiny()
    model.validation_step = lambda batch, batch_idx: None
    model.loss = lambda batch, loss=model.loss: loss({"image": batch["image"].flatten(1)[:, :3]})
    train(tmp_path, model, [SampleGrid(1), Reconstructions()])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("build", [lambda: SampleGrid(0), lambda: SampleGrid(num_rows=0), lambda: Reconstructions(0)])
def test_refuses_bad_settings(build):
    with pytest.raises(UserError, match="at least 1"):
        build()


def test_an_error_in_a_picture_is_a_warning_and_the_training_goes_on(tmp_path):
    class Broken(Tiny):
        def examples(self, num):
            return None

        def sample(self, *args, **options):
            raise UserError("no sample\nof this kind")

    with pytest.warns(UserWarning, match="SampleGrid has no picture after batch 4: no sample of this kind"):
        trainer = fit(tmp_path, max_steps=4, model=Broken(), extra=[SampleGrid(2)])
    assert trainer.global_step == 4


def test_a_program_that_was_asked_to_stop_draws_no_more(tmp_path, monkeypatch):
    asked = iter([0, 0, 0, 75, 75, 75])  # before the picture, at its first two steps, then at the third

    class Slow(Tiny):
        def examples(self, num):
            return None

        def sample(self, num_images, *, on_step=None, **options):
            for step in range(10):
                on_step(step, 0.0, None, None)
            raise AssertionError("drawn to its end")

    monkeypatch.setattr(signals, "asked", lambda: next(asked, 75))
    SampleGrid(1).draw(trainer_of(tmp_path, [], max_steps=1), Slow())
    assert not (tmp_path / "samples").exists()
