"""One experiment per family through the entry points, then its checkpoint alone in the other entry points and in Python."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import trilemma
from command import run

pytest.importorskip("mlxtend")


def test_a_run_directory_holds_what_the_readme_says(runs):
    folder = runs / "demo/vq_diffusion/tiny"
    for name in (
        "config.yaml",
        "splits.yaml",
        "versions.txt",
        "commands.txt",
        "metrics.csv",
        "run.json",
        "checkpoints/last.ckpt",
    ):
        assert (folder / name).is_file(), name
    assert "facts" in (folder / "config.yaml").read_text()


def test_sample_writes_the_fields_formats(prior, tmp_path):
    run(
        "sample",
        f"ckpt={prior}",
        "num_images=12",
        "sampler.num_steps=3",
        "guidance.scale=2",
        "condition.label=7",
        "num_png=4",
        f"output_dir={tmp_path}",
    )
    content = np.load(tmp_path / "samples.npz")
    assert content["arr_0"].shape == (12, 28, 28, 1)
    assert content["arr_0"].dtype == np.uint8
    assert content["arr_1"].tolist() == [7] * 12
    assert len(list((tmp_path / "png").glob("*.png"))) == 4
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] > 280
    assert json.loads((tmp_path / "settings.json").read_text())["sampler"]["num_steps"] == 3
    with Image.open(tmp_path / "png/000003.png") as picture:
        fourth = np.asarray(picture)
    assert (fourth.reshape(28, 28) == content["arr_0"][3, :, :, 0]).all()


def test_evaluate_writes_a_row_with_its_protocol(command, prior, cache, tmp_path):
    done = command(
        "evaluate",
        f"ckpt={prior}",
        "num_images=20",
        "sampler.num_steps=2",
        f"output_dir={tmp_path}",
        f"cache_dir={cache}",
        "ledger.max_seconds=0.2",
    )
    assert done.status == 0, done.err
    rows = list(tmp_path.glob("*.json"))
    assert len(rows) == 1
    row = json.loads(rows[0].read_text())
    assert row["protocol"]["num_images"] == 20
    assert row["protocol"]["tier"] == "smoke"
    assert row["protocol"]["sampler"]["num_steps"] == 2
    assert any(name.startswith("FD[mnist-") for name in row["metrics"])
    assert 0 <= row["metrics"]["label_accuracy"] <= 1
    assert row["floor"]["label_accuracy"] > 0.9


def test_a_codec_is_evaluated_by_its_reconstructions(command, runs, cache, tmp_path):
    [codec] = (runs / "demo/vqvae").glob("auto-*/checkpoints/last.ckpt")
    assert command("evaluate", f"ckpt={codec}", f"output_dir={tmp_path}", f"cache_dir={cache}").status == 0
    row = json.loads((tmp_path / "demo-vqvae-reconstruction.json").read_text())
    assert {"psnr", "ssim", "codebook_perplexity"} <= row["metrics"].keys()


def test_python_use(prior):
    model = trilemma.load(prior)
    images = model.sample(3, condition=7)
    assert images.shape == (3, 1, 28, 28)
    assert images.min() >= -1
    assert images.max() <= 1
    assert len(trilemma.to_pil(images)) == 3
    assert trilemma.to_pil(images)[0].size == (28, 28)
    assert not any(p.requires_grad for p in model.parameters())
    raw = trilemma.load(prior, weights="raw")
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), raw.parameters(), strict=True))


def test_a_checkpoint_needs_nothing_beside_it(prior, tmp_path):
    moved = tmp_path / "elsewhere.ckpt"
    moved.write_bytes(prior.read_bytes())
    assert torch.equal(
        trilemma.load(moved).sample(2, condition=1, seed=5), trilemma.load(prior).sample(2, condition=1, seed=5)
    )


def test_help_lists_the_groups():
    text = run("train", "--help").stdout
    for group in ("experiment", "model", "codec", "process", "sampler", "guidance", "data", "debug"):
        assert group in text
    assert "experiment=mnist/vq_diffusion" in text
    listed = next(line for line in text.splitlines() if line.startswith("experiment/mnist: "))
    assert {"ddpm", "latent_ddpm_kl", "vq_diffusion", "vqvae"} <= set(listed.partition(": ")[2].split(", "))


def test_a_run_that_was_started_otherwise_says_what_differs(command, runs):
    again = ["experiment=demo/vq_diffusion", "debug=fast", "network.dim=32", "network.depth=1", "run.id=tiny"]
    result = command("train", *again, "codec.overrides=['debug=fast']", "optimizer.lr=0.25", "seed=5", output_dir=runs)
    assert result.status == 2
    [line] = result.err.splitlines()
    assert "what differs: " in line
    assert "seed (0 -> 5)" in line
    assert "-> 0.25)" in line
    assert "run.resume=" in line
