from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from trilemma.errors import UserError
from trilemma.runs.cells import cells_of
from trilemma.runs.cli import register_resolvers

CONF = Path(__file__).parents[2] / "conf"
CONFIG = {
    "model": {"condition": {"num_labels": 10}},
    "sampler": {
        "_target_": "trilemma.samplers.categorical.Ancestral",
        "num_steps": 25,
        "temperature": 1.0,
        "truncation": 1.0,
    },
    "guidance": {
        "_target_": "trilemma.samplers.guidance.ClassifierFree",
        "scale": 2.0,
        "start": 1.0,
        "stop": 0.0,
    },
    "weights": "ema",
}


def cells(*overrides, config=CONFIG):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate", ["ckpt=last.ckpt", "num_images=20", *overrides])
    return cells_of(cfg, config)


def test_nothing_swept_is_one_cell_with_the_checkpoints_settings():
    [cell] = cells()
    assert (cell.sampler.num_steps, cell.guidance.scale) == (25, 2.0)
    assert cell.labels == [*range(10)] * 2
    assert cell.condition == "label: all in turn"
    assert cell.name == "n20-steps25-scale2-seed0"


def test_the_product_of_all_axes_with_the_steps_fastest():
    found = cells("sweep.num_steps=[4,8]", "sweep.scale=[1,3.5]", "sweep.temperature=[0.9]", "sweep.seed=[0,1]")
    points = [(c.cfg.seed, c.guidance.scale, c.sampler.num_steps, c.sampler.temperature) for c in found]
    assert points == [(seed, scale, steps, 0.9) for seed in (0, 1) for scale in (1, 3.5) for steps in (4, 8)]
    assert len({cell.name for cell in found}) == 8


def test_a_sampler_by_name_takes_the_single_settings_too():
    [cell] = cells("sweep.sampler=[ancestral]", "sampler.temperature=0.5")
    assert (cell.sampler.num_steps, cell.sampler.temperature) == (25, 0.5)


def test_a_value_given_twice_is_one_cell():
    assert len(cells("sweep.num_steps=[4,4]")) == 1
    assert len(cells("sweep.num_steps=4")) == 1


def test_an_unconditional_model_has_no_labels():
    [cell] = cells(config={**CONFIG, "model": {"condition": {}}})
    assert cell.labels is None
    assert cell.condition == "none"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.scale=[]", "sweep.scale is empty"),
        ("sweep.scale=[true]", "True is not a number"),
        ("sweep.num_steps=[2.5]", "2.5 is not a whole number"),
        ("sweep.num_steps=[4,-1]", "num_steps"),
        ("sweep.truncation=[2]", "truncation"),
        ("sweep.sampler=[3]", "3 is not the name of a sampler"),
        ("sweep.sampler=[ddim]", "no such sampler"),
    ],
)
def test_a_bad_value_anywhere_is_found_before_the_first_cell(override, words):
    with pytest.raises(UserError, match=words):
        cells(override)
