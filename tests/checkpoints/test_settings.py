"""File names that say the settings of a sample."""

import pytest
from omegaconf import OmegaConf

from trilemma.checkpoints.settings import settings_name

SAMPLER = {"_target_": "trilemma.samplers.autoregressive.AutoregressiveSampler", "temperature": 1.0}


def name(caption):
    cfg = OmegaConf.create(
        {"num_images": 5, "condition": {"label": None, "caption": caption}, "ckpt": "last.ckpt", "seed": 0}
    )
    return settings_name(cfg, {"sampler": SAMPLER}, SAMPLER, {"_target_": "trilemma.samplers.guidance.Guidance"})


def test_two_captions_never_share_a_name():
    long = "a very long caption of a seven that goes on and on"
    names = [name(c) for c in ("a seven", "A Seven!", ["a seven", "an eight"], long, f"{long} more")]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("caption", ["../../etc/passwd", "a/b", "x" * 500])
def test_a_name_is_one_short_file_name(caption):
    found = name(caption)
    assert "/" not in found
    assert ".." not in found
    assert len(found) < 80


def test_a_sampler_without_steps_says_none():
    assert "steps" not in name(None)
