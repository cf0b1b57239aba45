"""Every experiment composes, passes the checks, and says in its header how it is run."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from trilemma.cli import main as cli
from trilemma.cli.main import register_resolvers
from trilemma.config import schema
from trilemma.config.check import check_config
from trilemma.config.small_options import all_groups, group_nodes, small_options
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.errors import UserError
from trilemma.evaluation.oracles.base import Oracle

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(
    str(p.relative_to(CONF / "experiment").with_suffix("")) for p in (CONF / "experiment").rglob("*.yaml")
)
ORACLES = [name for name in EXPERIMENTS if name.startswith("oracle/")]
TRAINED = [name for name in EXPERIMENTS if name not in ORACLES]
FACTS = {"image_shape": [1, 32, 32], "num_labels": 10, "code_shape": [8, 8], "num_classes": 16, "num_states": 17}


@pytest.fixture(autouse=True)
def hydra():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(entry, *overrides):
    cfg = compose(entry, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def places(name):
    """What such an experiment asks for: where the images or their codes lie, and which codec made these."""
    own = name.startswith(("images/", "imagenet/", "ffhq/", "lsun/"))
    from_codes = name in ("imagenet/vq_diffusion", "ffhq/vq_diffusion")
    return ["data.root=somewhere"] * own + ["codec.checkpoint=some.ckpt"] * from_codes


@pytest.mark.parametrize("name", TRAINED)
def test_an_experiment_composes_and_passes_the_checks(name):
    cfg = composed("train", f"experiment={name}", *places(name))
    check_config(cfg, schema.TRAIN)
    assert cfg.experiment_name == name
    OmegaConf.update(cfg, "facts", FACTS)
    cfg.paths.run_dir = "run"
    OmegaConf.to_container(cfg, resolve=True)  # every interpolation has an answer once the facts are known


@pytest.mark.parametrize("name", ORACLES)
def test_an_oracle_composes_and_passes_the_checks(name):
    cfg = composed("evaluate", f"experiment={name}", "ckpt=none")
    check_config(cfg, schema.EVALUATE)
    assert issubclass(locate(cfg.oracle._target_, COMMAND_LINE, "oracle"), Oracle)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_how_it_is_run(name):
    script = "evaluate" if name in ORACLES else "train"
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    header = [line for line in lines if line.startswith("#")]
    assert any(line.startswith(f"#   python {script}.py experiment={name}") for line in header)


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if "vq_diffusion" in n or "latent_" in n])
def test_a_prior_names_a_codec_that_exists(name):
    cfg = composed("train", f"experiment={name}", *places(name))
    assert cfg.codec.experiment in EXPERIMENTS
    overrides = cfg.codec.overrides or places(cfg.codec.experiment)
    codec = composed("train", f"experiment={cfg.codec.experiment}", *overrides)
    check_config(codec, schema.TRAIN)
    assert cfg.data._target_ in (codec.data._target_, "trilemma.datasets.tokens.TokenData")


@pytest.mark.parametrize(("entry", "keys"), [("sample", schema.SAMPLE), ("evaluate", schema.EVALUATE)])
def test_the_other_entry_points_compose(entry, keys):
    check_config(composed(entry, "ckpt=x.ckpt", "sampler.num_steps=25", "guidance.scale=2"), keys)


@pytest.mark.parametrize(
    "group",
    [
        "trainer",
        "process/schedule",
        "process",
        "sampler",
        "guidance",
        "optimizer",
        "scheduler",
        "logger",
        "model/times",
        "model/weight",
    ],
)
def test_every_option_of_a_group_composes_with_the_flagship(group):
    options = group_nodes(group)
    assert options
    for option in options:
        if option == "from_checkpoint":
            continue
        gaussian = ".processes.gaussian." in options[option].get("_target_", "")
        experiment = "mnist/ddpm" if gaussian and group in ("process", "process/schedule") else "mnist/vq_diffusion"
        check_config(composed("train", f"experiment={experiment}", f"{group}={option}"), schema.TRAIN)


def test_a_schedule_of_another_kind_of_process_is_one_line():
    """The same name, cosine, is a schedule of tokens: for a Gaussian process the line names those that fit."""
    for experiment, option, fitting in (
        ("mnist/ddpm", "cosine", "gaussian_cosine"),
        ("mnist/vq_diffusion", "edm", "cosine"),
    ):
        with pytest.raises(UserError, match=rf"Schedule is expected here, .* process/schedule={fitting}") as error:
            check_config(composed("train", f"experiment={experiment}", f"process/schedule={option}"), schema.TRAIN)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("group", ["model/parameterization", "model/times", "model/weight"])
def test_every_option_of_a_group_composes_with_a_gaussian_model(group):
    for option in group_nodes(group):
        cfg = composed("train", "experiment=mnist/ddpm", f"{group}={option}")
        check_config(cfg, schema.TRAIN)


def test_small_options_stand_beside_files():
    """Hydra finds both; no name means two things; what a small option says is what is composed."""
    for group, options in small_options().items():
        assert not {path.stem for path in (CONF / group).glob("*.yaml")} & set(options)
    edm = composed("train", "experiment=mnist/ddpm", "process/schedule=edm").process.schedule
    assert OmegaConf.to_container(edm) == small_options()["process/schedule"]["edm"]


def test_a_group_has_small_options_and_files():
    assert {"cosine", "edm"} <= set(group_nodes("process/schedule"))
    assert "uniform" in group_nodes("process")
    assert group_nodes("model/schedule") == {}
    assert {"process", "process/schedule", "model/times", "hydra/launcher"} <= set(all_groups())


def test_the_config_folder_is_found():
    assert cli.CONF.samefile(CONF)
