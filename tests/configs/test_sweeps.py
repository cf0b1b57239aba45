"""Every wandb sweep, expanded as the agent expands it: each combination composes, passes the checks and means what it says."""

import itertools
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from trilemma.cli.main import register_resolvers
from trilemma.config import schema
from trilemma.config.check import check_config

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "conf/sweep").glob("*.yaml"))
SCHEMAS = {"train.py": schema.TRAIN, "evaluate.py": schema.EVALUATE}

sweep = pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def hydra(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "a1b2c3d4")
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def choices(parameter):
    """All values of a list, the ends of a range."""
    if "values" in parameter:
        return parameter["values"]
    return [parameter["value"]] if "value" in parameter else [parameter["min"], parameter["max"]]


def combinations(parameters):
    for point in itertools.product(*map(choices, parameters.values())):
        yield dict(zip(parameters, point, strict=True))


def command_line(config, point):
    """What `wandb agent` runs: `_command_run` of wandb/wandb_agent.py."""
    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    macros |= {"interpreter": ["python"], "program": [config["program"]], "env": ["/usr/bin/env"]}
    line = []
    for chunk in map(str, create_sweep_command(list(config["command"]))):
        is_macro = chunk.startswith("${") and chunk.endswith("}")
        line += macros.get(chunk[2:-1]) or [] if is_macro else [chunk]
    return line


@sweep
def test_every_combination_composes_and_passes_the_checks(path):
    config = yaml.safe_load(path.read_text())
    points = list(combinations(config["parameters"]))
    assert len(points) > 1
    for point in points:
        launcher, overrides = (line := command_line(config, point))[:3], line[3:]
        assert launcher == ["/usr/bin/env", "python", config["program"]]
        cfg = compose(Path(config["program"]).stem, overrides=overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        chosen = cfg.hydra.runtime.choices
        for name, value in point.items():  # a text in a number's place, as from 1e-3, would differ
            assert (chosen[name] if name in chosen else OmegaConf.select(cfg, name)) == value
        with open_dict(cfg):
            del cfg["hydra"]
        check_config(cfg, SCHEMAS[config["program"]])
        if config["program"] == "train.py":
            assert cfg.run.id == "a1b2c3d4"
            assert "wandb" in cfg.logger


@sweep
def test_a_sweep_is_one_that_wandb_takes(path):
    """Its top-level words, methods and distributions, as wandb documents them."""
    config = yaml.safe_load(path.read_text())
    words = {"program", "project", "name", "method", "metric", "early_terminate", "run_cap", "command", "parameters"}
    assert set(config) <= words
    assert config["method"] in ("grid", "random", "bayes")
    assert config["method"] != "bayes" or set(config["metric"]) == {"name", "goal"}
    for parameter in config["parameters"].values():
        known = {"uniform", "log_uniform_values", "int_uniform"}
        assert "values" in parameter or "value" in parameter or parameter["distribution"] in known
        is_grid = config["method"] == "grid"
        assert not (is_grid and "distribution" in parameter), "a grid has no ends"


def test_the_document_lists_every_sweep():
    text = (ROOT / "docs/sweeps.md").read_text()
    assert [path.stem for path in SWEEPS if f"conf/sweep/{path.name}" not in text] == []
