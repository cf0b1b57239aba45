"""Parts of an experiment that are swapped for others, and values written as Hydra reads them."""

import random
import string

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from trilemma.cli.main import register_resolvers
from trilemma.config import CONF, schema
from trilemma.config.check import check_config
from trilemma.config.nodes import drop_recipe
from trilemma.config.swapped import drop_foreign, literal


@pytest.fixture(scope="module")
def composed():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *given: compose("train", [*given, "run.id=x", "paths.run_dir=x", "experiment_name=x"])


def swapped(composed, *overrides):
    cfg = composed(*overrides)
    drop_recipe(cfg)
    return cfg, drop_foreign(cfg, overrides)


def test_settings_of_the_part_that_was_swapped_out_fall_away(composed):
    cfg, dropped = swapped(composed, "experiment=mnist/ddpm", "network=dit", "network.depth=2", "data.root=x")
    check_config(cfg, schema.TRAIN)
    assert "network.channels=48" in dropped
    assert (cfg.network.patch_size, cfg.network.depth) == (4, 2)  # the option's own, and what was asked for


def test_what_the_command_line_sets_stays_to_be_refused(composed):
    cfg, _ = swapped(composed, "experiment=mnist/ddpm", "network=dit", "+network.channel_mult=3", "data.root=x")
    assert cfg.network.channel_mult == 3


def test_the_experiments_own_choice_named_again_changes_nothing(composed):
    plain = composed("experiment=mnist/ddpm", "data.root=x")
    cfg, dropped = swapped(composed, "experiment=mnist/ddpm", "network=unet", "data.root=x")
    assert not dropped
    assert cfg == plain


def test_a_batch_size_is_of_the_training_and_not_of_the_data(composed):
    cfg, dropped = swapped(composed, "experiment=mnist/ddpm", "data=mnist_5k")
    check_config(cfg, schema.TRAIN)
    assert not dropped
    assert (cfg.data.batch_size, cfg.data.max_val_images) == (64, 500)


def test_a_learning_rate_goes_with_its_optimiser(composed):
    cfg, dropped = swapped(composed, "experiment=mnist/vq_diffusion", "optimizer=adamw", "data.root=x")
    assert dropped == ["optimizer.lr=0.006"]
    assert cfg.optimizer.lr == 3e-4


TEXTS = [
    "o'brien",
    "a b",
    "a=b,c",
    "\\",
    "it\\'s",
    "${x}",
    "[1]",
    "{a:b}",
    "",
    "null",
    "true",
    "1e3",
    "é",
    '"',
    "a\\",
    "'",
    "''\\",
]


def read(text):
    [override] = OverridesParser.create().parse_overrides([f"a={text}"])
    return OmegaConf.to_container(OmegaConf.create({"a": override.value()}), resolve=True)["a"]


@pytest.mark.parametrize("value", [*TEXTS, None, True, 3, -1.5e-7, ["x'y", 1], {"a": "b c"}], ids=repr)
def test_a_value_comes_through_hydra_as_it_was(value):
    assert read(literal(value)) == value


@pytest.mark.slow
def test_any_text_comes_through_hydra_as_it_was():
    """3,000 texts of letters and of what means something to Hydra, a shell or OmegaConf."""
    rng = random.Random(0)
    letters = string.ascii_letters + string.digits + " '\\\"=,:[]{}()%#@!~*?&|;<>/é"
    for _ in range(3000):
        text = "".join(rng.choice(letters) for _ in range(rng.randint(0, 12)))
        assert read(literal(text)) == text, text
