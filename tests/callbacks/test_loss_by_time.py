import pytest
import torch
from PIL import Image

from tiny_run import Evaluation, Stream, Tiny, fit, seed_all, trainer_of
from trilemma.callbacks.pictures import loss_by_time
from trilemma.callbacks.pictures.loss_by_time import LossByTime
from trilemma.errors import UserError
from trilemma.quiet import quieten


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    quieten()


@pytest.fixture
def drawn(monkeypatch):
    """What would be drawn, in the place of the pictures."""
    calls = []

    def draw(curves):
        calls.append(dict(curves))
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(loss_by_time, "loss_by_time_picture", draw)
    return calls


class Timed(Tiny):
    """Batch k of a validation tells its images' times, and losses that follow from them and from the batch."""

    times = torch.tensor([[0.1, 0.2], [0.2, 1.0]])

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        t = self.times[batch_idx]
        return {"diagnostics": {"time": t, "time_loss": 10 * t + batch_idx}}


def train(folder, callback, num_batches=6, model=None):
    seed_all()
    trainer = trainer_of(folder, [callback], enable_checkpointing=False, max_steps=num_batches, val_check_interval=2)
    trainer.fit(model or Timed(), Stream(num_batches), Evaluation())
    return trainer


def test_curves_are_means_over_parts_of_time(tmp_path, drawn):
    train(tmp_path, LossByTime(10), 2)
    [curves] = drawn
    # 0.1 ends the first part, and 0.2, seen once in each batch, the second; nothing was seen in between.
    assert [t for t, _ in curves[2]] == pytest.approx([0.05, 0.15, 0.95])
    assert [loss for _, loss in curves[2]] == pytest.approx([1.0, 2.5, 11.0])


def test_earlier_curves_stay(tmp_path, drawn):
    train(tmp_path, LossByTime(10))
    assert [sorted(curves) for curves in drawn] == [[2], [2, 4], [2, 4, 6]]
    assert sorted(path.name for path in (tmp_path / "loss_by_time").iterdir()) == [
        f"step-{n:08d}.png" for n in (2, 4, 6)
    ]


@pytest.mark.parametrize("num", [0, 1, 3])
def test_few_earlier_curves_are_drawn(tmp_path, drawn, num):
    train(tmp_path, LossByTime(10, max_earlier=num), 20)
    assert len(drawn) == 10
    assert max(len(curves) for curves in drawn) == num + 1
    assert sorted(drawn[-1])[-1] == 20
    if num == 3:
        assert sorted(drawn[-1]) == [2, 6, 18, 20]


def test_a_resumed_run_draws_the_same(tmp_path, drawn):
    model = Timed()
    trainer = fit(tmp_path / "whole", max_steps=14, model=model, extra=[LossByTime(4)])
    assert trainer.fit_loop.total_batch_idx == 13
    whole = drawn[-1]
    drawn.clear()
    fit(tmp_path / "again", max_steps=7, model=Timed(), extra=[LossByTime(4)])
    fit(
        tmp_path / "again",
        max_steps=14,
        model=Timed(),
        extra=[LossByTime(4)],
        resume=tmp_path / "again/checkpoints/last.ckpt",
    )
    assert drawn[-1] == whole
    assert len(whole) == 2


def test_other_families_are_passed_over(tmp_path, drawn):
    train(tmp_path, LossByTime(), model=Tiny())
    assert drawn == []


def test_a_loss_that_is_nowhere_finite_is_not_drawn(tmp_path, drawn):
    model = Timed()
    model.times = torch.full((2, 2), float("inf"))
    model.validation_step = lambda batch, batch_idx: {
        "diagnostics": {"time": torch.ones(2), "time_loss": torch.full((2,), float("nan"))}
    }
    train(tmp_path, LossByTime(), 2, model=model)
    assert drawn == []


@pytest.mark.parametrize("options", [{"num_bins": 0}, {"max_earlier": -1}])
def test_refuses_bad_settings(options):
    with pytest.raises(UserError, match="loss by time"):
        LossByTime(**options)
