"""Whatever stops a run, nothing is lost: one line says what happened, and the same command goes on and ends as the run left alone.

"As the run left alone" is bit for bit, with the same rows of metrics.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from command import ROOT, run
from tiny_run import assert_equal
from trilemma.callbacks.checkpoint import batch_of, step_checkpoints
from trilemma.callbacks.pictures.grids import Reconstructions
from trilemma.checkpoints import write as checkpoint_io
from trilemma.cli import training
from trilemma.distributed.signals import PREEMPTION
from trilemma.models.vqvae import VQVAE
from wandb_server import KEY, wandb_server

BATCHES = 12
COMMAND = [
    "experiment=demo/vqvae",
    "debug=fast",
    f"trainer.max_steps={BATCHES}",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
    "data.max_val_images=32",
    "callbacks.checkpoint.every_n_batches=3",
    "callbacks.run_report=null",
    "model.codec.encoder.channels=8",
    "model.codec.decoder.channels=8",
]
TRAINED = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("alone")
    run("train", *COMMAND, "run.id=alone", f"paths.output_dir={folder}")
    return folder / "demo/vqvae/alone"


def assert_ends_as(alone, folder):
    ends = [read(path / "checkpoints" / f"step-{BATCHES:08d}.ckpt") for path in (folder, alone)]
    assert_equal(*({name: end[name] for name in TRAINED} for end in ends))
    assert (folder / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()


def read(path):
    return torch.load(path, weights_only=True)


def lines(text):
    return [line for line in text.splitlines() if line.strip() and "of the codes are in use" not in line]


def run_dir(tmp_path):
    return tmp_path / "outputs/demo/vqvae/run"


class Once:
    """Sends this process a signal at the n-th call of a function, before or after it."""

    def __init__(self, number, monkeypatch, owner, name, call=1, *, after=False):
        self.number, self.function, self.call, self.after = number, getattr(owner, name), call, after
        monkeypatch.setattr(owner, name, lambda *args, **options: self(*args, **options))

    def __call__(self, *args, **options):
        self.call -= 1
        if self.call == 0 and not self.after:
            os.kill(os.getpid(), self.number)
        result = self.function(*args, **options)
        if self.call == 0 and self.after:
            os.kill(os.getpid(), self.number)
        return result


# --- signals ------------------------------------------------------------------------------------------------------------

WHERE = (  # (in this place, which is a function's n-th call of this process, and the batch of the newest checkpoint afterwards)
    ("reading data", training, "_set_up", 1, None),
    ("the first batch", VQVAE, "loss", 1, 1),
    ("a batch", VQVAE, "loss", 2, 3),
    ("the batch before a validation", VQVAE, "loss", 1, 4),
    ("validation", VQVAE, "validation_step", 2, 4),
    ("drawing pictures", Reconstructions, "on_validation_batch_end", 1, 4),
    (
        "writing a checkpoint",
        checkpoint_io,
        "atomic_write",
        2,
        7,
    ),  # that of batch 6, after best.ckpt: too late for this one
)


def test_asked_to_stop_everywhere(command, tmp_path, monkeypatch, alone):
    """One run that is stopped in one place after the other."""
    for i, (where, owner, function, call, written) in enumerate(WHERE):
        number = PREEMPTION[i % len(PREEMPTION)]
        with monkeypatch.context() as patch:
            Once(number, patch, owner, function, call)
            stopped = command("train", *COMMAND, "run.id=run")
        assert stopped.status == 75, (where, stopped.err)
        last = lines(stopped.err)[-1]
        assert last.startswith(f"stopped by {number.name}"), where
        assert last.endswith(("; the same command goes on", "; the same command starts again")), where
        newest = next(iter(step_checkpoints(run_dir(tmp_path) / "checkpoints")), None)
        assert (None if newest is None else batch_of(newest)) == written, where
    assert command("train", *COMMAND, "run.id=run").status == 0
    assert_ends_as(alone, run_dir(tmp_path))


@pytest.mark.parametrize("number", PREEMPTION)
def test_asked_to_stop_while_torch_is_imported(tmp_path, number):
    (tmp_path / "torch").mkdir()  # one that takes long
    (tmp_path / "torch" / "__init__.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    process = start(tmp_path, "run.id=run", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    errors = process.communicate()[1]
    assert process.returncode == 75, errors
    assert errors == f"stopped by {number.name}; the same command goes on\n"


def test_ctrl_c_and_ctrl_c_again(command, tmp_path, monkeypatch, alone):
    with monkeypatch.context() as patch:
        Once(signal.SIGINT, patch, VQVAE, "loss", 5)
        once = command("train", *COMMAND, "run.id=run")
    assert once.status == 130
    assert "stopped by SIGINT after 5 of 12 batches" in lines(once.err)[-1]
    with monkeypatch.context() as patch:
        Once(signal.SIGINT, patch, VQVAE, "loss", 3)
        Once(signal.SIGINT, patch, VQVAE, "loss", 3, after=True)
        twice = command("train", *COMMAND, "run.id=run")
    assert twice.status == 130
    assert lines(twice.err)[-1] == "interrupted; the same command with the same run.id goes on"
    assert step_checkpoints(run_dir(tmp_path) / "checkpoints")[0].name == "step-00000006.ckpt"  # the periodic one
    assert command("train", *COMMAND, "run.id=run").status == 0
    assert_ends_as(alone, run_dir(tmp_path))


def test_a_run_that_was_given_no_name_says_how_to_go_on(command, monkeypatch):
    with monkeypatch.context() as patch:
        Once(signal.SIGTERM, patch, VQVAE, "loss", 2)
        stopped = command("train", *COMMAND)
    assert stopped.status == 75
    assert "; the same command with run.id=20" in lines(stopped.err)[-1]


def test_where_nothing_is_written_nothing_is_waited_for(command, monkeypatch):
    with monkeypatch.context() as patch:
        Once(signal.SIGTERM, patch, VQVAE, "loss", 2)
        stopped = command("train", *[part for part in COMMAND if "callbacks." not in part], "callbacks=none")
    assert stopped.status == 75
    assert lines(stopped.err)[-1].startswith("stopped by SIGTERM")


# --- a requeued job -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", ["never", pytest.param("PATH", marks=pytest.mark.slow)])
def test_a_requeued_job_goes_on_whatever_it_was_told_to_start_from(command, tmp_path, monkeypatch, alone, resume):
    for name, value in {"SLURM_JOB_ID": "17", "TRILEMMA_REQUEUE": "script"}.items():
        monkeypatch.setenv(name, value)
    told = "never" if resume == "never" else alone / "checkpoints" / "step-00000009.ckpt"
    before = run_dir(tmp_path)
    (before / "slurm").mkdir(parents=True)  # of the batch script, which stays
    (before / "old").mkdir()
    with monkeypatch.context() as patch:
        Once(signal.SIGUSR1, patch, VQVAE, "loss", 1, after=True)
        assert command("train", *COMMAND, "run.id=run", f"run.resume={told}").status == 75
    assert (before / "slurm").is_dir()
    assert (before / "old").is_dir() == (resume != "never")
    again = command("train", *COMMAND, "run.id=run", f"run.resume={told}")
    assert f"Resuming from {before / 'checkpoints'}" in again.out
    assert again.status == 0
    monkeypatch.setenv("SLURM_JOB_ID", "18")  # the same command in another job is meant as it is said
    anew = command("train", *COMMAND, "run.id=run", "run.resume=never")
    assert "Resuming" not in anew.out
    assert_ends_as(alone, run_dir(tmp_path))


# --- disks --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder, *options):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this user cannot mount a file system here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount here")
def test_the_disk_is_full_while_a_checkpoint_is_written(command, tmp_path, monkeypatch, alone):
    size = (alone / "checkpoints" / f"step-{BATCHES:08d}.ckpt").stat().st_size
    with mounted(tmp_path / "small", "-o", f"size={20 * size}") as disk:
        outputs = disk / "outputs"
        filler = disk / "filler"

        def fill(model, batch, loss=VQVAE.loss):
            if (
                model.trainer.global_step == 5 and not filler.exists()
            ):  # for the checkpoint of batch 6 half the room is left
                filler.write_bytes(b"0" * (shutil.disk_usage(disk).free - size // 2))
            return loss(model, batch)

        with monkeypatch.context() as patch:
            patch.setattr(VQVAE, "loss", fill)
            full = command("train", *COMMAND, "run.id=run", output_dir=outputs)
        assert full.status == 2
        folder = outputs / "demo/vqvae/run"
        assert lines(full.err) == [
            f"error: cannot write {folder / 'checkpoints/step-00000006.ckpt'}: No space left on device; free some space or choose a "
            "folder you may write to"
        ]
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
            "best.ckpt",
            "last.ckpt",
            "step-00000003.ckpt",
        ]
        # Before there is room again nothing is made worse.
        filler.write_bytes(filler.read_bytes() + b"0" * shutil.disk_usage(disk).free)
        assert command("train", *COMMAND, "run.id=run", output_dir=outputs).status == 2
        filler.unlink()
        done = command("train", *COMMAND, "run.id=run", output_dir=outputs)
        assert done.status == 0, done.err
        assert "Resuming from" in done.out
        assert_ends_as(alone, folder)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount here")
def test_an_output_folder_that_is_read_only(command, tmp_path, alone):
    with mounted(tmp_path / "read-only") as disk:
        shutil.copytree(alone, disk / "outputs/demo/vqvae/run", symlinks=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        refused = command("train", *COMMAND, "run.id=run", "trainer.max_steps=20", output_dir=disk / "outputs")
    assert refused.status == 2
    [line] = lines(refused.err)
    assert "Read-only file system" in line
    assert "paths.output_dir" in line


def test_the_newest_checkpoint_is_truncated(command, tmp_path, monkeypatch, alone):
    with monkeypatch.context() as patch:
        Once(signal.SIGTERM, patch, VQVAE, "loss", 8)
        assert command("train", *COMMAND, "run.id=run").status == 75
    newest, before = step_checkpoints(run_dir(tmp_path) / "checkpoints")
    os.truncate(newest, newest.stat().st_size // 2)
    done = command("train", *COMMAND, "run.id=run")
    assert done.status == 0
    assert f"WARNING: {newest} is truncated or damaged" in done.err
    assert f"Resuming from {before}" in done.out
    assert_ends_as(alone, run_dir(tmp_path))


# --- real processes -----------------------------------------------------------------------------------------------------


def start(folder, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "train.py", *COMMAND, *arguments, f"paths.output_dir={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_of_two_processes_on_one_run_the_second_refuses(tmp_path):
    both = [start(tmp_path, "run.id=run", "trainer.max_steps=300") for _ in range(2)]
    ended = sorted(((process.communicate()[1], process.returncode) for process in both), key=lambda end: end[1])
    assert [status for _, status in ended] == [0, 2]
    [line] = lines(ended[1][0])
    assert "is in use by process" in line


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "everywhere"), [(0, False), (2, True)], ids=["main process", "all, with workers"])
def test_stopped_again_and_again(tmp_path, workers, everywhere):
    """Real signals at arbitrary moments; as SLURM does, to all processes of the job, or as a user does, to the main one."""
    arguments = [f"data.num_workers={workers}", "trainer.max_steps=400", "trainer.val_check_interval=50"]
    for name in ("alone", "stopped"):
        (tmp_path / name).mkdir()
    process = start(tmp_path / "alone", *arguments, "run.id=run")
    process.communicate()
    assert process.returncode == 0
    statuses = []
    for number in PREEMPTION:
        process = start(tmp_path / "stopped", *arguments, "run.id=run", start_new_session=True)
        for line in process.stdout:
            if "trainable parameters" in line:
                break
        time.sleep(0.3 + 0.2 * len(statuses))
        if everywhere:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate()
        statuses.append(process.returncode)
        assert process.returncode == 75, errors
        assert "Traceback" not in errors
    process = start(tmp_path / "stopped", *arguments, "run.id=run")
    process.communicate()
    assert process.returncode == 0
    a, b = (tmp_path / name / "demo/vqvae/run" for name in ("alone", "stopped"))
    ends = [read(path / "checkpoints" / "step-00000400.ckpt") for path in (a, b)]
    assert_equal(*({name: end[name] for name in TRAINED} for end in ends))
    assert (a / "metrics.csv").read_text() == (b / "metrics.csv").read_text()


def alive(group):
    """Whether a process of the group runs; not those that have ended and that nobody has asked about."""
    shown = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if line.split()[0] == str(group) and line.split()[1][0] != "Z"]


TWO = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]


@pytest.mark.slow
def test_two_local_processes(tmp_path):
    """Lightning starts the second one; only the first is asked to stop."""
    arguments = [*TWO, "trainer.max_steps=200", "trainer.val_check_interval=50", "run.id=run"]
    refused = start(tmp_path, *TWO, "data.batch_size=7")
    _, errors = refused.communicate()
    assert refused.returncode == 2
    assert len(lines(errors)) == 1
    for name in ("alone", "stopped"):
        (tmp_path / name).mkdir(parents=True)  # an empty output folder went with the command that was refused
    process = start(tmp_path / "alone", *arguments)
    process.communicate()
    assert process.returncode == 0
    for delay in (0.5, 8.0):  # while the second one starts, and while they train
        process = start(tmp_path / "stopped", *arguments, start_new_session=True)
        for line in process.stdout:
            if "trainable parameters" in line:
                break
        time.sleep(delay)
        process.send_signal(signal.SIGUSR1)
        _, errors = process.communicate()
        assert process.returncode == 75, errors
        assert lines(errors)[-1].startswith("stopped by SIGUSR1")
        assert not alive(process.pid)
    finished = start(tmp_path / "stopped", *arguments)
    _, errors = finished.communicate()
    assert finished.returncode == 0, errors
    again = start(tmp_path / "stopped", *arguments)
    assert again.communicate()[0].count("Finished already") == 1
    a, b = (tmp_path / name / "demo/vqvae/run" for name in ("alone", "stopped"))
    ends = [read(path / "checkpoints" / "step-00000200.ckpt") for path in (a, b)]
    assert_equal(*({name: end[name] for name in TRAINED} for end in ends))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_local_processes_is_killed(tmp_path, rank):
    process = start(tmp_path, *TWO, "trainer.max_steps=100000", "run.id=run", start_new_session=True)
    metrics = tmp_path / "demo/vqvae/run/metrics.csv"
    while not metrics.exists():  # until they train
        assert process.poll() is None
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill([process.pid, int(children.split()[0])][rank], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode not in (0, 2, 75)
    assert not alive(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["start", "middle"])
def test_the_wandb_server_is_gone(tmp_path, when, alone):
    address = "http://127.0.0.1:9"
    with wandb_server() if when == "middle" else contextlib.nullcontext() as server:
        if server is not None:
            address = server[0]
        environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
        environment.pop("WANDB_MODE", None)
        length = BATCHES if when == "start" else 400  # longer than the server lives
        logger = ["logger=wandb", "logger.wandb.finish_timeout=2", "run.id=run", f"trainer.max_steps={length}"]
        process = start(tmp_path, *logger, env=environment)
        for line in process.stdout:
            if "trainable parameters" in line:
                break
        if when == "middle":
            deadline = time.monotonic() + 60
            while not server[1].rows and time.monotonic() < deadline:
                time.sleep(0.05)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    said = "cannot be reached" if when == "start" else "nothing is lost"
    assert len([line for line in lines(errors) if said in line]) == 1, errors
    if when == "start":
        assert_ends_as(alone, tmp_path / "demo/vqvae/run")
    assert (tmp_path / f"demo/vqvae/run/checkpoints/step-{length:08d}.ckpt").is_file()
