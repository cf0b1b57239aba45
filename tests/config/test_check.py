from typing import Literal

import pytest
from omegaconf import OmegaConf

from trilemma.config.check import _fits, check_config
from trilemma.errors import UserError
from trilemma.networks.image_coder import ImageEncoder

SCHEMA = {
    "seed": int,
    "init_from": str | None,
    "run": {"id": str, "resume": str},
    "optimizer": None,
    "callbacks": "targets",
    "facts": {"n": None},
}
GOOD = {
    "seed": 1,
    "init_from": None,
    "run": {"id": "a", "resume": "auto"},
    "facts": {"n": None},
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3},
    "callbacks": {
        "x": {"_target_": "trilemma.training.learning_rate.WarmupCosine", "_partial_": True, "num_steps": "${facts.n}"}
    },
}


def check(**changes):
    cfg = OmegaConf.create(GOOD)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    check_config(cfg, SCHEMA)


def test_a_good_config_passes():
    check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, "unknown override sed: did you mean seed"),
        ({"run__ids": "x"}, "unknown override run.ids: did you mean run.id"),
        ({"optimizer__lrr": 1}, "unknown override optimizer.lrr: did you mean optimizer.lr"),
        ({"callbacks__x__num_step": 3}, "did you mean callbacks.x.num_steps"),
        ({"callbacks__y": 3}, "an entry of callbacks needs a _target_"),
        ({"seed": "abc"}, "seed=abc: int is expected"),
        ({"seed": 2.5}, "seed=2.5: int is expected"),
        ({"seed": True}, "seed=True: int is expected"),
        ({"callbacks__x__num_steps": "many"}, "callbacks.x.num_steps=many: int is expected"),
        ({"run": 3}, "run=3: a group or a mapping"),
        ({"run__id": "???"}, "run.id is missing"),
        ({"optimizer___target_": "os.system"}, "only classes defined in"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UserError, match=message) as error:
        check(**change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, float, True),
        (1, int | None, True),
        (None, int | None, True),
        (None, int, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ([1, 2], list[int], True),
        ([1, 2], tuple[int, ...], True),
        (3, tuple[int, ...], False),
        (False, int, False),
        (1, bool, False),
        # A protocol stands for a built object.
        ({"_target_": "trilemma.networks.autoencoder.ConvEncoder"}, ImageEncoder, True),
        ("conv", ImageEncoder, False),
        (None, ImageEncoder, False),
        (None, ImageEncoder | None, True),
    ],
)
def test_fits(value, hint, fits):
    assert _fits(value, hint) is fits
