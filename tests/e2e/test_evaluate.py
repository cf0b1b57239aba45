"""`evaluate.py` with sweeps, reports and what may go wrong, on a prior of two training steps."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trilemma.cli.measurements as evaluation
import trilemma.measuring.measure as measure

pytest.importorskip("mlxtend")
QUICK = ["ledger.batch_sizes=[1,2]", "ledger.max_seconds=0.2", "likelihood.num_images=2", "num_images=20"]


@pytest.fixture
def evaluate(command, prior, cache, tmp_path):
    """evaluate("num_images=30") -> Result; rows go to `tmp_path`."""

    def call(*arguments):
        target = [] if any(a.startswith(("ckpt", "rows")) for a in arguments) else [f"ckpt={prior}"]
        where = [] if any(a.startswith("output_dir") for a in arguments) else [f"output_dir={tmp_path}"]
        return command("evaluate", *target, *where, f"cache_dir={cache}", *QUICK, *arguments)

    return call


def rows_in(folder):
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


SWEEP = ["sweep.num_steps=[2,3]", "sweep.scale=[0,2]"]


def test_a_sweep_writes_a_row_a_setup_and_a_frontier(evaluate, tmp_path):
    result = evaluate(*SWEEP)
    assert result.status == 0, result.err
    rows = rows_in(tmp_path)
    settings = {(r["protocol"]["sampler"]["num_steps"], r["protocol"]["guidance"]["scale"]) for r in rows.values()}
    assert settings == {(2, 0), (2, 2), (3, 0), (3, 2)}
    assert (tmp_path / "frontier.png").is_file()
    for name, row in rows.items():
        steps, scale = row["protocol"]["sampler"]["num_steps"], row["protocol"]["guidance"]["scale"]
        network = {p["name"]: p["evaluations_per_image"] for p in row["ledger"]["work"]["subnetworks"]}["network"]
        assert network == steps * (2 if scale == 2 else 1)
        assert {"likelihood", "two_stage", "copycat"} <= row.keys()
        stem = name.removesuffix(".json")
        assert (tmp_path / f"{stem}.png").is_file()
        assert (tmp_path / f"{stem}-neighbours.png").is_file()
    assert len({json.dumps(row["two_stage"]) for row in rows.values()}) == 1


def test_a_sweep_that_was_stopped_loses_one_part_and_goes_on(evaluate, tmp_path, monkeypatch):
    calls = []
    true_draw, true_ledger = measure.draw, measure.measure_ledger

    def dies_in_the_third_setup(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append("draw")
        return true_draw(*arguments)

    monkeypatch.setattr(measure, "draw", dies_in_the_third_setup)
    assert evaluate(*SWEEP).status == 130
    kept = rows_in(tmp_path)
    assert len(kept) == 2

    def dies_in_the_ledger(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "draw", lambda *a: (calls.append("draw"), true_draw(*a))[1])
    monkeypatch.setattr(measure, "measure_ledger", dies_in_the_ledger)
    assert evaluate(*SWEEP).status == 130
    assert len(rows_in(tmp_path)) == 3
    monkeypatch.setattr(measure, "measure_ledger", true_ledger)
    result = evaluate(*SWEEP)
    assert result.status == 0
    assert result.out.count(": kept") == 2
    assert result.out.count(": measuring") == 2
    assert len(calls) == 4  # no samples are drawn twice, those of the setup whose ledger was cut short neither
    after = rows_in(tmp_path)
    assert len(after) == 4
    assert {name: after[name] for name in kept} == kept
    again = evaluate(*SWEEP)
    assert again.out.count(": kept") == 4
    assert len(calls) == 4


def only(folder):
    [row] = rows_in(folder).values()
    return row


def test_parts_that_are_asked_for_otherwise_are_measured_anew_and_no_others(evaluate, tmp_path, monkeypatch):
    base = ["sampler.num_steps=2", "ledger.max_seconds=0"]
    assert evaluate(*base, "likelihood.num_images=0").status == 0
    first = only(tmp_path)
    assert "likelihood" not in first
    assert first["two_stage"]["prior_bits_per_image"] is None
    monkeypatch.setattr(measure, "draw", None)  # the samples stand
    assert evaluate(*base, "likelihood.num_images=2").status == 0
    second = only(tmp_path)
    nats = second["likelihood"]["nats_per_image"]
    assert second["two_stage"]["prior_bits_per_image"] == pytest.approx(nats / math.log(2))
    assert evaluate(*base, "likelihood.num_images=3").status == 0
    third = only(tmp_path)
    assert third["likelihood"]["num_images"] == 3
    assert third["two_stage"]["prior_bits_per_image"] != second["two_stage"]["prior_bits_per_image"]
    assert evaluate("sampler.num_steps=2", "likelihood.num_images=3", "ledger.batch_sizes=[1]").status == 0
    assert evaluate("sampler.num_steps=2", "likelihood.num_images=3", "ledger.batch_sizes=[2]").status == 0
    last = only(tmp_path)
    assert [rate["batch_size"] for rate in last["ledger"]["throughput"]["tried"]] == [2]
    assert last["likelihood"] == third["likelihood"]
    assert last["metrics"] == first["metrics"]


def test_a_row_of_another_checkpoint_is_moved_aside(evaluate, runs, tmp_path):
    base = ["sampler.num_steps=2", "ledger.max_seconds=0", "likelihood.num_images=0"]
    assert evaluate(*base).status == 0
    first = only(tmp_path)
    other = runs / "demo/vq_diffusion/other/checkpoints/last.ckpt"
    result = evaluate(f"ckpt={other}", *base)
    assert result.status == 0
    assert result.out.count("is of another protocol; it is kept as") == 1
    rows = rows_in(tmp_path)
    assert len(rows) == 2
    assert first in rows.values()


def test_samples_may_be_kept_later(evaluate, tmp_path):
    base = ["sampler.num_steps=2", "ledger.max_seconds=0", "likelihood.num_images=0"]
    assert evaluate(*base).status == 0
    assert not list(tmp_path.glob("*.npz"))
    assert evaluate(*base, "keep_samples=true").status == 0
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_another_seed_or_setting_is_another_row(evaluate, tmp_path):
    for change in ([], ["seed=1"], ["sampler.temperature=0.5"], ["sampler.truncation=0.9"], ["condition.label=7"]):
        assert evaluate("sampler.num_steps=2", *change).status == 0
    rows = rows_in(tmp_path)
    assert len(rows) == 5  # none overwrites another
    hashes = {row["protocol"]["seed"]: row["samples_sha256"] for row in rows.values()}
    assert hashes[0] != hashes[1]


def test_kept_samples_are_those_of_the_row(evaluate, tmp_path):
    assert evaluate("sampler.num_steps=2", "keep_samples=true", "ledger.max_seconds=0").status == 0
    import numpy as np
    import torch

    from trilemma.evaluation.features.cache import images_sha256

    [(name, row)] = rows_in(tmp_path).items()
    assert "ledger" not in row
    images = np.load((tmp_path / name).with_suffix(".npz"))["arr_0"]
    assert images_sha256(torch.from_numpy(images).permute(0, 3, 1, 2)) == row["samples_sha256"]


def test_a_report_on_two_checkpoints_and_on_their_rows(evaluate, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    both = [str(runs / f"demo/vq_diffusion/{name}/checkpoints/last.ckpt") for name in ("tiny", "other")]
    result = evaluate(f"ckpts=[{','.join(both)}]", "sampler.num_steps=2", "ledger.max_seconds=0")
    assert result.status == 0, result.err
    page = (tmp_path / "report.html").read_text()
    folders = [runs / f"demo/vq_diffusion/{name}/evaluation" for name in ("tiny", "other")]
    rows = [row for folder in folders for row in rows_in(folder).values()]
    assert len(rows) == 2
    for row in rows:
        assert row["protocol"]["checkpoint"] in page
    listed = ",".join(map(str, folders))
    again = evaluate(f"rows=[{listed}]", f"output_dir={tmp_path}/again", "logger=wandb")
    assert again.status == 0, again.err
    assert (tmp_path / "again/report.html").is_file()
    logged = list((tmp_path / "again/wandb").glob("offline-run-*-report-*/files/media/images/eval/*.png"))
    assert {path.name.partition("_")[0] for path in logged} >= {"trilemma", "samples"}
    (folders[0] / "note.json").write_text("{}")
    name, few = next(iter(rows_in(folders[0]).items()))
    few["protocol"]["num_images"] = 9
    (folders[1] / "few.json").write_text(json.dumps(few))
    third = evaluate(f"rows=[{listed}]", f"output_dir={tmp_path}/third")
    assert third.status == 0
    assert f"passed over: {folders[0] / 'note.json'}" in third.out
    assert "passed over: few was scored with a number of images of 9" in third.out
    named = evaluate(f"rows=[{folders[0] / name},{folders[1] / 'few.json'}]", f"output_dir={tmp_path}/named")
    assert named.status == 2
    assert "not comparable" in named.err
    (folders[0] / "note.json").unlink()
    (folders[1] / "few.json").unlink()
    assert evaluate(f"rows='{folders[0]}/*.json'", f"output_dir={tmp_path}/fourth").status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["num_images=1"], "at least 6"),
        (["likelihood.num_images=1"], "at least 2 images"),
        (["ledger.batch_sizes=[]"], "at least one whole number"),
        (["ledger.batch_sizes=[a]"], "at least one whole number"),
        (["logger=wandb", "logger.wandb.mode=ofline"], "choose one of auto, online"),
        (["extractor=fashion_mnist", "logger=wandb", "logger.wandb.project=a/b"], "project"),
        (["logger=wandb", "experiment=oracle/gaussian_metrics", "ckpt=null"], "of which wandb gets nothing"),
        (["sweep.num_steps=[]"], "sweep.num_steps is empty"),
        (["sweep.num_steps=[2,x]"], "'x' is not a whole number"),
        (["sweep.num_steps=[2,0]"], "num_steps"),
        (["sweep.sampler=[dpm]"], "no such sampler; choose from ancestral"),
        (["sweep.steps=[1]"], "unknown override sweep.steps: did you mean sweep.num_steps?"),
        (["ledger.max_second=1"], "did you mean ledger.max_seconds?"),
        (["rows=/nowhere"], "cannot read"),
        (["rows='/nowhere/*.json'"], "no file has such a name"),
        (["rows=conf"], "holds no rows"),
        (["ckpts=[]"], "names no checkpoint"),
        (["ckpt=a", "rows=b"], "one of ckpt=PATH"),
        (["ckpt=null"], "one of ckpt=PATH"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_drawn(evaluate, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(measure, "draw", None)
    result = evaluate(*arguments)
    assert result.status == 2
    assert words in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not rows_in(tmp_path)


def test_a_checkpoint_named_twice_is_refused(evaluate, prior):
    result = evaluate(f"ckpts=[{prior},{prior.parent}/./{prior.name}]")
    assert result.status == 2
    assert "are the same checkpoint: name it once" in result.err


def test_a_checkpoint_that_draws_nothing_is_refused_in_a_report(evaluate, runs, prior):
    [codec] = (runs / "demo/vqvae").glob("auto-*/checkpoints/last.ckpt")
    result = evaluate(f"ckpts=[{prior},{codec}]")
    assert result.status == 2
    assert "VQVAE, which draws no images: leave it out of ckpts" in result.err


def test_rows_of_other_data_or_extractors_are_refused(evaluate, tmp_path):
    assert evaluate("sampler.num_steps=2", "ledger.max_seconds=0").status == 0
    [(name, row)] = rows_in(tmp_path).items()
    for key, other in (("data_fingerprint", "00" * 32), ("extractor", "mnist-00000000"), ("num_images", 21)):
        folder = tmp_path / key
        folder.mkdir()
        changed = json.dumps({**row, "protocol": {**row["protocol"], key: other}})
        (folder / name).write_text(changed)
        result = evaluate(f"rows=[{tmp_path / name},{folder}]", f"output_dir={tmp_path}/report")
        assert result.status == 2, key
        assert len(result.err.strip().splitlines()) == 1


def test_a_corrupt_cache_is_made_again(command, prior, cache, tmp_path):
    mine = tmp_path / "cache"
    shutil.copytree(cache, mine)
    asked = [f"ckpt={prior}", f"output_dir={tmp_path}", f"cache_dir={mine}", *QUICK, "sampler.num_steps=2"]
    assert command("evaluate", *asked).status == 0
    first = rows_in(tmp_path)
    for path in mine.rglob("*.*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for path in tmp_path.glob("*.json"):
        path.unlink()
    result = command("evaluate", *asked)
    assert result.status == 0
    assert "damaged" in result.out + result.err
    second = rows_in(tmp_path)
    for name, row in first.items():
        assert second[name]["metrics"] == row["metrics"]
        assert second[name]["two_stage"] == row["two_stage"]


def test_wandb_has_every_row_with_its_pictures(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert evaluate("sweep.num_steps=[2,3]", "logger=wandb", "ledger.max_seconds=0").status == 0
    segments = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(segments) == 2
    text = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", segments[0]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    row = next(row for row in rows_in(tmp_path).values() if row["protocol"]["sampler"]["num_steps"] == 2)
    for name in ("precision", "coverage", "authenticity"):
        assert f'"eval/{name}":{row["metrics"][name]:g}' in text.replace(" ", "")
    assert len(list(segments[0].glob("files/media/images/eval/*.png"))) == 2


def test_another_logger_is_refused(evaluate):
    result = evaluate("logger=tensorboard")
    assert result.status == 2
    assert "logs to wandb or not at all" in result.err


def test_checkpoints_of_two_data_sets_are_refused_before_anything_is_drawn(evaluate, runs, monkeypatch):
    both = [runs / f"demo/vq_diffusion/{name}/checkpoints/last.ckpt" for name in ("tiny", "other")]
    true_load = evaluation.load_with_data

    def with_other_data(cfg, path):
        loaded = true_load(cfg, path)
        if path == str(both[1]):
            loaded.data._fingerprint = "00" * 32
        return loaded

    monkeypatch.setattr(evaluation, "load_with_data", with_other_data)
    monkeypatch.setattr(measure, "draw", None)
    result = evaluate(f"ckpts=[{both[0]},{both[1]}]")
    assert result.status == 2
    assert "one report compares models of one data set" in result.err
