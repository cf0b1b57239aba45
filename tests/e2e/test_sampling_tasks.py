"""Training draws pictures of trajectories and latents, and `sample.py task=...` draws them from the checkpoint alone."""

import json

import pytest
from PIL import Image

from command import run_here

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trajectories")
    done = run_here(
        "train",
        "experiment=mnist/ddpm_conditional",
        "data=mnist_5k",
        "debug=fast",
        "network.channels=16",
        "sampler.num_steps=4",
        "run.id=tiny",
        f"paths.output_dir={folder}",
    )
    assert done.status == 0, done.err
    return folder / "mnist/ddpm_conditional/tiny"


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    sizes = [f"model.encoder.{key}=16" for key in ("trunk.channels", "hidden_dim")]
    done = run_here(
        "train",
        "experiment=mnist/vae_2d",
        "data=mnist_5k",
        "debug=fast",
        *sizes,
        "run.id=tiny",
        f"paths.output_dir={folder}",
    )
    assert done.status == 0, done.err
    return folder / "mnist/vae_2d/tiny"


@pytest.mark.parametrize("name", ["manifold", "latent_scatter", "interpolation", "latent_walk", "reconstructions"])
def test_training_leaves_pictures_of_latents(vae, name):
    with Image.open(vae / name / "step-00000002.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize(
    ("task", "files"),
    [
        ("manifold", ["manifold.png", "scatter.png"]),
        ("interpolate", ["interpolate.png"]),
        ("reconstruct", ["reconstruct.png"]),
    ],
)
def test_tasks_of_a_vae(command, vae, tmp_path, task, files):
    result = command("sample", f"ckpt={vae}/checkpoints/last.ckpt", f"task={task}", f"output_dir={tmp_path}")
    assert result.status == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*files, "settings.json"])


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["task=forward"], ["diffusion model", "holds a VAE"]),
        (["task=manifold", "num_images=10"], ["num_images=10", "square"]),
    ],
    ids=["forward", "square"],
)
def test_what_a_vae_does_not_show_is_one_line(command, vae, arguments, fragments):
    result = command("sample", f"ckpt={vae}/checkpoints/last.ckpt", *arguments)
    assert result.status == 2
    assert len(result.err.strip().splitlines()) == 1
    assert all(fragment in result.err for fragment in fragments)


def test_training_leaves_its_pictures(trained):
    for name in (
        "forward/step-00000000.png",
        *(f"{kind}/step-00000002.png" for kind in ("reverse", "denoise", "loss_by_time")),
    ):
        with Image.open(trained / name) as picture:
            assert min(picture.size) > 100, name
    with Image.open(trained / "reverse/step-00000002.gif") as animation:
        assert animation.n_frames == 5


@pytest.mark.parametrize(
    ("task", "files"),
    [
        ("forward", ["forward.png"]),
        ("reverse", ["reverse.gif", "reverse.png"]),
        ("denoise", ["denoise.png"]),
        ("interpolate", ["interpolate.png"]),
        ("invert", ["invert.png"]),
    ],
)
def test_tasks(command, trained, tmp_path, task, files):
    checkpoint = trained / "checkpoints/last.ckpt"
    result = command(
        "sample", f"ckpt={checkpoint}", f"task={task}", "sampler.num_steps=3", f"output_dir={tmp_path}/{task}"
    )
    assert result.status == 0, result.err
    assert len(result.out.splitlines()) == 1
    for name in files:
        assert str(tmp_path / task / name) in result.out
    assert sorted(path.name for path in (tmp_path / task).iterdir()) == sorted([*files, "settings.json"])
    assert json.loads((tmp_path / task / "settings.json").read_text())["task"] == task


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["task=revers"], ["unknown task=revers", "did you mean reverse?"]),
        (["task=denoise", "strength=1.2"], ["strength=1.2", "(0, 1]"]),
        (["task=denoise", "strenth=0.5"], ["strenth", "did you mean strength?"]),
        (["task=manifold"], ["2 latents", "holds a DDPM"]),
        (["task=forward", "num_images=501"], ["num_images=501", "500"]),
        (["task=invert", "sampler=ancestral"], ["sampler", "ancestral"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_bad_input_is_one_line(command, trained, arguments, fragments):
    result = command("sample", f"ckpt={trained}/checkpoints/last.ckpt", *arguments)
    assert result.status == 2
    assert len(result.err.strip().splitlines()) == 1
    for fragment in fragments:
        assert fragment.lower() in result.err.lower()
