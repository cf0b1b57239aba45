from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from torch import nn

from exact_family import exact_family
from trilemma.cli.main import register_resolvers
from trilemma.codecs.pixels import PixelLevels
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.errors import UserError
from trilemma.measuring.setups import setups_of
from trilemma.models.discrete_diffusion import DiscreteDiffusion
from trilemma.models.generator import ImageGenerator
from trilemma.processes.categorical.closed_form import Absorbing
from trilemma.processes.categorical.schedules import Cosine
from trilemma.processes.gaussian.schedules import LinearBeta
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.gaussian.heun import Heun
from trilemma.samplers.guidance import Guidance
from trilemma.training.loss_weights import Simple
from trilemma.training.timesteps import ChainTimesteps

CONF = Path(__file__).parents[2] / "conf"
CONFIG = {
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


def tokens(condition=None):
    """A family of tokens; its network is never run here."""
    return DiscreteDiffusion(
        codec=PixelLevels((1, 2, 2), 4),
        process=Absorbing(4, Cosine()),
        network=nn.Identity(),
        condition=condition or LabelCondition(10, 2),
        sampler=Ancestral(25),
        guidance=Guidance(),
        times=ChainTimesteps(25),
        weight=Simple(),
    )


def setups(*overrides, config=CONFIG, model=None):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("evaluate", ["ckpt=last.ckpt", "num_images=20", *overrides])
    return setups_of(cfg, model or tokens(), config)


def test_nothing_swept_is_one_setup_with_the_checkpoints_settings():
    [setup] = setups()
    assert (setup.sampler.num_steps, setup.guidance.scale) == (25, 2.0)
    assert setup.raw == setup.labels.tolist() == [*range(10)] * 2
    assert setup.condition == "label: all in turn"
    assert setup.name == "n20-steps25-scale2-seed0"


def test_the_product_of_all_axes_with_the_steps_fastest():
    found = setups("sweep.num_steps=[4,8]", "sweep.scale=[1,3.5]", "sweep.temperature=[0.9]", "sweep.seed=[0,1]")
    points = [(c.seed, c.guidance.scale, c.sampler.num_steps, c.sampler.temperature) for c in found]
    assert points == [(seed, scale, steps, 0.9) for seed in (0, 1) for scale in (1, 3.5) for steps in (4, 8)]
    assert len({setup.name for setup in found}) == 8


def test_a_sampler_by_name_takes_the_single_settings_too():
    [setup] = setups("sweep.sampler=[ancestral]", "sampler.temperature=0.5")
    assert (setup.sampler.num_steps, setup.sampler.temperature) == (25, 0.5)


def test_a_value_given_twice_is_one_setup():
    assert len(setups("sweep.num_steps=[4,4]")) == 1
    assert len(setups("sweep.num_steps=4")) == 1


def test_an_unconditional_model_has_no_labels():
    [setup] = setups("guidance.scale=1", model=tokens(NoCondition()))
    assert setup.raw is setup.labels is None
    assert setup.condition == "none"
    with pytest.raises(UserError, match="unconditional"):
        setups("condition.label=all", "guidance.scale=1", model=tokens(NoCondition()))
    with pytest.raises(UserError, match="has nothing to strengthen in an unconditional model"):
        setups(model=tokens(NoCondition()))


@pytest.mark.parametrize(
    ("asked", "raw", "words"),
    [
        ("7", [7] * 20, "label: 7"),
        ("[0,7]", [0, 7] * 10, "label: [0, 7]"),
        ("all", [*range(10)] * 2, "label: all in turn"),
        ("none", None, "none"),
    ],
)
def test_what_is_asked_for_is_described(asked, raw, words):
    [setup] = setups(f"condition.label={asked}")
    assert (setup.raw, setup.condition) == (raw, words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["condition.label=10"], "condition.label=10 is not a label: labels are 0 to 9"),
        (["condition.label=seven"], r"condition\.label=seven: give a class number"),
        (["condition.label=[]"], r"condition\.label=\[\]: give a class number"),
        (["condition.label=3", "condition.caption=a three"], "not both"),
        (["condition.caption=3"], "condition.caption=3: give a caption"),
        (["condition.caption=a three"], "labels are 0 to 9"),
    ],
)
def test_a_condition_that_is_not_known_is_refused(overrides, words):
    with pytest.raises(UserError, match=words) as refusal:
        setups(*overrides)
    assert "\n" not in str(refusal.value)


class Captions(LabelCondition):
    """Steers by one of ten things, and knows no examples of them."""

    def examples(self, num):
        return None


def test_a_model_that_is_steered_is_never_sampled_unconditionally_in_silence():
    model = tokens(Captions(10, 2))
    with pytest.raises(
        UserError, match=r"steered by a Captions, which knows no examples: .*condition\.label=none"
    ) as refusal:
        setups(model=model)
    assert "\n" not in str(refusal.value)
    assert setups("condition.label=none", model=model)[0].raw is None
    assert setups("condition.label=3", model=model)[0].raw == [3] * 20


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.scale=[]", "sweep.scale is empty"),
        ("sweep.scale=[true]", "True is not a number"),
        ("sweep.num_steps=[2.5]", "2.5 is not a whole number"),
        ("sweep.num_steps=[4,-1]", "num_steps"),
        ("sweep.truncation=[2]", "truncation"),
        ("sweep.sampler=[3]", "3 is not the name of a sampler"),
        ("sweep.sampler=[ancestral,ddym]", "sweep.sampler=ddym: there is no such sampler; choose from .*ddim"),
        ("sweep.eta=[0.5]", "sampler.eta: the checkpoint's sampler Ancestral has no such setting"),
    ],
)
def test_a_bad_value_anywhere_is_found_before_the_first_setup(override, words):
    with pytest.raises(UserError, match=words):
        setups(override)


GAUSSIAN = exact_family(labels=True, schedule=LinearBeta(100))
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
    found = setups(
        "sweep.sampler=[ddpm,ddim,heun,dpm_solver]", "sweep.num_steps=[10,20]", config=DDPM_CONFIG, model=GAUSSIAN
    )
    assert [type(setup.sampler) for setup in found[::2]] == [GaussianAncestral, DDIM, Heun, DPMSolver]
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
    [setup] = setups(*overrides, config=DDPM_CONFIG, model=GAUSSIAN)
    assert setup.name == name


def test_a_setting_of_one_sampler_is_not_swept_over_another():
    with pytest.raises(UserError, match=r"sampler\.eta: GaussianAncestral has no such setting"):
        setups("sweep.sampler=[ddim,ddpm]", "sweep.eta=[0,1]", config=DDPM_CONFIG, model=GAUSSIAN)


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
            tokens(),
            "GaussianProcess, .* a Absorbing: .*sampler=ancestral",
        ),
        (["sweep.num_steps=[10,101]"], DDPM_CONFIG, GAUSSIAN, "the chain has 100 steps"),
    ],
)
def test_a_sampler_that_does_not_fit_the_model_is_found_before_the_first_setup(overrides, config, model, words):
    with pytest.raises(UserError, match=words) as refusal:
        setups(*overrides, config=config, model=model)
    assert "\n" not in str(refusal.value)


class Decoder(ImageGenerator):
    """Draws in a single call."""

    def __init__(self):
        super().__init__(optimizer=None, scheduler=None)
        self.codec, self.condition, self.guidance = PixelLevels((1, 2, 2), 4), NoCondition(), Guidance()
        self.check_parts()

    def loss(self, batch):
        raise NotImplementedError

    def sample_codes(self, noise, num, raw=None, *, sampler=None, guidance=None, on_step=None):
        return noise.normal((num, 4))

    def decode(self, codes):
        return codes.clamp(-1, 1).view(-1, 1, 2, 2)


def test_a_family_that_draws_in_a_single_call_has_no_sampler():
    config = {"sampler": None, "guidance": None, "weights": "ema"}
    [setup] = setups(config=config, model=Decoder())
    assert (setup.sampler, setup.sampler_node, setup.condition) == (None, {}, "none")
    assert setup.name == "n20-scale1-seed0"
    for override, words in (
        (
            "sampler=ddim",
            "a Decoder draws images in a single call, and sampler DDIM has nothing to do: leave out sampler=",
        ),
        ("sampler.num_steps=4", r"sampler\.num_steps: the checkpoint's family draws without a sampler; leave it out"),
        ("sweep.num_steps=[4]", r"sampler\.num_steps: the checkpoint's family draws without a sampler; leave it out"),
    ):
        with pytest.raises(UserError, match=words) as refusal:
            setups(override, config=config, model=Decoder())
        assert "\n" not in str(refusal.value)
    assert Decoder().sample(3).shape == (3, 1, 2, 2)
