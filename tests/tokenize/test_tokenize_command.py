"""`python -m trilemma.tokenize`: as it is typed, in several processes, killed, and with what is wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trilemma.cli.main import explain, register_resolvers
from trilemma.cli.tokenize import tokenize
from trilemma.cli.train import train
from trilemma.config import CONF
from trilemma.config.build import build
from trilemma.config.nodes import plain
from trilemma.data.codes import read_folder
from trilemma.errors import UserError
from trilemma.first_stage.model import checkpoint_config

SMALL = (
    "model.codec.encoder.channels=8",
    "model.codec.encoder.num_res_blocks=1",
    "model.codec.quantizer.kmeans_init=false",
    "model.codec.quantizer.codebook_size=16",
)


def write_images(folder, num=40, side=8):
    """PNG files in two classes."""
    from trilemma.figures.images import save_png, to_pil

    images = torch.randint(256, (num, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for i, image in enumerate(to_pil(images)):
        target = folder / ("even", "odd")[i % 2]
        target.mkdir(parents=True, exist_ok=True)
        save_png(image, target / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def compose_with():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        always = ["paths.run_dir=run"]
        yield lambda name, *given: compose(name, [*always, *["experiment_name=test"] * (name == "train"), *given])


@pytest.fixture
def composed(compose_with, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return compose_with


def write_codec(composed, path, experiment="images/vqvae", seed=1, shape=(3, 8, 8)):
    """A checkpoint of a first stage with weights of its own."""
    torch.manual_seed(seed)
    cfg = composed("train", f"experiment={experiment}", "run.id=x", "data.root=x", *SMALL)
    cfg.facts.image_shape = list(shape)
    model = build(plain(cfg, "model"))
    return save(model, cfg, path)


def save(model, cfg, path):
    model.config = checkpoint_config(cfg)
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def kept_codec(compose_with, tmp_path_factory):
    return write_codec(compose_with, tmp_path_factory.mktemp("codec") / "codec.ckpt")


@pytest.fixture
def codec(kept_codec, tmp_path):
    return shutil.copy(kept_codec, tmp_path / "codec.ckpt")


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


def options(images, **more):
    return [
        "data=image_folder",
        f"data.root={images}",
        "data.size=8",
        "data.batch_size=4",
        "paths.cache_dir=cache",
        *(f"{k}={v}" for k, v in more.items()),
    ]


def content(folder):
    """Of what has its name; what a killed process was writing goes within the hour."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.startswith(".tmp-")}


def test_codes_go_to_where_training_looks_for_them(composed, codec, images, capsys, monkeypatch):
    tokenize(composed("tokenize", f"ckpt={codec}", *options(images)))
    assert "36 train, 2 val, 2 test images as uint8 codes, 0.0 MB: cache/codes/" in capsys.readouterr().out
    monkeypatch.setattr("trilemma.first_stage.shards.CodeMaker._write", None)  # made again, it would fail
    experiment = ["experiment=images/vq_diffusion", "network.dim=16", "network.depth=1", "network.num_heads=1"]
    few = ["trainer.max_steps=1", "data.batch_size=4", "logger=none", "callbacks=none", "run.id=a"]
    train(composed("train", *experiment, f"codec.checkpoint={codec}", *options(images), *few))


def test_a_prior_trains_from_tokens_alone_and_carries_its_codec(composed, codec, images, tmp_path, capsys):
    from trilemma.checkpoints.load import load_with_config
    from trilemma.checkpoints.loaded import data_of

    tokenize(composed("tokenize", f"ckpt={codec}", *options(images), "output_dir=tokens"))
    images.rename(tmp_path / "moved")
    experiment = ["experiment=images/vq_diffusion", "network.dim=16", "network.depth=1", "network.num_heads=1"]
    few = ["trainer.max_steps=2", "trainer.val_check_interval=1", "data.batch_size=4", "logger=none", "run.id=a"]
    few += ["paths.output_dir=.", "callbacks.checkpoint.every_n_batches=1"]
    train(composed("train", *experiment, *few, f"codec.checkpoint={codec}", "data=tokens", "data.root=tokens"))
    [path] = Path("run/checkpoints").glob("*2.ckpt")
    model, config = load_with_config(path)
    assert model.sample(2, condition=[0, 1]).shape == (2, 3, 8, 8)
    assert data_of(config, str(tmp_path / "moved")).split("test").images[:].shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match=r"codec\.checkpoint=PATH \(a VQ with codes of shape \(2, 2\), hash \w{16}\)"):
        train(composed("train", *experiment, *few, "run.resume=never", "data=tokens", "data.root=tokens"))
    with pytest.raises(UserError, match="trains priors of a first stage"):
        train(composed("train", "experiment=images/vqvae", *few, "run.resume=never", "data=tokens", "data.root=tokens"))


def test_latents_before_the_quantiser(composed, codec, images):
    tokenize(composed("tokenize", f"ckpt={codec}", *options(images), "output_dir=tokens", "read_as=vq_latents"))
    made = read_folder(Path("tokens"))
    assert made.meta["codec"]["name"] == "VQLatents"
    assert made.codes("train").dtype == torch.float32


def test_a_foreign_codec_is_refused(composed, codec, images, tmp_path):
    tokenize(composed("tokenize", f"ckpt={codec}", *options(images), "output_dir=tokens"))
    before = content("tokens")
    other = write_codec(composed, tmp_path / "other.ckpt", seed=2)
    with pytest.raises(
        UserError, match=r"tokens holds codes by another codec \(hash \w{16}, and this one's is \w{16}\)"
    ):
        tokenize(composed("tokenize", f"ckpt={other}", *options(images), "output_dir=tokens"))
    assert content("tokens") == before


def test_what_is_damaged_is_made_again(composed, codec, images, capsys):
    command = ["tokenize", f"ckpt={codec}", *options(images), "output_dir=tokens"]
    tokenize(composed(*command))
    before = content("tokens")
    harmed = bytearray(before["train-00000.npy"])
    harmed[-1] ^= 1
    Path("tokens/train-00000.npy").write_bytes(harmed)
    tokenize(composed(*command))
    assert content("tokens")["train-00000.npy"] == harmed
    tokenize(composed(*command, "verify=true"))
    assert content("tokens") == before
    assert "damaged, made again: tokens/train-00000.npy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "no images to encode: name a data set"),
        (["ckpt=nowhere.ckpt"], r"nowhere\.ckpt"),
        (["+typo=1"], "unknown override typo"),
        (["+data.rot=1"], r"unknown override data\.rot: did you mean data\.root\?"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["batch_size=x"], "batch_size=x: int or nothing"),
        (["num_threads=0"], "num_threads=0"),
        (["device=quantum"], "device=quantum cannot be used"),
        (["read_as=vq_latent"], "read_as=vq_latent: choose vq_latents"),
        (["data.size=16"], r"ckpt=.* was trained on images of shape \(3, 8, 8\), and data gives \(3, 16, 16\)"),
        (["data=tokens", "data.root=x"], "data=tokens holds codes already"),
        (["output_dir=codec.ckpt/x"], "cannot write to codec.ckpt/x"),
        (["weights=best"], "weights=best: choose one of ema, raw"),
    ],
    ids=lambda value: (value[0].partition("=")[0] if value else "no data") if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(composed, codec, images, overrides, message):
    given = options(images)
    if not overrides or overrides[0].startswith("data="):
        given = ["paths.cache_dir=cache"]
    with pytest.raises(UserError, match=message):
        tokenize(composed("tokenize", f"ckpt={codec}", *given, *overrides))


def test_a_misspelt_group_gets_a_hint(composed):
    from hydra.errors import HydraException

    with pytest.raises(HydraException) as caught:
        composed("tokenize", "ckpt=x", "data=mnits")
    assert "did you mean mnist?" in explain(caught.value)


def test_a_checkpoint_without_a_learned_codec_is_refused(composed, images, tmp_path):
    path = write_pixel_checkpoint(composed, tmp_path / "ddpm.ckpt")
    with pytest.raises(UserError, match="a Pixels learned nothing"):
        tokenize(composed("tokenize", f"ckpt={path}", *options(images)))


def write_pixel_checkpoint(composed, path):
    cfg = composed(
        "train", "experiment=cifar10/ddpm", "run.id=x", "network.channels=8",
        "network.num_res_blocks=1", "network.channel_mults=[1]", "network.attention_resolutions=[]",
    )  # fmt: skip
    cfg.facts.image_shape = [3, 8, 8]
    cfg.facts.code_shape = [3, 8, 8]
    return save(build(plain(cfg, "model")), cfg, path)


def command(codec, *overrides, ranks=1):
    head = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *head, "-m", "trilemma.tokenize", f"ckpt={codec}", *overrides]


def family(pid):
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    below = children.read_text().split() if children.exists() else []
    return [pid, *(p for child in below for p in family(int(child)))]


def test_as_it_is_typed(composed, codec, images, tmp_path):
    """Two ranks of torchrun equal one process, bit for bit."""
    tokenize(composed("tokenize", f"ckpt={codec}", *options(images, shard_size=4), "output_dir=one"))
    more = [*options(images, shard_size=4), "output_dir=two"]
    done = subprocess.run(command(codec, *more, ranks=2), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'images'}: 40 images of 2 classes",
        "36 train, 2 val, 2 test images as uint8 codes, 0.0 MB: two",
    ]
    assert content("two") == content("one")


@pytest.mark.slow
def test_all_of_mnist_on_two_ranks_killed_at_random_moments(composed, data_dir, tmp_path):
    """60,000 + 10,000 images: two ranks equal one bit for bit, through ten kill -9 of a rank or of all, at random moments."""
    import random

    codec = write_codec(composed, tmp_path / "codec.ckpt", "mnist/vqvae", 1, (1, 28, 28))
    rng = random.Random(0)
    given = ["data=mnist", f"data.root={data_dir / 'mnist'}", "shard_size=1024"]
    subprocess.run(command(codec, *given, "output_dir=one"), check=True, timeout=600)
    subprocess.run(command(codec, *given, "output_dir=two", ranks=2), check=True, timeout=600)
    assert content("one") == content("two")
    kills = 0
    while kills < 10:
        if read_folder(Path("killed")) is not None:  # a rank that was left made the rest
            assert content("killed") == content("one")
            shutil.rmtree("killed")
        ranks, stood = 1 + kills % 2, len(list(Path("killed").glob("*.npy")))
        process = subprocess.Popen(command(codec, *given, "output_dir=killed", ranks=ranks), start_new_session=True)
        while len(list(Path("killed").glob("*.npy"))) <= stood and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            continue
        victims = family(process.pid)
        # torchrun itself ends the other rank when one is gone.
        for pid in [rng.choice(victims[1:])] if ranks > 1 and kills % 4 == 1 else victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(60)
        kills += 1
        assert len(list(Path("killed").glob("*.npy"))) >= stood
    subprocess.run(command(codec, *given, "output_dir=killed", ranks=2), check=True, timeout=600)
    assert content("killed") == content("one")
    other = write_codec(composed, tmp_path / "other.ckpt", "mnist/vqvae", 2, (1, 28, 28))
    refused = subprocess.run(command(other, *given, "output_dir=killed", ranks=1), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "holds codes by another codec" in refused.stderr
    assert OmegaConf.create(dict(read_folder(Path("killed")).meta)).splits.train.shards[0].size == 1024
