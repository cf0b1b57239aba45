from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from trilemma.cli.main import register_resolvers
from trilemma.errors import UserError
from trilemma.measuring.cells import cells_of
from trilemma.processes.categorical.closed_form import Absorbing
from trilemma.processes.categorical.schedules import Cosine
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import LinearBeta
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.gaussian.heun import Heun

CONF = Path(__file__).parents[2] / "conf"
CONFIG = {
    "model": {"condition": {"num_labels": 10}},
    "sampler": {
        "_target_": "trilemma.samplers.categorical.ancestral.Ancestral",
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


def cells(*overrides, config=CONFIG, model=None):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate", ["ckpt=last.ckpt", "num_images=20", *overrides])
    return cells_of(cfg, config, model=model)


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
        ("sweep.sampler=[ddim,ddym]", "sweep.sampler=ddym: there is no such sampler; choose from .*ddim"),
        ("sweep.eta=[0.5]", "sampler.eta: the checkpoint's sampler Ancestral has no such setting"),
    ],
)
def test_a_bad_value_anywhere_is_found_before_the_first_cell(override, words):
    with pytest.raises(UserError, match=words):
        cells(override)


class Model:
    """As much of a family as a sampler must fit."""

    def __init__(self, process):
        self.process = process


GAUSSIAN = Model(GaussianProcess(LinearBeta(100)))
DDPM_CONFIG = {
    **CONFIG,
    "sampler": {
        "_target_": "trilemma.samplers.gaussian.ancestral.GaussianAncestral",
        "num_steps": 50,
        "variance": "small",
        "grid": "trailing",
        "clip": True,
    },
}


def test_samplers_of_gaussian_processes_are_swept_and_named():
    found = cells(
        "sweep.sampler=[ddpm,ddim,heun,dpm_solver]", "sweep.num_steps=[10,20]", config=DDPM_CONFIG, model=GAUSSIAN
    )
    assert [type(cell.sampler) for cell in found[::2]] == [GaussianAncestral, DDIM, Heun, DPMSolver]
    assert found[0].name == "n20-steps10-scale2-seed0"
    assert found[3].name == "n20-steps20-scale2-ddim-seed0"
    assert found[4].name == "n20-steps10-scale2-heun-seed0"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["sampler=ddim", "sweep.eta=[0.5]"], "n20-steps50-scale2-ddim-eta0.5-seed0"),
        (
            ["sampler=ddim", "sampler.grid=uniform", "sampler.clip=false"],
            "n20-steps50-scale2-ddim-noclip-uniform-seed0",
        ),
        (["sampler.variance=large"], "n20-steps50-scale2-large-seed0"),
        (["sampler=heun", "sampler.order=1", "sampler.grid=trailing"], "n20-steps18-scale2-heun-trailing-order1-seed0"),
        (["sampler=dpm_solver", "sampler.order=1"], "n20-steps20-scale2-dpmsolver-order1-seed0"),
    ],
)
def test_a_file_name_tells_settings_apart(overrides, name):
    [cell] = cells(*overrides, config=DDPM_CONFIG, model=GAUSSIAN)
    assert cell.name == name


def test_a_setting_of_one_sampler_is_not_swept_over_another():
    with pytest.raises(UserError, match=r"sampler\.eta: GaussianAncestral has no such setting"):
        cells("sweep.sampler=[ddim,ddpm]", "sweep.eta=[0,1]", config=DDPM_CONFIG, model=GAUSSIAN)


@pytest.mark.parametrize(
    ("overrides", "config", "model", "words"),
    [
        (
            ["sweep.sampler=[ddim,ancestral]"],
            DDPM_CONFIG,
            GAUSSIAN,
            "CategoricalProcess, .* sampler=ddim or sampler=ddpm",
        ),
        (
            ["sampler=ddim"],
            CONFIG,
            Model(Absorbing(4, Cosine())),
            "GaussianProcess, .* a Absorbing: .*sampler=ancestral",
        ),
        (["sampler=ddim"], CONFIG, Model(None), "leave out sampler="),
        (["sweep.num_steps=[10,101]"], DDPM_CONFIG, GAUSSIAN, "the chain has 100 steps"),
    ],
)
def test_a_sampler_that_does_not_fit_the_model_is_found_before_the_first_cell(overrides, config, model, words):
    with pytest.raises(UserError, match=words) as refusal:
        cells(*overrides, config=config, model=model)
    assert "\n" not in str(refusal.value)
