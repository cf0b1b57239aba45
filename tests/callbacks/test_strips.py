import numpy as np
import pytest
import torch
from PIL import Image

from exact_family import MEANS, exact_family
from tiny_run import Stream, Tiny, assert_equal, seed_all, trainer_of
from trilemma.callbacks.ema import EMA
from trilemma.callbacks.pictures.trajectories import ForwardStrip, NoiseThenDenoise, ReverseStrip
from trilemma.data.base import ImageData
from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.quiet import quieten
from trilemma.samplers.gaussian.ddim import DDIM


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    quieten()


class Greys(ImageData):
    """Images of their label's mean."""

    name = "greys"

    def read(self):
        labels = torch.arange(60) % len(MEANS)
        grey = ((torch.tensor(MEANS)[labels] + 1) * 127.5).round().to(torch.uint8)
        split = Split(grey.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), labels, None, torch.arange(60))
        return dict.fromkeys(("train", "val", "test"), split), None


class Shown:
    def __init__(self):
        self.pictures = []

    def log_image(self, key, images, step=None, *, caption=None):
        self.pictures.append((key, step, images[0].size))


def adam(parameters):
    return torch.optim.SGD([p for _, p in parameters], lr=0.01)


def train(folder, model, callbacks, num_batches=5):
    seed_all()
    trainer = trainer_of(folder, callbacks, enable_checkpointing=False, max_steps=num_batches, limit_val_batches=0)
    data = Greys(batch_size=8)
    data.num_train_batches = num_batches
    trainer.fit(model, datamodule=data)
    return trainer


def family(**options):
    return exact_family(optimizer=adam, sampler=DDIM(12), **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_forward_once_at_the_start(tmp_path):
    train(tmp_path, family(), [ForwardStrip(3)])
    assert names(tmp_path / "forward") == ["step-00000000.png"]
    picture = np.asarray(Image.open(tmp_path / "forward/step-00000000.png").convert("L")).astype(float)
    side = 4 * 4
    tiles = picture[-3 * (side + 2) : -2].reshape(-1, picture.shape[1])
    first = tiles[:side, 2 : 2 + side]
    last = tiles[:side, -2 - side : -2]
    assert first.std() == 0
    assert first.mean() == pytest.approx((MEANS[0] + 1) * 127.5, abs=1)
    assert last.std() > 50


def test_forward_is_not_drawn_again_on_resume(tmp_path):
    model = family()
    callback = ForwardStrip()
    trainer = train(tmp_path, model, [callback])
    (tmp_path / "forward/step-00000000.png").unlink()
    callback.on_train_start(trainer, model)  # five batches are counted by now
    assert names(tmp_path / "forward") == []


def test_reverse_now_and_then_and_at_the_end(tmp_path):
    train(tmp_path, family(labels=True), [ReverseStrip(2, num_rows=2, num_images=5)])
    assert names(tmp_path / "reverse") == [f"step-{n:08d}.{kind}" for n in (2, 4, 5) for kind in ("gif", "png")]
    with Image.open(tmp_path / "reverse/step-00000005.gif") as animation:
        assert animation.n_frames == 13
        assert animation.info["loop"] == 0
        frames = []
        for i in range(animation.n_frames):
            animation.seek(i)
            frames.append((animation.info["duration"], np.asarray(animation.convert("L")).astype(float)))
    assert [duration for duration, _ in frames[:-1]] == [80] * 12
    assert frames[-1][0] == 2000
    with Image.open(tmp_path / "reverse/step-00000005.png") as strip:
        size = 4 * 4 + 2
        assert strip.height >= 4 * size
        last = np.asarray(strip.convert("L")).astype(float)[-4 * size :, -size:-2]
    # Labels in turn: the first sample's mean is that of label 0, the second's that of label 1; noise is gone.
    for row, mean in ((0, MEANS[0]), (2, MEANS[1])):
        tile = last[row * size : row * size + 16]
        assert tile.mean() == pytest.approx((mean + 1) * 127.5, abs=12)


def test_denoise_keeps_labels(tmp_path):
    train(tmp_path, family(labels=True), [NoiseThenDenoise(5, num_images=3, strengths=[0.5, 1.0])])
    assert names(tmp_path / "denoise") == ["step-00000005.png"]
    picture = np.asarray(Image.open(tmp_path / "denoise/step-00000005.png").convert("L")).astype(float)
    size = 4 * 4 + 2
    for row in range(3):
        for column, mean in enumerate(MEANS):
            y = picture.shape[0] - (3 - row) * size
            x = picture.shape[1] - (3 - column) * size
            assert picture[y : y + 16, x : x + 16].mean() == pytest.approx((mean + 1) * 127.5, abs=12)


def test_training_is_undisturbed(tmp_path):
    pictures = [ForwardStrip(), ReverseStrip(1, num_images=2), NoiseThenDenoise(1, num_images=2)]
    models = [family(labels=True) for _ in range(2)]
    train(tmp_path / "with", models[0], [EMA(), *pictures])
    train(tmp_path / "without", models[1], [EMA()])
    assert models[0].network.unit.item() != 1
    assert_equal(dict(models[0].state_dict()), dict(models[1].state_dict()))


def test_averages_are_drawn(tmp_path):
    seen = []

    class Spy(ReverseStrip):
        def _draw(self, trainer, model):
            seen.append((model.network.unit.item(), any(part.training for part in model.modules())))

    model, ema = family(), EMA([0.5])
    train(tmp_path, model, [ema, Spy(5)])
    assert seen == [(ema.average()["network.unit"].item(), False)]
    assert seen[0][0] != model.network.unit.item()


def test_other_families_are_passed_over(tmp_path):
    model = Tiny()
    model.loss = lambda batch, loss=model.loss: loss({"image": batch["image"].flatten(1)[:, :3]})
    train(tmp_path, model, [ForwardStrip(), ReverseStrip(1), NoiseThenDenoise(1)])
    assert list(tmp_path.iterdir()) == []


def test_without_a_data_set_the_samples_alone_are_drawn(tmp_path):
    seed_all()
    callbacks = [ForwardStrip(), ReverseStrip(2), NoiseThenDenoise(2)]
    trainer = trainer_of(tmp_path, callbacks, enable_checkpointing=False, max_steps=2, limit_val_batches=0)

    class Numbered(Stream):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch | {"index": torch.arange(len(batch["image"]))}

    trainer.fit(family(), Numbered(2, (2, 1, 4, 4)))
    assert names(tmp_path) == ["reverse"]


def test_loggers_are_shown_the_pictures(tmp_path):
    model, logger = family(), Shown()
    trainer = train(tmp_path, model, [])
    trainer._loggers = [logger]
    ReverseStrip(1, num_images=1).on_train_batch_end(trainer, model)
    assert [(key, step) for key, step, _ in logger.pictures] == [("reverse", 5)]


@pytest.mark.parametrize(
    "build",
    [
        lambda: ForwardStrip(0),
        lambda: ReverseStrip(0),
        lambda: ReverseStrip(num_rows=0),
        lambda: NoiseThenDenoise(num_images=0),
        lambda: NoiseThenDenoise(strengths=[]),
        lambda: NoiseThenDenoise(strengths=[0.5, 1.2]),
        lambda: NoiseThenDenoise(strengths=[0.0]),
    ],
)
def test_refuses_bad_settings(build):
    with pytest.raises(UserError, match="at least 1"):
        build()
