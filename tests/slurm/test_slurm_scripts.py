"""What the batch scripts decide by themselves, without a cluster."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from trilemma.cli import main as cli

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "slurm"
TEMPLATES = sorted(SLURM.glob("*.sbatch"))
SITES = sorted(SLURM.glob("sites/*.env"))
PLAIN = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "USER": "somebody"}
JOB = {**PLAIN, "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "test"}


def bash(script, *arguments, status=0, environment=PLAIN, cwd=ROOT):
    done = subprocess.run(
        ["bash", "-c", script, "bash", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture
def programs(tmp_path):
    """programs(name="shell script"): commands that stand in for those of SLURM; gives the environment that finds them."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def make(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
            (folder / name).chmod(0o755)
        return {**JOB, "PATH": f"{folder}:{PLAIN['PATH']}"}

    return make


def test_shellcheck_finds_nothing():
    scripts = [*SLURM.glob("*.sh"), *TEMPLATES, ROOT / ".ci/run"]
    done = subprocess.run([Path(sys.executable).with_name("shellcheck"), "-x", *scripts], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_templates_leave_to_the_site_what_is_the_sites(path):
    directives = re.findall(r"^#SBATCH (--[\w-]+)(?:=(\S+))?", path.read_text(), re.MULTILINE)
    names = {name for name, _ in directives}
    assert {"--requeue", "--open-mode", "--signal"} <= names
    assert not names & {
        "--account",
        "--partition",
        "--qos",
        "--gres",
        "--gpus-per-node",
        "--constraint",
        "--mem",
        "--time",
    }
    (warning,) = (value for name, value in directives if name == "--signal")
    assert not warning.startswith("B:"), "only the shell would hear it"
    assert path.stat().st_mode & 0o444


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_sites_say_who_they_are_and_let_the_user_win(path):
    quiet = {**PLAIN, "SBATCH_ACCOUNT": "r00000", "SBATCH_PARTITION": "mine", "WANDB_MODE": "online"}
    done = bash(f"set -u; . {path}; . {path}; env", environment=quiet)
    assert not done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert found["TRILEMMA_SITE"] == path.stem
    assert (found["SBATCH_PARTITION"], found["WANDB_MODE"]) == ("mine", "online")


def test_big_red_asks_for_the_account():
    assert "export SBATCH_ACCOUNT=" in bash(". slurm/sites/bigred200.env").stderr


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=mnist/vqvae"],
        ["experiment=mnist/vqvae", "run.id=mine", "paths.output_dir=/some/where"],
        ["experiment=mnist/vqvae", "experiment=mnist/ddpm", "run.id=a", "run.id=b"],
        ["model=vqvae", "data=mnist", "trainer.max_steps=3"],
        ["experiment=mnist/vqvae", "experiment_name=other", "paths.output_dir='with space'"],
    ],
    ids=["default", "named", "last_counts", "no_experiment", "quoted"],
)
def test_the_run_directory_is_hydras(overrides):
    cli.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["run.id=17", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    theirs = bash('. slurm/names.sh; run_dir 17 "$@"', *overrides).stdout.strip()
    assert theirs == cfg.hydra.run.dir


def test_a_run_directory_that_only_hydra_could_work_out_is_refused():
    done = bash('. slurm/names.sh; run_dir 17 "$@"', "paths.output_dir=${oc.env:HOME}/x", status=2)
    assert done.stderr.startswith("error: paths.output_dir=${oc.env:HOME}/x: the batch scripts need a plain value")


def test_words_are_cut_as_a_shell_does_and_nothing_is_executed():
    line = """a=1 "b=['x y']" 'c=$(touch boom)' d=`touch boom`"""
    assert bash('. slurm/names.sh; words "$1"', line).stdout.splitlines() == [
        "a=1",
        "b=['x y']",
        "c=$(touch boom)",
        "d=`touch",
        "boom`",
    ]
    bash('. slurm/names.sh; words "$1"', "a='1", status=1)
    assert not (ROOT / "boom").exists()


FABRIC = '. slurm/names.sh; . slurm/fabric.sh; MASTER_ADDR=192.0.2.1; fabric && env | grep -E "^(NCCL|GLOO|FI)_" | sort'


def machine(folder, *, cxi=False, link_layer=None, hsn=False):
    """A /sys with these devices."""
    (folder / "class/net/eth0").mkdir(parents=True)
    if cxi:
        (folder / "class/cxi/cxi0").mkdir(parents=True)
    if link_layer:
        port = folder / "class/infiniband/mlx5_0/ports/1"
        port.mkdir(parents=True)
        (port / "link_layer").write_text(link_layer + "\n")
    if hsn:
        (folder / "class/net/hsn0").mkdir()
        (folder / "class/net/hsn1").mkdir()
    return {**PLAIN, "TRILEMMA_SYSFS": str(folder)}


@pytest.mark.parametrize(
    ("devices", "kind", "variables"),
    [
        ({}, "plain", set()),
        ({"cxi": True, "hsn": True}, "cxi on hsn", {"NCCL_NET=AWS Libfabric", "NCCL_SOCKET_IFNAME=hsn", "GLOO_SOCKET_IFNAME=hsn0"}),
        ({"link_layer": "Ethernet", "hsn": True}, "roce on hsn", {"NCCL_SOCKET_IFNAME=hsn", "GLOO_SOCKET_IFNAME=hsn0"}),
        ({"link_layer": "InfiniBand"}, "infiniband", set()),
    ],
    ids=["plain", "cxi", "roce", "infiniband"],
)  # fmt: skip
def test_the_fabric_is_looked_up(tmp_path, devices, kind, variables):
    said = bash(f"{FABRIC}; true", environment=machine(tmp_path, **devices)).stdout.splitlines()
    assert said[0].startswith(f"fabric: {kind}")
    assert variables <= set(said[1:])
    assert ("NCCL_NET=AWS Libfabric" in said) == ("cxi" in devices)
    if not variables:
        assert said[1:] == []


def test_the_user_knows_the_fabric_better(tmp_path):
    environment = machine(tmp_path, cxi=True, hsn=True)
    said = bash(FABRIC, environment={**environment, "TRILEMMA_FABRIC": "plain", "NCCL_SOCKET_IFNAME": "eth0"}).stdout
    assert "fabric: plain" in said
    assert "NCCL_SOCKET_IFNAME=eth0" in said
    assert "Libfabric" not in said
    assert bash(f"{FABRIC}; true", environment={**environment, "TRILEMMA_FABRIC": "none"}).stdout == ""
    done = bash(FABRIC, environment={**environment, "TRILEMMA_FABRIC": "cix"}, status=2)
    assert done.stderr == "error: TRILEMMA_FABRIC=cix: choose one of auto, cxi, roce, infiniband, plain, none\n"


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_staging_copies_and_sweeps_up(tmp_path, programs, packed):
    source = tmp_path / "data"
    (source / "mnist").mkdir(parents=True)
    (source / "mnist/images").write_text("pixels")
    if packed:
        with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as archive:
            archive.add(source / "mnist", "mnist")
        source = tmp_path / "data.tar.gz"
    local = tmp_path / "local"
    for job in ("5", "6"):
        (local / f"trilemma-somebody-{job}").mkdir(parents=True)
    environment = programs(squeue="[[ $* == *--jobs=6* ]] && echo 6 or so; true")  # job 6 runs, job 5 is gone
    said = bash(f"slurm/stage.sh {source} {local}/trilemma-somebody-17", environment=environment).stdout
    assert f"from {source} in {local}/trilemma-somebody-17" in said
    assert (local / "trilemma-somebody-17/mnist/images").read_text() == "pixels"
    assert not (local / "trilemma-somebody-5").exists()
    assert (local / "trilemma-somebody-6").exists()


def test_staging_what_is_not_there(tmp_path):
    done = bash(f"slurm/stage.sh /no/such {tmp_path}/trilemma-somebody-17", status=2)
    assert done.stderr == "error: TRILEMMA_STAGE=/no/such: there is no such file or folder\n"


def rank(tmp_path, command, *, number=0, of=1, **environment):
    """`rank.sh` as srun starts it."""
    variables = {**JOB, "TRILEMMA_START": str(tmp_path), "SLURM_NODEID": str(number), "SLURM_LOCALID": "0"}
    variables |= {"SLURM_STEP_NUM_TASKS": str(of), "SLURM_STEP_NUM_NODES": str(of), **environment}
    return subprocess.Popen(["slurm/rank.sh", *command], cwd=ROOT, env=variables, start_new_session=True)


def test_a_process_notes_its_status(tmp_path):
    assert rank(tmp_path, ["bash", "-c", "exit 3"]).wait() == 3
    assert (tmp_path / "0-0").read_text() == "3\n"


def test_a_signal_before_python_listens_is_a_preemption(tmp_path):
    process = rank(tmp_path, ["sleep", "60"])
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGUSR1)
    assert process.wait() == 75
    assert (tmp_path / "0-0").read_text() == "75\n"


def test_a_process_that_is_killed_by_somebody_else_is_not_preempted(tmp_path):
    assert rank(tmp_path, ["bash", "-c", "kill -USR1 $$"]).wait() == 128 + signal.SIGUSR1


def test_one_that_fails_leaves_the_others_time_to_write(tmp_path):
    staged = tmp_path / "staged"
    staged.mkdir()
    start = time.monotonic()
    first = rank(tmp_path, ["bash", "-c", "exit 2"], of=2, TRILEMMA_STAGED=str(staged))
    second = rank(tmp_path, ["bash", "-c", "sleep 1; exit 2"], number=1, of=2, TRILEMMA_STAGED=str(staged))
    assert first.wait() == 2
    assert time.monotonic() - start > 1
    assert second.wait() == 2
    assert not staged.exists()
    start = time.monotonic()
    assert rank(tmp_path / "nobody", ["false"], of=2, TRILEMMA_GRACE="1").wait() == 1  # but not for ever
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("lines", "newest", "count"),
    [
        (["17 0 1 a"], "a", 1),
        (["17 0 1 a", "17 1 137 b"], "b", 2),
        (["17 0 75 a", "17 1 75 b", "17 2 75 c"], "c", 0),
        (["17 0 75 c", "17 1 75 c", "17 2 75 c"], "c", 2),
        (["17 0 75 unseen", "17 1 75 unseen", "17 2 75 unseen"], "unseen", 0),
        (["16 0 1 a", "16 1 1 a", "17 0 1 a"], "a", 1),
    ],
    ids=["one", "two", "preempted", "no_progress", "progress_unseen", "another_job"],
)
def test_restarts_are_counted(tmp_path, lines, newest, count):
    (tmp_path / "restarts").write_text("".join(f"{line} 2026-01-01 00:00:00\n" for line in lines))
    said = bash(f". slurm/common.sh; _restarts {tmp_path}/restarts {newest}", environment=JOB).stdout
    assert int(said) == count


def test_the_newest_checkpoint_is_the_last(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    newest = f". slurm/common.sh; _newest '{folder}/step-*.ckpt'"
    assert bash(newest, environment=JOB).stdout == "none\n"
    for step in (900, 1000, 100):
        (folder / f"step-{step:08d}.ckpt").touch()
    assert bash(newest, environment=JOB).stdout == "step-00001000.ckpt\n"


def sweep(tmp_path, *, status=2, **environment):
    lines = tmp_path / "rates.txt"
    lines.write_text("# learning rates\noptimizer.lr=1e-3\n\noptimizer.lr=3e-3 'seed=1\n")
    return bash('bash slurm/sweep.sbatch "$@"', str(lines), status=status, environment={**JOB, **environment})


def test_a_sweep_says_what_it_lacks(tmp_path):
    assert "2 lines: give sbatch --array=0-1" in sweep(tmp_path).stderr
    array = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}
    assert "the last of them is element 1: there is no element 2" in sweep(tmp_path, **array).stderr
    assert "cannot read element 1: optimizer.lr=3e-3 'seed=1" in sweep(
        tmp_path, **array, TRILEMMA_SWEEP_OFFSET="-1"
    ).stderr.replace("xargs: unmatched single quote", "")
    done = bash("bash slurm/sweep.sbatch nothing.txt", status=2, environment=JOB)
    assert done.stderr == (
        "error: no sweep: sbatch --array=0-N slurm/sweep.sbatch FILE [OVERRIDES], and nothing.txt is no file\n"
    )


def test_a_template_outside_the_repository_says_so(tmp_path):
    done = bash(
        f"bash {SLURM}/train.sbatch", status=2, environment={**JOB, "SLURM_SUBMIT_DIR": str(tmp_path)}, cwd=tmp_path
    )
    assert "error: submit from the folder that holds train.py, or set TRILEMMA_ROOT to it" in done.stderr


SUBMIT = r'echo "sbatch $*" >>"$CALLS"; echo $((100 + $(wc -l <"$CALLS")))'


@pytest.fixture
def pipeline(tmp_path, programs):
    """pipeline(arguments) -> (what it said, the calls of sbatch)."""

    def call(*arguments, status=0, queue="true"):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = programs(sbatch=SUBMIT, squeue=queue) | {"CALLS": str(calls)}
        done = bash('slurm/pipeline.sh "$@"', *arguments, status=status, environment=environment)
        return done, calls.read_text().splitlines()

    return call


def test_a_pipeline_is_three_jobs_that_depend_on_each_other(pipeline):
    done, calls = pipeline(
        "first",
        "--codec", "experiment=mnist/vqvae 'data.root=/my data'",
        "--prior", "experiment=mnist/vq_diffusion",
        "--evaluate", "num_images=100",
        "--", "--time=10",
    )  # fmt: skip
    codec, prior, evaluate = calls
    last = "checkpoints/last.ckpt"
    assert codec == (
        "sbatch --parsable --job-name=first-codec --time=10 slurm/train.sbatch experiment=mnist/vqvae data.root=/my data run.id=first"
    )
    assert prior == (
        "sbatch --parsable --job-name=first-prior --dependency=afterok:101 --kill-on-invalid-dep=yes --time=10 slurm/train.sbatch "
        f"codec.checkpoint='outputs/mnist/vqvae/first/{last}' experiment=mnist/vq_diffusion run.id=first"
    )
    assert evaluate == (
        "sbatch --parsable --job-name=first-evaluate --dependency=afterok:102 --kill-on-invalid-dep=yes --time=10 "
        f"slurm/evaluate.sbatch ckpt='outputs/mnist/vq_diffusion/first/{last}' num_images=100"
    )
    assert [line.split()[:3] for line in done.stdout.splitlines()[:3]] == [
        ["codec", "job", "101"],
        ["prior", "job", "102"],
        ["evaluate", "job", "103"],
    ]


def test_a_pipeline_without_a_codec(pipeline):
    _, calls = pipeline("first", "--prior", "experiment=mnist/ddpm", "--evaluate", "")
    assert len(calls) == 2
    assert "codec" not in " ".join(calls)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "usage: slurm/pipeline.sh RUN_ID"),
        (["first"], "there is no --prior"),
        (["first", "--priro", "x"], "unknown option --priro"),
        (["first", "--prior"], "--prior needs its overrides in quotes"),
        (["first", "--prior", "a='b"], "cannot read --prior 'a='b': see its quotes"),
    ],
    ids=["nothing", "no_prior", "misspelt", "no_value", "open_quote"],
)
def test_a_pipeline_that_is_no_pipeline(pipeline, arguments, complaint):
    done, calls = pipeline(*arguments, status=2)
    assert f"error: {complaint}" in done.stderr
    assert calls == []


def test_a_pipeline_that_is_queued_already(pipeline):
    done, calls = pipeline(
        "first", "--prior", "experiment=mnist/ddpm", status=2, queue="echo '9 (first-prior, PENDING)'"
    )
    assert done.stderr == (
        "error: this pipeline is in the queue already: 9 (first-prior, PENDING); wait for it or cancel it\n"
    )
    assert calls == []
