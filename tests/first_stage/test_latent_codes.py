"""A prior gets the latents of a trained first stage: read as asked, measured once, cached, and the same when it goes on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trilemma.cli.main import register_resolvers
from trilemma.codecs.base import Codec
from trilemma.codecs.kl import KL
from trilemma.codecs.vq import VQ
from trilemma.codecs.vq_latents import VQLatents
from trilemma.config.build import build
from trilemma.config.nodes import drop_recipe, plain
from trilemma.data.base import ImageData, Split
from trilemma.data.images import to_float
from trilemma.errors import UserError
from trilemma.first_stage.codes import cached_codes, codec_hash
from trilemma.first_stage.model import build_model, checkpoint_config
from trilemma.processes.noise import TorchNoise
from trilemma.runs.facts import state_data

CONF = Path(__file__).parents[2] / "conf"
SIDE = 8


class Toy(ImageData):
    name = "toy"

    def __init__(self, *, flip=False):
        super().__init__(batch_size=6, flip=flip)

    def read(self):
        def split(size):
            images = torch.randint(
                256, (size, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)
            )
            return Split(images=images, labels=torch.arange(size) % 3, captions=None, index=torch.arange(size))

        return {"train": split(24), "val": split(9), "test": split(5)}, ["a", "b", "c"]


@pytest.fixture
def composed(tmp_path):
    """A training configuration with small networks."""
    register_resolvers()

    def make(experiment, data, *overrides):
        cfg = compose(
            "train",
            [
                f"experiment={experiment}",
                "experiment_name=test",
                f"paths.data_dir={tmp_path}/data",
                f"paths.output_dir={tmp_path}/outputs",
                f"paths.cache_dir={tmp_path}/cache",
                "run.id=x",
                *overrides,
            ],
        )
        state_data(cfg, data)
        return cfg

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield make


SMALL = ("model.codec.encoder.channels=8", "model.codec.encoder.num_res_blocks=1")
PRIOR = ("network.channels=8", "network.num_res_blocks=1", "network.image_size=2", "network.num_heads=1")


def save(model, path):
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def first_stage(composed, kind, path):
    """A checkpoint of a first stage with weights of its own."""
    torch.manual_seed(1)
    cfg = composed(f"mnist/{kind}", Toy(), *SMALL)
    model = build(plain(cfg, "model"))
    model.config = checkpoint_config(cfg)
    return save(model, path)


def prior_of(composed, kind, first, data, resume=None, *overrides):
    experiment = {"vqvae": "mnist/latent_ddpm", "autoencoder_kl": "mnist/latent_ddpm_kl"}[kind]
    cfg = composed(experiment, data, *PRIOR, f"codec.checkpoint={first}", *overrides)
    return cfg, build_model(cfg, data, resume)


KINDS = pytest.mark.parametrize("kind", ["vqvae", "autoencoder_kl"])


@KINDS
@pytest.mark.parametrize("flip", [False, True])
def test_a_prior_is_served_standardised_latents(composed, tmp_path, kind, flip):
    data = Toy(flip=flip)
    cfg, model = prior_of(composed, kind, first_stage(composed, kind, tmp_path / "first.ckpt"), data)
    codec = model.codec
    assert isinstance(codec, VQLatents if kind == "vqvae" else KL)
    assert cfg.facts.code_shape == list(codec.code_shape)
    assert codec.code_shape[1:] == (2, 2)
    images = to_float(data.split("train").images)
    if flip:
        images = torch.cat([images, images.flip(3)])
    _, deviation = codec.moments(codec.cache(images))
    square = codec.encode(images).square() + (0 if deviation is None else (codec.scale * deviation).square())
    torch.testing.assert_close(square.mean(), torch.tensor(1.0))
    torch.testing.assert_close(codec.encode(images).mean((0, 2, 3)), torch.zeros(len(codec.shift)), atol=1e-5, rtol=0)
    batch = data.train_dataloader().batch(0)
    assert "image" not in batch
    straight = codec.cache(to_float(data.split("train").images[batch["index"]]))
    mirrored = codec.cache(to_float(data.split("train").images[batch["index"]]).flip(3))
    wanted = [
        s if torch.allclose(c, s, atol=1e-6) or not flip else m
        for c, s, m in zip(batch["code"], straight, mirrored, strict=True)
    ]
    torch.testing.assert_close(batch["code"], torch.stack(wanted))
    assert model.loss(batch).total.isfinite()
    val = next(iter(data.val_dataloader()))
    torch.testing.assert_close(codec.from_cache(val["code"]), codec.encode(val["image"]))


@KINDS
def test_a_prior_that_goes_on_keeps_its_units_and_needs_no_first_stage(composed, tmp_path, kind):
    first = first_stage(composed, kind, tmp_path / "first.ckpt")
    data = Toy()
    cfg, model = prior_of(composed, kind, first, data)
    model.codec.scale.mul_(2)  # as if measured on a machine that rounds otherwise
    path = save(model, tmp_path / "prior.ckpt")
    first.unlink()
    again, resumed = prior_of(composed, kind, first, data, str(path))
    assert again.codec == cfg.codec
    assert again.facts == cfg.facts
    assert all(torch.equal(v, model.codec.state_dict()[k]) for k, v in resumed.codec.state_dict().items())
    assert len(list((tmp_path / "cache" / "codes").iterdir())) == 1  # not encoded again


def test_the_codec_of_a_prior_is_read_as_it_was(composed, tmp_path):
    """A prior's own checkpoint stands in for its first stage."""
    first = first_stage(composed, "vqvae", tmp_path / "first.ckpt")
    cfg, model = prior_of(composed, "vqvae", first, Toy())
    other, another = prior_of(composed, "vqvae", save(model, tmp_path / "prior.ckpt"), Toy())
    assert other.codec == cfg.codec
    assert torch.equal(another.codec.scale, model.codec.scale)


def test_a_first_stage_of_another_kind_is_refused(composed, tmp_path):
    first = first_stage(composed, "autoencoder_kl", tmp_path / "first.ckpt")
    with pytest.raises(UserError, match=r"a KL was loaded: .*codec\.experiment=mnist/vqvae"):
        prior_of(composed, "vqvae", first, Toy())


@KINDS
def test_the_configuration_rebuilds_the_codec(composed, tmp_path, kind):
    cfg, model = prior_of(composed, kind, first_stage(composed, kind, tmp_path / "first.ckpt"), Toy())
    rebuilt = build(plain(cfg, "codec"))
    assert isinstance(rebuilt, Codec)
    rebuilt.load_state_dict(model.codec.state_dict())
    x = to_float(Toy().split("test").images)
    noise = [TorchNoise(torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(rebuilt.encode(x, noise[0]), model.codec.encode(x, noise[1]))


def test_codes_are_kept_by_what_they_depend_on(composed, tmp_path):
    _, model = prior_of(
        composed, "autoencoder_kl", first_stage(composed, "autoencoder_kl", tmp_path / "first.ckpt"), Toy()
    )
    codec, folder = model.codec, tmp_path / "kept"
    before = codec_hash(codec)
    made = cached_codes(codec, Toy(), folder)
    codes = made["train"].all()
    assert codes.dtype == torch.float32
    codec.standardise(codes * 3)
    assert codec_hash(codec) == before
    [kept] = (folder / "codes").iterdir()
    shard = kept / "train-00000.npy"
    np.save(shard, codes.numpy() + 1)
    assert torch.equal(cached_codes(codec, Toy(), folder)["train"].all(), codes + 1)  # read, not made
    shard.write_bytes(b"damaged")
    assert torch.equal(cached_codes(codec, Toy(), folder)["train"].all(), codes)
    codec.decoder.last_layer.mul_(2)
    assert codec_hash(codec) != before


def test_tokens_are_kept_as_integers(composed, tmp_path):
    torch.manual_seed(1)
    cfg = composed("mnist/vqvae", Toy(), *SMALL)
    codec = build(plain(cfg, "model.codec"))
    assert isinstance(codec, VQ)
    codes = cached_codes(codec, Toy(flip=True), tmp_path)
    assert codes["train"].shape == (2, 24, 4)
    assert codes["val"].shape == (9, 4)
    assert codes["train"].dtype == torch.uint8
    again = cached_codes(codec, Toy(flip=True), tmp_path)
    assert all(torch.equal(codes[name].all(), again[name].all()) for name in codes)


def test_a_codec_chosen_on_the_command_line_needs_no_recipe(composed):
    cfg = composed("mnist/latent_ddpm", Toy(), "codec=pixels")
    drop_recipe(cfg)
    assert set(OmegaConf.to_container(cfg.codec, resolve=False)) == {"_target_", "image_shape"}
