"""Bad input: one line that names the fix, exit status 2, and nothing has been trained."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from trilemma.runs.lock import run_lock

ROOT = Path(__file__).parents[2]


def assert_refused(result, *fragments):
    assert result.status == 2, (result.out, result.err)
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    for fragment in fragments:
        assert fragment in lines[0], lines[0]
    assert "Traceback" not in result.err + result.out


@pytest.fixture
def checkpoint(prior):
    return prior


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["experiment=mnist/vqave"], ["unknown experiment=mnist/vqave", "did you mean mnist/vqvae?"]),
        (["modle=vqvae"], ["modle", "did you mean model"]),
        (["experiment=demo/vqvae", "optimizer.lrr=1"], ["optimizer.lrr", "did you mean optimizer.lr?"]),
        (["experiment=demo/vqvae", "+typo=1"], ["unknown override typo"]),
        (["experiment=demo/vqvae", "+sed=1"], ["unknown override sed", "did you mean seed?"]),
        (
            ["experiment=demo/vqvae", "++optimizer.lrr=1"],
            ["unknown override optimizer.lrr", "did you mean optimizer.lr?"],
        ),
        (["experiment=demo/vqvae", "++model.codec.encoder.chanels=1"], ["did you mean model.codec.encoder.channels?"]),
        (["experiment=demo/vqvae", "trainer.max_steps=many"], ["trainer.max_steps=many", "a number at least 1"]),
        (["experiment=demo/vqvae", "trainer.max_steps=2.5"], ["trainer.max_steps=2.5", "int"]),
        (["experiment=demo/vqvae", "seed=abc"], ["seed=abc", "int is expected"]),
        (["experiment=demo/vqvae", "data.batch_size=0"], ["data.batch_size=0", "at least 1"]),
        (["experiment=demo/vq_diffusion", "codec=pixels"], ["needs tokens", "codec=vq"]),
        (
            ["experiment=mnist/vae", "data=mnist_5k", "data.binarize=null"],
            ["Bernoulli likelihood", "256 levels", "data.binarize=dynamic"],
        ),
        (
            ["experiment=demo/vq_diffusion", "data.binarize=dynamic"],
            ["codes of a first stage", "data.binarize=threshold"],
        ),
        (
            ["experiment=demo/vq_diffusion", "codec.overrides=['data.val_size=400']"],
            ["other data settings", "codec.overrides"],
        ),
        (
            ["experiment=demo/vq_diffusion", "codec.checkpoint=nowhere.ckpt"],
            ["codec.checkpoint=nowhere.ckpt", "no such file"],
        ),
        (["experiment=demo/vq_diffusion", "condition=none"], ["condition=none", "guidance=none"]),
        (["experiment=demo/vq_diffusion", "sampler=ddim"], ["sampler DDIM", "sampler=ancestral"]),
        (["experiment=demo/vqvae", "sampler=ddim"], ["leave out sampler="]),
        (["experiment=demo/vq_diffusion", "model.weighting=posterio"], ["did you mean posterior?"]),
        (["experiment=demo/vq_diffusion", "sampler.num_steps=0"], ["sampler.num_steps=0"]),
        (["experiment=demo/vqvae", "trainer._target_=os.system"], ["os.system", "only classes defined in"]),
        (["experiment=demo/vqvae", "init_from=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["experiment=demo/vq_diffusion", "init_from=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--experiment", "mnist/ddpm"], ["without dashes", "experiment=mnist/ddpm"]),
        (["mnist/ddpm"], ["mnist/ddpm sets nothing: write experiment=mnist/ddpm"]),
        (["experiment=demo/vqvae", "seed=1,2"], ["names several values: with -m", "seed=[1,2]"]),
        (["experiment=demo/vqvae", "run.resume=maybe"], ["run.resume=maybe: choose auto, never, or a checkpoint"]),
        (["experiment=demo/vqvae", "optimizer.lr=1e-3x"], ["optimizer.lr=1e-3x: a number at least 0"]),
        (["experiment=demo/vqvae", "run.id="], ["run.id= makes no folder of its own"]),
        (["experiment=demo/vqvae", "run.id=../x"], ["run.id=../x makes no folder of its own"]),
        (["experiment=demo/vqvae", "run.id=.hidden"], ["run.id=.hidden makes no folder of its own"]),
        (["experiment=demo/vqvae", "experiment_name=a/../../b"], ["experiment_name=.. makes no folder of its own"]),
        (["experiment=demo/vqvae", "trainer.max_steps=0"], ["trainer.max_steps=0", "at least 1"]),
        (["experiment=demo/vqvae", "model.codec.encoder.channels=6"], ["model.codec.encoder", "divisible by 4"]),
        (
            ["experiment=mnist/vqgan", "data=mnist_5k", "model.adversary.start=1500"],
            ["model.adversary.start=1500: training ends after 1500 batches"],
        ),
        (
            ["experiment=demo/vqvae", "model.codec.quantizer.codebook_size=250000"],
            ["250,000 codes, more than the", "take fewer codes"],
        ),
        (["experiment=demo/vqvae", "trainer.accelerator=gpu"], ["trainer"]),
        (["experiment=demo/vqvae", "run.resume=nowhere.ckpt"], ["nowhere.ckpt"]),
        ([], ["name an experiment"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_train_refuses(command, tmp_path, arguments, fragments):
    assert_refused(command("train", *arguments), *fragments)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_metric_that_no_validation_logs(command, tmp_path):
    arguments = ["experiment=demo/vqvae", "debug=fast", "run.id=x", "optimized_metric=val/los"]
    assert_refused(command("train", *arguments), "val/los is not logged", "val/mse")
    record = json.loads((tmp_path / "outputs/demo/vqvae/x/run.json").read_text())
    assert (record["status"], record["num_batches"]) == ("stopped", 0)


@pytest.mark.parametrize("damage", ["truncated", "wrong"])
def test_a_damaged_data_file_is_named(command, tmp_path, data_dir, damage):
    root = tmp_path / "mnist"
    shutil.copytree(data_dir / "mnist", root)
    victim = root / "train-labels-idx1-ubyte.gz"
    victim.chmod(0o644)
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-1000])
    else:
        content = bytearray(gzip.decompress(victim.read_bytes()))
        content[100] = (content[100] + 1) % 10
        victim.write_bytes(gzip.compress(bytes(content)))
    root.chmod(0o755)
    assert_refused(command("train", "experiment=mnist/vqvae", f"data.root={root}"), victim.name)


def test_an_output_folder_that_cannot_be_written(command, tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    assert_refused(command("train", "experiment=demo/vqvae", output_dir=blocker), str(blocker), "paths.output_dir")


def test_a_running_run_is_left_alone(command, tmp_path):
    folder = tmp_path / "outputs/demo/vqvae/busy"
    holder = (
        "import sys, time; from pathlib import Path; from trilemma.runs.lock import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", holder, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            assert_refused(command("train", "experiment=demo/vqvae", "run.id=busy"), str(process.pid))
        finally:
            process.kill()
    with run_lock(folder):  # killed, not released: the lock is free all the same
        pass


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["num_images=0"], ["num_images"]),
        (["sampler.num_steps=0"], ["sampler.num_steps=0"]),
        (["sampler.temperature=0"], ["temperature"]),
        (["sampler.truncation=2"], ["truncation"]),
        (["condition.label=10"], ["condition.label=10", "0 to 9"]),
        (["condition.label=-1"], ["condition.label=-1", "0 to 9"]),
        (["condition.label=seven"], ["condition.label=seven"]),
        (["condition.caption=a seven"], ["condition.label", "0 to 9"]),
        (["condition.caption=a seven", "condition.label=7"], ["not both"]),
        (["weights=best"], ["weights=best", "ema, raw"]),
        (["samplr.num_steps=3"], ["samplr", "did you mean sampler.num_steps?"]),
        (["sampler.steps=3"], ["sampler.steps"]),
        (["+typo=1"], ["unknown override typo"]),
        (["paths.output_dir=x"], ["unknown override paths.output_dir: did you mean output_dir?"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
@pytest.mark.parametrize("script", ["sample", "evaluate"])
def test_sampling_refuses(command, checkpoint, script, arguments, fragments):
    assert_refused(command(script, f"ckpt={checkpoint}", *arguments), *fragments)


def test_a_checkpoint_that_is_not_there(command, tmp_path):
    assert_refused(command("sample", f"ckpt={tmp_path}/no.ckpt"), "no.ckpt")
    assert_refused(command("sample"), "ckpt is missing")


def test_a_truncated_checkpoint(command, checkpoint, tmp_path):
    short = tmp_path / "short.ckpt"
    short.write_bytes(checkpoint.read_bytes()[:-5000])
    assert_refused(command("sample", f"ckpt={short}"), "short.ckpt")


def test_a_foreign_checkpoint(command, tmp_path):
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, foreign)
    assert_refused(command("sample", f"ckpt={foreign}"), "foreign.ckpt")
    foreign.write_text("hello")
    assert_refused(command("evaluate", f"ckpt={foreign}"), "foreign.ckpt")


@pytest.mark.parametrize("target", ["os.system", "torch.utils.collect_env.run", "torch.hub.load"])
def test_a_checkpoint_that_names_something_dangerous(command, checkpoint, tmp_path, target):
    evil = tmp_path / "evil.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["trilemma"]["config"]["model"]["network"] = {"_target_": target, "command": f"touch {tmp_path}/victim"}
    torch.save(content, evil)
    for script in ("sample", "evaluate"):
        assert_refused(command(script, f"ckpt={evil}"), target)
    assert not (tmp_path / "victim").exists()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_with_a_pickled_payload(command, checkpoint, tmp_path):
    evil, victim = tmp_path / "evil.ckpt", tmp_path / "victim"
    torch.save(torch.load(checkpoint, weights_only=True) | {"extra": Payload(victim)}, evil)
    for script, key in (("sample", "ckpt"), ("evaluate", "ckpt")):
        assert_refused(command(script, f"{key}={evil}"), "evil.ckpt")
    assert_refused(command("train", "experiment=demo/vqvae", f"init_from={evil}"), "evil.ckpt")
    time.sleep(0.1)
    assert not victim.exists()


def test_a_sweep_of_multi_process_jobs_is_refused(command):
    result = command("train", "-m", "experiment=demo/vqvae", "trainer.devices=2", "seed=1,2")
    assert result.status == 2
    assert "hydra/launcher=submitit_slurm" in result.err
