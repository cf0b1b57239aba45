import random
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image

from browser import console_and_requests, needs_browser, probe
from pages import check_page
from tiny_run import Stream, Tiny, fit, seed_all, trainer_of
from trilemma.callbacks import run_report
from trilemma.callbacks.checkpoint import Checkpoints
from trilemma.callbacks.pictures.grids import Reconstructions, SampleGrid
from trilemma.callbacks.run_page import METRICS, read_metrics, run_page
from trilemma.callbacks.run_report import RunReport
from trilemma.errors import UserError
from trilemma.loggers import csv_file as csv_logger
from trilemma.loggers.csv_file import CSVLogger
from trilemma.quiet import quieten


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    quieten()


class HeldOut:
    """One batch, each time anew."""

    def __len__(self):
        return 1

    def __iter__(self):
        return iter([{"image": torch.ones(3, 1, 4, 4)}])


class Painter(Tiny):
    """Samples and reconstructs, both in a few greys."""

    def loss(self, batch):
        return super().loss({"image": batch["image"].flatten(1)[:, :3]})

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch["image"].flatten(1)[:, :3]).square().mean())

    def examples(self, num):
        return None

    def sample(self, num_images, *, condition=None, sampler=None, guidance=None, seed=0, first_index=0, on_step=None):
        return torch.linspace(-1, 1, num_images * 16).view(num_images, 1, 4, 4)

    def reconstruct(self, images):
        return -images


def train(folder, *reports, num_batches=6, model=None):
    seed_all()
    pictures = [SampleGrid(2, num_rows=2, num_columns=2), Reconstructions(2)]
    callbacks = [
        *reports,
        *pictures,
        Checkpoints(3, monitor="val/loss"),
    ]  # Lightning itself moves checkpoints to the end
    trainer = trainer_of(folder, callbacks, max_steps=num_batches, val_check_interval=2, logger=CSVLogger(folder))
    trainer.fit(model or Painter(), Stream(num_batches, (2, 1, 4, 4)), HeldOut())
    return trainer


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "outputs" / "toy" / "<b>model" / "first"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0 # <script>alert(1)</script>\n")
    train(folder, RunReport())
    return folder


def test_the_end_of_a_run_is_told(run_dir):
    read = check_page((run_dir / "report.html").read_text())
    text = "".join(read.text)
    assert "toy/<b>model/first" in text
    assert re.search(r"Finished: 6 of 6 batches; written \d{4}-\d\d-\d\d", text)
    assert "<script>alert(1)</script>" in text
    for words in ("train/loss", "val/loss", "After batch 6", "step-00000006.ckpt", "best.ckpt"):
        assert words in text, words
    assert len(read.sources) == 2  # the newest samples and the newest reconstructions


def test_the_page_begins_with_the_figure_the_command_and_the_samples(run_dir):
    (run_dir / "commands.txt").write_text("python train.py first\npython train.py second\n")
    text = "".join(check_page(run_page(run_dir, status="s", monitor=("val/loss", "min"))).text)
    best = min(value for _, value in read_metrics(run_dir / "metrics.csv")["val/loss"])
    places = [
        text.index(words)
        for words in (f"{best:.5g} at its best", "python train.py second", "Samples", "Curves", "Checkpoints")
    ]
    assert places == sorted(places)


def test_the_loss_of_all_times_is_one_panel(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val/loss_t00,val/loss_t09\n1,2,1\n2,1.5,0.5\n")
    text = run_page(tmp_path, status="s")
    assert re.findall(r"<figure><h3>(.*?)</h3>", text) == ["loss by time"]
    assert "t in (0.0, 0.1]" in text
    assert "t in (0.9, 1.0]" in text


def test_last_least_and_greatest_are_those_of_the_file(run_dir):
    text = (run_dir / "report.html").read_text()
    points = read_metrics(run_dir / "metrics.csv")["train/loss"]
    values = [value for _, value in points]
    line = re.search(r'<th scope="row">train/loss</th>(.*?)</tr>', text)
    cells = re.findall(r"<td>(.*?)</td>", line[1])
    assert cells[::2] == [f"{value:.5g}" for value in (values[-1], min(values), max(values))]


def test_a_run_is_the_same_with_a_report(tmp_path):
    def outcome(folder, *callbacks):
        trainer = fit(folder, max_steps=6, every=3, extra=callbacks)
        weights = [p.detach().clone() for p in trainer.model.parameters()]
        return weights, torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002

    (bare, *rest), (reported, *others) = outcome(tmp_path / "a"), outcome(tmp_path / "b", RunReport(0.0))
    assert all(torch.equal(p, q) for p, q in zip(bare, reported, strict=True))
    assert rest == others
    assert (tmp_path / "b" / "report.html").is_file()


class Clock:
    def __init__(self, seconds_a_page):
        self.now, self.seconds_a_page, self.pages = 0.0, seconds_a_page, []

    def monotonic(self):
        return self.now

    def page(self, folder, *, status, monitor):
        self.pages.append((self.now, status.partition(";")[0]))
        self.now += self.seconds_a_page
        return "page"


@pytest.mark.parametrize(("cost", "first", "second"), [(0.1, 60, 150), (2.0, 60, 270)])
def test_pages_are_a_minute_apart_and_a_hundredth_of_the_time(tmp_path, monkeypatch, cost, first, second):
    """Validations every 30 seconds: a page of 0.1 s waits for 60 s after its end, one of 2 s for 200 s."""
    clock = Clock(cost)
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(run_report, "run_page", clock.page)

    class Slow(Painter):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            clock.now = 30 * round((clock.now + 30) / 30)

    train(tmp_path, RunReport(), model=Slow(), num_batches=20)
    assert [at for at, _ in clock.pages][:2] == [first, second]
    assert clock.pages[-1][1] == "Finished: 20 of 20 batches"
    assert {status.partition(":")[0] for _, status in clock.pages[:-1]} == {"Running"}


@pytest.mark.parametrize("error", [OSError("disk on fire"), UserError("cannot write report.html: disk on fire")])
def test_training_goes_on_where_nothing_can_be_written(tmp_path, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(run_report, "run_page", refuse)
    with pytest.warns(UserWarning, match="the run report was not written: .*disk on fire"):
        trainer = train(tmp_path, RunReport(0.0))
    assert trainer.global_step == 6


def test_a_picture_that_is_none_is_a_warning(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-99999999.png").write_text("torn")
    with pytest.warns(UserWarning, match="cannot identify image file"):
        train(tmp_path, RunReport())


def test_a_run_that_is_stopped_says_how_far_it_came(tmp_path):
    class Breaks(Painter):
        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="broken"):
        train(tmp_path, RunReport(), model=Breaks())
    assert re.search(r"Stopped: [45] of 6 batches", (tmp_path / "report.html").read_text())


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, [])
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    RunReport().teardown(trainer, Tiny(), "fit")
    assert not list(tmp_path.iterdir())


def test_the_file_of_metrics_is_the_loggers():
    assert csv_logger.FILE == METRICS


def test_metrics_are_read_from_whatever_a_file_holds(tmp_path):
    path = tmp_path / METRICS
    assert read_metrics(path) == {}
    path.write_text("")
    assert read_metrics(path) == {}
    path.write_text("step,epoch,a,b\n9,0,1,\n,0,7,7\n3,0,nan,x\n9,0,2,5,6\n7,0\nx,0,1,1\n11,0,3")
    found = read_metrics(path)
    assert found.keys() == {"a", "b"}
    (step, value), *rest = found["a"]
    assert (step, value != value, rest) == (3.0, True, [(9.0, 2.0)])  # the later row of a step; half a line is none
    assert found["b"] == ((9.0, 5.0),)


def test_an_empty_directory_has_a_page(tmp_path):
    assert "waiting" in check_page(run_page(tmp_path, status="waiting")).text


def test_a_metric_that_is_never_finite_is_listed_and_not_drawn(tmp_path):
    (tmp_path / METRICS).write_text("step,epoch,train/loss\n1,0,nan\n2,0,inf\n")
    read = check_page(run_page(tmp_path, status="s"))
    assert "svg" not in read.tags
    assert "train/loss" in read.text


def test_large_pictures_are_shrunk(tmp_path):
    (tmp_path / "samples").mkdir()
    Image.new("L", (3000, 3000)).save(tmp_path / "samples" / "step-00000010.png")
    assert 'width="900" height="900"' in run_page(tmp_path, status="s")


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="min_seconds=-1"):
        RunReport(-1)


@needs_browser
def test_in_a_browser(run_dir, tmp_path):
    assert console_and_requests(run_dir / "report.html", tmp_path) == ([], [])
    found = probe(run_dir / "report.html", tmp_path, width=390)
    assert (found["content"], found["broken"], found["overlaps"]) == (390, 0, [])
