import inspect
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_states_every_argument_of_its_data_set_with_the_default(path):
    config = OmegaConf.to_container(OmegaConf.load(path))
    module, _, name = config.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    assert set(config) == set(parameters)
    assert path.stem == getattr(import_module(module), name).name
    for key, value in config.items():
        default = parameters[key].default
        assert default is inspect.Parameter.empty or value == default or str(value).startswith("${")
