"""What does not fit is found before a first stage is trained, from classes alone where an object cannot be built yet."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from trilemma.cli.main import register_resolvers
from trilemma.errors import UserError
from trilemma.first_stage.model import check_parts

CONF = Path(__file__).parents[2] / "conf"


def composed(*overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    OmegaConf.update(cfg, "facts", {"image_shape": [1, 28, 28], "num_labels": 10})
    return cfg


@pytest.mark.parametrize(
    "experiment", ["mnist/vq_diffusion", "mnist/ddpm", "mnist/ddgan", "mnist/dcgan", "mnist/vqvae"]
)
def test_what_is_shipped_fits(experiment):
    check_parts(composed(f"experiment={experiment}"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=mnist/vq_diffusion", "sampler=ddim"], "sampler DDIM .*sampler=ancestral"),
        (
            ["experiment=mnist/ddpm", "process=absorbing"],
            "a DDPM needs a GaussianProcess, not Absorbing: choose process=gaussian$",
        ),
        (["experiment=mnist/ddpm", "sampler=ancestral"], "sampler Ancestral .*GaussianProcess.*sampler=ddim"),
        (["experiment=mnist/vq_diffusion", "condition=none"], "condition=none.*guidance=none"),
        (["experiment=mnist/vqvae", "sampler=ddim"], "a VQVAE takes no sampler: leave out sampler="),
    ],
)
def test_what_does_not_fit_is_one_line(overrides, words):
    with pytest.raises(UserError, match=words) as refusal:
        check_parts(composed(*overrides))
    assert "\n" not in str(refusal.value)
