"""Every trainer configuration composes and builds, for every kind of family, or says in one line why not."""

from pathlib import Path

import pytest
import torch
from families import SIDE, build
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import open_dict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trilemma.cli.main import register_resolvers
from trilemma.config import schema
from trilemma.config.check import check_config
from trilemma.distributed.devices import ProcessCount, is_multi_process, process_count
from trilemma.distributed.strategies import DDP, FullyShard, HandAveragedDDP
from trilemma.errors import UserError
from trilemma.runs.trainer import build_trainer, check_compiler

CONF = Path(__file__).parents[2] / "conf"
TRAINERS = sorted(path.stem for path in (CONF / "trainer").glob("*.yaml"))
STARTED_BY = ("SLURM_", "TORCHELASTIC_", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "LOCAL_RANK", "RANK")


@pytest.fixture(autouse=True)
def alone(monkeypatch, recwarn):
    """Nothing has started this process; no GPU is looked for."""
    import os

    for name in tuple(os.environ):
        if name.startswith(STARTED_BY):
            monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def slurm(monkeypatch, tasks, nodes, per_node=None):
    names = {
        "NTASKS": tasks,
        "NNODES": nodes,
        "JOB_ID": 17,
        "JOB_NAME": "train",
        "PROCID": 0,
        "LOCALID": 0,
        "NODEID": 0,
    }
    for name, value in (names | ({} if per_node is None else {"NTASKS_PER_NODE": per_node})).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def composed(tmp_path, *overrides):
    cfg = compose(
        "train",
        overrides=["experiment=demo/vqvae", f"paths.output_dir={tmp_path}", "run.id=x", "logger=none", *overrides],
        return_hydra_config=True,
    )
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    check_config(cfg, schema.TRAIN)
    return cfg


def built(tmp_path, *overrides):
    return build_trainer(composed(tmp_path, *overrides))


# --- the configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_trainer_builds_or_says_why_not(tmp_path, trainer, precision, accumulate):
    options = [f"trainer={trainer}", f"trainer.precision={precision}", f"trainer.accumulate_grad_batches={accumulate}"]
    refused = {
        "gpu": "torch sees no CUDA GPU here",
        "mps": "this machine has no Apple GPU",
        "ddp_adversarial": "take trainer=ddp$",
    }
    if trainer in refused:
        with pytest.raises(UserError, match=refused[trainer]):
            built(tmp_path, *options)
        return
    made = built(tmp_path, *options)
    kinds = {"ddp": DDP, "fsdp": FullyShard, "cpu": SingleDeviceStrategy, "default": SingleDeviceStrategy}
    assert type(made.strategy) is kinds[trainer]
    assert made.world_size == 1
    assert made.accumulate_grad_batches == accumulate
    assert made.gradient_clip_val == 1.0
    assert isinstance(made.precision_plugin, MixedPrecision) == (precision == "bf16-mixed")


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_processes_on_one_machine(tmp_path, trainer):
    made = built(tmp_path, f"trainer={trainer}", "trainer.devices=2")
    assert made.strategy.num_processes == 2
    assert made.strategy.root_device.type == "cpu"


def test_two_processes_without_a_strategy_are_ddp(tmp_path):
    assert type(built(tmp_path, "trainer.devices=2").strategy) is DDP
    assert type(built(tmp_path, "trainer.strategy=ddp").strategy) is DDP


DDGAN = ("experiment=mnist/ddgan", "data=mnist_5k")


def test_an_adversarial_family_averages_by_hand(tmp_path):
    made = built(tmp_path, *DDGAN, "trainer=ddp_adversarial", "trainer.devices=2", "trainer.accumulate_grad_batches=2")
    assert type(made.strategy) is HandAveragedDDP
    assert made.accumulate_grad_batches == 1, "it accumulates by itself"
    assert made.gradient_clip_val is None
    assert type(built(tmp_path, *DDGAN, "trainer=ddp").strategy) is DDP
    with pytest.raises(
        UserError, match="trainer=fsdp: a family with a discriminator trains with trainer=ddp_adversarial"
    ):
        built(tmp_path, *DDGAN, "trainer=fsdp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.devices=0"], "trainer.devices=0: a number of devices"),
        (["trainer.devices=many"], "trainer.devices=many: a number of devices"),
        (["trainer.num_nodes=0"], "trainer.num_nodes=0: a number at least 1"),
        (["trainer=ddp", "trainer.num_nodes=2"], "trainer.num_nodes=2: nothing has started processes on other nodes"),
        (
            ["trainer=ddp", "trainer.devices=3"],
            "data.batch_size=64 is the batch of all 3 processes: .* multiple of 3, 63",
        ),
        (["trainer.precision=16-mixed"], "take bf16-mixed, or optimizer.fused=false"),
        (["trainer.precision=7"], "trainer.precision=7: choose one of 32-true, bf16-mixed"),
        (["trainer.strategy=ddpp"], "trainer: You selected an invalid strategy name"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path, options, message):
    with pytest.raises(UserError, match=message) as refused:
        built(tmp_path, *options)
    assert "\n" not in str(refused.value)


def test_mps_is_refused_where_float64_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match="Apple's MPS has no float64, in which a diffusion process computes"):
        built(tmp_path, "experiment=mnist/ddpm", "data=mnist_5k", "trainer=mps")


class NoFloat64(TorchDispatchMode):
    """A device without float64, as far as a CPU can be one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(out)):
            raise TypeError(f"{func} gives float64")
        return out


@pytest.mark.parametrize("name", ["vqvae", "autoencoder_kl", "classifier", "ddpm"])
def test_first_stages_and_classifiers_compute_without_float64(name):
    model = build(name)
    model.log = lambda *args, **options: None
    batch = {"image": torch.rand(6, 1, SIDE, SIDE) * 2 - 1, "label": torch.arange(6) % 3, "index": torch.arange(6)}

    def compute():
        model.loss(batch).total.backward()
        model.eval().validation_step(batch, 0)
        if name == "vqvae":
            model.usage.compute()

    with NoFloat64():
        if name == "ddpm":
            with pytest.raises(TypeError, match="gives float64"):
                compute()
        else:
            compute()


def test_compiling_on_a_cpu_needs_a_compiler(tmp_path, monkeypatch):
    cfg = composed(tmp_path, "compile=true", "activation_checkpointing=true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"compile=true needs a C\+\+ compiler, and there is no g\+\+"):
        check_compiler(cfg)


# --- who has started the processes ---------------------------------------------------------------------------------------------


def test_a_lone_process_is_one_device_and_a_strategy_takes_every_gpu(monkeypatch):
    node = {"devices": "auto", "num_nodes": 1, "accelerator": "auto", "strategy": "auto"}
    with_strategy = node | {"strategy": {"_target_": "DDP"}}
    assert process_count(node) == process_count(with_strategy) == ProcessCount(1, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert process_count(node) == ProcessCount(1, 1)
    assert process_count(with_strategy) == ProcessCount(4, 1)
    assert process_count(with_strategy | {"accelerator": "cpu"}) == ProcessCount(1, 1)
    assert process_count(node | {"devices": [1, 3]}).num_processes == 2
    assert process_count(node | {"devices": "2"}).num_processes == 2


def test_slurm_has_the_say(monkeypatch, tmp_path):
    slurm(monkeypatch, 8, 2, 4)
    cfg = composed(tmp_path, "trainer=ddp")
    assert process_count(cfg.trainer) == ProcessCount(4, 2, "SLURM")
    assert is_multi_process(cfg)
    made = build_trainer(cfg)
    assert (made.world_size, made.num_nodes) == (8, 2)
    assert made.strategy.cluster_environment.auto_requeue is False
    build_trainer(composed(tmp_path, "trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2"))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((8, 2, 4), ["trainer.devices=2"], "trainer.devices=2, but SLURM has started 4 processes a node: leave out"),
        ((8, 2, 4), ["trainer.num_nodes=3"], "trainer.num_nodes=3, but SLURM has given 2: leave out trainer.num_nodes"),
        ((8, 2), [], "SLURM was given --ntasks=8 without --ntasks-per-node: give --nodes=2 and --ntasks-per-node=4"),
        ((6, 2, 4), [], "SLURM has started 6 tasks on 2 nodes with --ntasks-per-node=4"),
    ],
    ids=["devices", "nodes", "ntasks", "part"],
)
def test_contradicting_slurm_is_said_in_one_line(tmp_path, monkeypatch, given, options, message):
    slurm(monkeypatch, *given)
    with pytest.raises(UserError, match=message):
        built(tmp_path, *options)


def test_torchrun_has_the_say_too(monkeypatch, tmp_path):
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert process_count(composed(tmp_path).trainer) == ProcessCount(2, 2, "torchrun")
    with pytest.raises(UserError, match=r"torchrun has started 2 processes a node: .* --nproc-per-node=3"):
        built(tmp_path, "trainer.devices=3")


def test_an_interactive_shell_of_slurm_is_no_job(monkeypatch, tmp_path):
    slurm(monkeypatch, 8, 2, 4)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert process_count(composed(tmp_path).trainer) == ProcessCount(1, 1)
