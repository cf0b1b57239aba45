import pytest
import torch

from tiny_run import Evaluation, Stream, Tiny, TwoOptimizers, fit, trainer_of
from trilemma.callbacks.checkpoint import Checkpoints, step_checkpoints
from trilemma.checkpoints.read import read_checkpoint
from trilemma.errors import UserError
from trilemma.quiet import quieten


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    quieten()


def names(folder):
    """The files that are written; `last.ckpt` is a link to the newest of them."""
    paths = list((folder / "checkpoints").iterdir())
    [last] = [path for path in paths if path.is_symlink()]
    assert last.name == "last.ckpt"
    assert last.resolve() == step_checkpoints(folder / "checkpoints")[0].resolve()
    return sorted(path.name for path in paths if path != last)


class Scripted(Tiny):
    """Validation gives the scores it is told."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def validation_step(self, batch, batch_idx):
        self.log("val/score", self.scores[self.trainer.global_step // 2 - 1])


def train(folder, scores, *, resume=None, max_steps=None, **options):
    torch.manual_seed(0)
    checkpoints = Checkpoints(3, monitor="val/score", **options)
    num = max_steps or 2 * len(scores)
    trainer = trainer_of(folder, [checkpoints], max_steps=num, val_check_interval=2)
    trainer.fit(Scripted(scores), Stream(num), Evaluation(), ckpt_path=resume, weights_only=True)
    return checkpoints


def test_keeps_the_newest(tmp_path):
    fit(tmp_path, every=3, keep_last=2)
    assert names(tmp_path) == ["best.ckpt", "step-00000018.ckpt", "step-00000020.ckpt"]


def test_counts_batches_not_optimizer_steps(tmp_path):
    trainer_of(tmp_path, [Checkpoints(4, keep_last=9)]).fit(TwoOptimizers(), Stream(10))
    assert names(tmp_path) == [f"step-{n:08d}.ckpt" for n in (4, 8, 10)]


@pytest.mark.parametrize(("mode", "best"), [("min", 4), ("max", 6)])
def test_best(tmp_path, mode, best):
    checkpoints = train(tmp_path, [0.5, 0.1, 0.9, 0.3, float("nan")], mode=mode)
    assert checkpoints.best_batch == best
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert checkpoint["global_step"] == best
    assert checkpoint["callbacks"]["Checkpoints"]["best_score"] == pytest.approx(checkpoints.best_score)


def test_best_survives_a_resume(tmp_path):
    scores = [0.5, 0.1, 0.9, 0.3, 0.05]
    train(tmp_path, scores, max_steps=6)
    newest = step_checkpoints(tmp_path / "checkpoints")[0]
    assert train(tmp_path, scores, resume=newest, max_steps=8).best_batch == 4
    newest = step_checkpoints(tmp_path / "checkpoints")[0]
    assert train(tmp_path, scores, resume=newest).best_batch == 10


def test_another_monitor_starts_anew():
    checkpoints = Checkpoints(monitor="val/loss")
    checkpoints.load_state_dict({"monitor": "val/score", "best_score": -1e9, "best_batch": 3})
    assert checkpoints.best_score is None


def test_unknown_metric(tmp_path):
    trainer = trainer_of(tmp_path, [Checkpoints(monitor="val/lss")], max_steps=4, num_sanity_val_steps=1)
    with pytest.raises(UserError, match=r"val/lss is not logged.*there is: val/loss"):
        trainer.fit(Tiny(), Stream(4), Evaluation())


def test_going_back_drops_the_future(tmp_path):
    """After going back to an older checkpoint the newest one is of the new history."""
    fit(tmp_path, every=5)
    fit(tmp_path, every=4, max_steps=12, resume=tmp_path / "checkpoints" / "step-00000010.ckpt")
    assert names(tmp_path) == ["best.ckpt"] + [f"step-{n:08d}.ckpt" for n in (5, 10, 12)]


def test_leftovers_of_a_killed_process_go(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".tmp-step-00000005.ckpt.abc").write_bytes(b"half")
    fit(tmp_path, max_steps=5)
    assert names(tmp_path) == ["best.ckpt", "step-00000005.ckpt"]


def test_order_is_by_number(tmp_path):
    for name in ("step-00000009.ckpt", "step-100000000.ckpt", "step-x.ckpt", "best.ckpt", "step-00000010.ckpt"):
        (tmp_path / name).touch()
    assert [int(path.stem[5:]) for path in step_checkpoints(tmp_path)] == [100000000, 10, 9]


@pytest.mark.parametrize("options", [{"every_n_batches": 0}, {"keep_last": 0}, {"mode": "least"}])
def test_refuses_bad_settings(options):
    with pytest.raises(UserError):
        Checkpoints(**options)


class SaysWhich(Scripted):
    monitor = ("val/score", "max")


def test_the_family_may_say_what_is_best_and_it_is_remembered(tmp_path):
    scores = [0.5, 0.1, 0.9, 0.3, 0.7]

    def train_family(max_steps, resume=None):
        torch.manual_seed(0)
        checkpoints = Checkpoints(3, monitor="family")
        trainer = trainer_of(tmp_path, [checkpoints], max_steps=max_steps, val_check_interval=2)
        trainer.fit(SaysWhich(scores), Stream(max_steps), Evaluation(), ckpt_path=resume, weights_only=True)
        return checkpoints

    assert train_family(6).best_batch == 6
    again = train_family(10, step_checkpoints(tmp_path / "checkpoints")[0])
    assert (again.best_batch, again.best_score) == (6, pytest.approx(0.9))
