import inspect

import pytest

from trilemma.config.build import build
from trilemma.config.small_options import group_nodes
from trilemma.errors import UserError
from trilemma.samplers.guidance import ClassifierFree, Guidance
from trilemma.samplers.named import as_guidance, as_sampler

NODES = group_nodes("sampler")


@pytest.mark.parametrize("name", NODES)
def test_one_setting_is_changed_and_no_other(name):
    own = build(NODES[name], where="sampler")
    key, value = ("num_steps", 3) if "num_steps" in NODES[name] else ("temperature", 0.5)
    changed = as_sampler(None, own, {key: value})
    known = inspect.signature(type(own)).parameters
    assert type(changed) is type(own)
    assert changed is not own
    assert {k: getattr(changed, k) for k in known} == {k: getattr(own, k) for k in known} | {key: value}


def test_a_name_is_that_of_the_command_line():
    sampler = as_sampler("ddim", None, {"eta": 0.5})
    assert (type(sampler).__name__, sampler.num_steps, sampler.eta) == ("DDIM", NODES["ddim"]["num_steps"], 0.5)


@pytest.mark.parametrize(
    ("asked", "settings", "line"),
    [
        ("dimm", {}, "sampler='dimm': did you mean 'ddim'?"),
        ("ddim", {"steps": 3}, "sampler DDIM has no setting steps; it has num_steps, eta"),
        (None, {"num_steps": 3}, "num_steps: the model draws images in a single call"),
        ("ddim", {"num_steps": 0}, "sampler.num_steps=0"),
    ],
)
def test_what_is_not_there_is_refused_in_a_line(asked, settings, line):
    with pytest.raises(UserError) as error:
        as_sampler(asked, None, settings)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_number_is_a_scale_in_the_models_own_interval():
    guided = as_guidance(2.0, ClassifierFree(1.0, start=0.8, stop=0.1))
    assert (guided.scale, guided.start, guided.stop) == (2.0, 0.8, 0.1)
    assert as_guidance(3, Guidance()).scale == 3.0
    own = Guidance()
    assert as_guidance(None, own) is own
