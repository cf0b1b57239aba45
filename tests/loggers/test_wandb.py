"""An offline run, read back with wandb's own reader."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from trilemma.errors import UserError
from trilemma.loggers.wandb import WandbLogger
from wandb_server import history, nowhere, records, summary  # noqa: F401

pytestmark = pytest.mark.usefixtures("nowhere")


def logger(folder, **options):
    return WandbLogger(
        **{"project": "p", "run_id": "a/b", "group": "mnist/vqvae", "save_dir": str(folder), "tags": ["t"], **options}
    )


def segments(folder):
    return sorted((folder / "wandb").glob("offline-run-*-a-b"))


def test_what_was_logged_is_on_the_disk(tmp_path, capsys):
    picture = Image.new("L", (8, 4), 7)
    log = logger(tmp_path, tags=["t", "u"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("wandb: offline (no API key")
    assert "make sync" in lines[0]
    log.log_hyperparams({"model": {"class": "VQVAE", "dim": 64}})
    for step in range(3):
        log.log_metrics({"train/loss": 0.5**step}, step=10 * step)
    log.log_image("samples", [picture], step=20, caption=["batch 20"])
    log.finalize("success")

    (segment,) = segments(tmp_path)
    content = summary(segment)
    assert content["config"] == {"model": {"class": "VQVAE", "dim": 64}}
    assert (content["state"], content["exit_code"]) == ("finished", 0)
    assert (content["project"], content["run_id"], content["name"]) == ("p", "a-b", "a/b")
    assert content["tags"] == ["t", "u"]
    (run,) = [r["run"] for r in records(segment) if r["type"] == "run"]
    assert (run["run_group"], run["job_type"], run["host"]) == ("mnist/vqvae", "train", "anon")
    rows = history(segment)
    assert [(r["train/loss"], r["trainer/global_step"], r["trainer/attempt"]) for r in rows[:3]] == [
        (1.0, 0, 1),
        (0.5, 10, 1),
        (0.25, 20, 1),
    ]
    assert rows[3]["samples.captions"] == ["batch 20"]
    media = segment / "files" / rows[3]["samples.filenames"][0]
    assert Image.open(media).tobytes() == picture.tobytes()
    assert hashlib.sha256(media.read_bytes()).hexdigest()[:20] in media.name
    metrics = {r["metric"].get("glob_name"): r["metric"].get("step_metric") for r in records(segment) if "metric" in r}
    assert metrics["*"] == "trainer/global_step"


def test_a_resumed_run_goes_on_with_its_steps(tmp_path):
    for attempt in range(3):
        log = logger(tmp_path, mode="offline")
        for step in range(4):
            log.log_metrics({"train/loss": 1.0}, step=10 * attempt + step)
        log.finalize("success")
    rows = [row for segment in segments(tmp_path) for row in history(segment)]
    assert [row["_step"] for row in rows] == list(range(12))
    assert [row["trainer/attempt"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    assert len(segments(tmp_path)) == 3


_KILLED = """
import sys, time
from trilemma.loggers.wandb import WandbLogger
log = WandbLogger(project="p", run_id="a/b", group="g", save_dir=sys.argv[1], mode="offline")
for step in range(300):
    log.log_metrics({"x": step})
print("logged", flush=True)
for step in range(300, 10**6):
    log.log_metrics({"x": step})
    time.sleep(0.005)
"""


def test_a_kill_loses_no_row_older_than_a_second_and_the_next_process_goes_on(tmp_path):
    with subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "logged\n"
        time.sleep(1.2)
        process.send_signal(signal.SIGKILL)
    (segment,) = segments(tmp_path)
    rows = [row["x"] for row in history(segment)]
    assert rows == list(range(len(rows)))
    assert len(rows) >= 300
    log = logger(tmp_path, mode="offline")
    log.log_metrics({"x": 0}, step=0)
    log.finalize("success")
    (row,) = history(segments(tmp_path)[1])
    # A row that was torn off may have left its number behind.
    assert row["_step"] in (len(rows), len(rows) + 1)
    assert row["trainer/attempt"] == 2


_PLANTED = """
import sys
from trilemma.loggers.wandb import WandbLogger
for profile in ("private", "full"):
    folder = f"{sys.argv[1]}/{profile}"
    log = WandbLogger(project="p", run_id="a/b", group="g", save_dir=folder, mode="offline", profile=profile)
    log.log_metrics({"x": 1.0})
    print("CANARY on the console")
    log.finalize("success")
"""
_VARIABLES = [
    "HF_TOKEN",
    "HOSTNAME",
    "USER",
    "LOGNAME",
    "WANDB_USERNAME",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_ACCOUNT",
]


def test_the_private_profile_keeps_nothing_that_was_not_logged(tmp_path):
    folder = tmp_path / "CANARY-experiment"
    command = [sys.executable, "-c", _PLANTED, str(folder), "password=CANARY"]
    environment = {**os.environ, **dict.fromkeys(_VARIABLES, "CANARY")}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True)

    (private,), (full,) = segments(folder / "private"), segments(folder / "full")
    # The canaries sing where they are let.
    assert any("CANARY" in str(record) for record in records(full))
    assert not [record for record in records(private) if "CANARY" in str(record)]
    kinds = {record["type"] for record in records(private)}
    assert {"run", "history", "exit"} <= kinds
    assert kinds.isdisjoint({"environment", "stats", "output", "output_raw", "files"})
    files = [path for path in (folder / "private/wandb").rglob("*") if path.is_file()]
    assert private / "run-a-b.wandb" in files
    assert [path for path in files if b"CANARY" in path.read_bytes()] == []


_AT_HOME = """
import sys
from trilemma.loggers.wandb import WandbLogger
for folder in sys.argv[1:]:
    log = WandbLogger(project="p", run_id="a/b", group="g", save_dir=folder, mode="offline")
    log.log_metrics({"x": 1.0}, step=0)
    log.finalize("success")
"""


def test_everything_lies_in_the_run_directory(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment |= {"HOME": str(home), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    runs = [tmp_path / "run", tmp_path / "other"]
    command = [sys.executable, "-c", _AT_HOME, *map(str, runs)]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True)
    assert list(home.rglob("*wandb*")) == []
    for run in runs:
        assert list((run / "wandb/cache").rglob("core-debug*"))


@pytest.mark.parametrize(
    "options", [{"project": "a/b"}, {"project": ""}, {"tags": [""]}, {"tags": ["t" * 65]}, {"finish_timeout": 0}]
)
def test_what_wandb_would_refuse_is_refused_before_anything_is_built(tmp_path, options):
    with pytest.raises(UserError) as raised:
        logger(tmp_path, **options)
    assert len(str(raised.value).splitlines()) == 1


def test_any_name_makes_an_id(tmp_path):
    log = logger(tmp_path, run_id="a:b?c d'e", mode="offline")
    log.log_metrics({"x": 1.0}, step=0)
    log.finalize("success")
    (segment,) = (tmp_path / "wandb").glob("offline-run-*-a-b-c-d-e")
    assert summary(segment)["name"] == "a:b?c d'e"


def test_disabled_writes_nothing_and_says_nothing(tmp_path, capsys):
    log = logger(tmp_path, mode="disabled")
    log.log_hyperparams({"a": 1})
    log.log_metrics({"x": 1.0}, step=0)
    log.finalize("success")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


_BEREFT = """
import os, signal, sys, time
from pathlib import Path
from trilemma.errors import UserError
from trilemma.loggers.wandb import WandbLogger
log = WandbLogger(project="p", run_id="a/b", group="g", save_dir=sys.argv[1], mode="offline")
log.log_metrics({"x": 1.0}, step=0)
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
core = [int(p) for p in children if "wandb-core" in Path(f"/proc/{p}/cmdline").read_text()]
assert core
for process in core:
    os.kill(process, signal.SIGKILL)
for step in range(1, 20):
    log.log_metrics({"x": 1.0}, step=step)
    time.sleep(0.02)
log.finalize("success")
print("done")
"""


@pytest.mark.slow
def test_training_goes_on_when_wandbs_service_dies(tmp_path):
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc to find the service")
    command = [sys.executable, "-c", _BEREFT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0)
    assert done.stderr.count("wandb: stopped logging, training goes on") == 1
