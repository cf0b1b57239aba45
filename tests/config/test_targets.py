import pytest
import torch

from trilemma.config.build import build
from trilemma.config.targets import CHECKPOINT, COMMAND_LINE, locate
from trilemma.errors import UserError

# A checkpoint that names any of these would run a shell, load a file or import a module of the attacker's choice.
DANGEROUS = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.open",
    "torch.utils.collect_env.run",
    "torch.hub.load",
    "torch.load",
    "pickle.loads",
    "importlib.import_module",
    "trilemma.first_stage.codec.subprocess.run",
    "trilemma.first_stage.codec.Path",
    "trilemma.cli.main.run",
    "torch.nn.functional.linear",
    "torch.nn.modules.module.torch.hub.load",
    "torch.nn.init.normal_",
    "torchx.nn.Linear",
    "torch.nnx.Linear",
]


@pytest.mark.parametrize("allowed", [COMMAND_LINE, CHECKPOINT])
@pytest.mark.parametrize("target", DANGEROUS)
def test_dangerous_targets_are_refused(target, allowed):
    with pytest.raises(UserError, match=r"only classes defined in|there is no module"):
        locate(target, allowed, "model")


@pytest.mark.parametrize("target", ["torch.optim.AdamW", "lightning.pytorch.trainer.Trainer"])
def test_a_checkpoint_may_name_less_than_the_command_line(target):
    assert locate(target, COMMAND_LINE, "x")
    with pytest.raises(UserError, match="may be named"):
        locate(target, CHECKPOINT, "x")


@pytest.mark.parametrize("target", [None, 3, ["torch.nn.Linear"], ""])
def test_a_target_must_be_a_dotted_path(target):
    with pytest.raises(UserError):
        locate(target, COMMAND_LINE, "x")


def test_a_misspelt_class_is_named_with_its_neighbour():
    with pytest.raises(UserError, match=r"Did you mean torch\.nn\.Linear"):
        locate("torch.nn.Liner", COMMAND_LINE, "network")


def test_nested_nodes_are_built_first_and_partials_are_bound():
    node = {
        "_target_": "torch.nn.Sequential",
    }
    assert isinstance(build(node), torch.nn.Sequential)
    factory = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    optimizer = factory([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.5
    layer = build(
        {
            "_target_": "torch.nn.TransformerEncoder",
            "num_layers": 2,
            "enable_nested_tensor": False,
            "encoder_layer": {"_target_": "torch.nn.TransformerEncoderLayer", "d_model": 8, "nhead": 2},
        }
    )
    assert len(layer.layers) == 2


def test_a_dangerous_target_deep_in_a_checkpoint_is_refused_before_its_neighbours_are_built(tmp_path):
    victim = tmp_path / "victim"
    node = {"_target_": "torch.nn.Sequential", "a": {"b": [{"_target_": "os.system", "command": f"touch {victim}"}]}}
    with pytest.raises(UserError, match=r"model\.a\.b\[0\]"):
        build(node, allowed=CHECKPOINT, where="model")
    assert not victim.exists()


def test_arguments_that_do_not_fit_are_a_user_error():
    with pytest.raises(UserError, match=r"network: torch\.nn\.Linear cannot be built"):
        build({"_target_": "torch.nn.Linear", "in_features": 3}, where="network")
