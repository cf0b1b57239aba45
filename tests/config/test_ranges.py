"""Numbers that torch and Lightning would fail at, or take without a word, are refused in one line."""

import math

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trilemma.cli.main import register_resolvers
from trilemma.config import CONF, schema
from trilemma.config.check import check_config
from trilemma.config.ranges import RANGES, Range, check_ranges
from trilemma.errors import UserError


@pytest.fixture(scope="module")
def composed():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *given: compose(
            "train", ["experiment=mnist/ddpm", "run.id=x", "paths.run_dir=x", "experiment_name=x", *given]
        )


def test_every_experiment_as_it_stands_is_in_range(composed):
    check_config(composed(), schema.TRAIN)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=-1", "seed=-1: a number at least 0 and at most 4.29497e+09 is expected"),
        ("optimizer.lr=-1", "optimizer.lr=-1: a number at least 0 is expected"),
        ("optimizer.lr=1e-3x", "optimizer.lr=1e-3x: a number at least 0 is expected"),
        ("optimizer.lr=nan", "optimizer.lr=nan: a number at least 0 is expected"),
        ("optimizer.betas=[0.9,1.0]", "optimizer.betas=1.0: a number at least 0 and below 1 is expected"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: a number at least 0 is expected"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: a number at least 1"),
        ("trainer.val_check_interval=0", "trainer.val_check_interval=0: a number at least 1"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: a number at least 1"),
        ("callbacks.samples.every_n_batches=0", "callbacks.samples.every_n_batches=0: a number at least 1"),
        ("num_threads=0", "num_threads=0: a number at least 1"),
        ("data.batch_size=0", "data.batch_size=0: a number at least 1"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true: choose one of 32-true, bf16-mixed"),
        ("+trainer.overfit_batches=1", "trainer.overfit_batches=1 cannot be honoured: every batch is new"),
        ("+trainer.limit_train_batches=2", "trainer.limit_train_batches=2 cannot be honoured: a run is one pass"),
        ("trainer.max_epochs=3", "trainer.max_epochs=3 cannot be honoured: a run is one pass"),
        ("+trainer.logger=false", "trainer.logger=False cannot be honoured: take logger="),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run=True cannot be honoured: take debug=fast"),
    ],
)
def test_what_is_out_of_range_is_one_line(composed, override, line):
    with pytest.raises(UserError) as error:
        check_config(composed(override), schema.TRAIN)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", RANGES)
@pytest.mark.parametrize("value", [-math.inf, math.nan, "x", True, -1e300, pytest.param(10**400, id="huge")])
def test_no_range_takes_what_is_no_number(place, value):
    path = place.replace("*", "some")
    cfg = OmegaConf.create()
    OmegaConf.update(cfg, path, value)
    with pytest.raises(UserError, match="is expected"):
        check_ranges(cfg)


def test_the_ends_belong_to_a_range_unless_they_are_open():
    assert 0.0 in Range(0.0)
    assert 1.0 not in Range(0.0, 1.0, open="high")
    assert 0.0 not in Range(0.0, 1.0, open="low")
    assert None not in Range(0.0)
