"""`python -m trilemma.convert`: a file of a VQGAN of taming-transformers becomes a codec of ours."""

import pickle

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_taming import SIDE, Published, images, state  # noqa: F401  (a fixture)

import trilemma
from trilemma.checkpoints.load import load_with_config
from trilemma.checkpoints.loaded import data_of
from trilemma.cli.convert import convert
from trilemma.cli.main import register_resolvers
from trilemma.config import CONF
from trilemma.errors import UserError


@pytest.fixture
def composed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        paths = ["paths.run_dir=run", "paths.cache_dir=cache", "output=made.ckpt", f"image_size={SIDE}"]
        yield lambda *given: compose("convert", [*paths, *given])


def test_a_checkpoint_with_a_state_dict_becomes_a_codec(composed, state, capsys):  # noqa: F811
    torch.save({"state_dict": state, "global_step": 3}, "vqgan.ckpt")
    convert(composed("source=vqgan.ckpt"))
    assert "8 x 8 tokens of 7 codes" in capsys.readouterr().out
    model = trilemma.load("made.ckpt")
    published = Published(state)
    code = model.codec.encode(images().float())
    assert torch.equal(code, published.code(images()))
    expected = published.decode(code).clamp(-1, 1).float()
    torch.testing.assert_close(model.reconstruct(images().float()), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="names no data to measure it on"):
        data_of(load_with_config("made.ckpt")[1], None)


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_text("x"), "is no file of torch.save"),
        (lambda path: torch.save([1], path), "holds no state dict"),
        (
            lambda path: torch.save({"conv.weight": torch.zeros(2)}, path),
            "its state dict has no encoder.conv_in.weight",
        ),
        (
            lambda path: torch.save({"state_dict": {}, "callback": pickle.Pickler}, path),
            "may run code. If you trust it",
        ),
    ],
    ids=["missing", "text", "list", "other", "code"],
)
def test_what_is_no_vqgan_is_refused(composed, tmp_path, write, line):
    write(tmp_path / "source.pt")
    with pytest.raises(UserError, match=line) as error:
        convert(composed("source=source.pt"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "made.ckpt").exists()
