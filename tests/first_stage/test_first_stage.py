"""The child process that trains a first stage."""

import os
import signal
import subprocess
import sys
import time

CHILD = """
import pathlib, signal, time
def interrupted(*_):
    time.sleep(1.5)  # writing a checkpoint
    pathlib.Path("saved").touch()
    raise SystemExit(75)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, interrupted)
pathlib.Path("started").touch()
time.sleep(60)
"""
PARENT = f"""
import signal, sys
from trilemma.distributed import signals
from trilemma.errors import Stopped
from trilemma.first_stage.codec import _run
signals.listen()
try:
    with signals.waiting(*signals.PREEMPTION):
        _run([sys.executable, "-c", {CHILD!r}])
except Stopped as stop:
    sys.exit(stop.status)
"""


def start(folder):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=folder, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "started").exists():
        assert time.monotonic() < deadline, parent.communicate()
        time.sleep(0.05)
    return parent


def test_ctrl_c_waits_for_the_childs_checkpoint(tmp_path):
    parent = start(tmp_path)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to parent and child
    _, errors = parent.communicate(timeout=60)
    assert (tmp_path / "saved").exists()
    assert "KeyboardInterrupt" in errors


def test_a_request_to_stop_is_passed_on(tmp_path):
    parent = start(tmp_path)
    parent.send_signal(signal.SIGUSR1)
    _, errors = parent.communicate(timeout=60)
    assert (tmp_path / "saved").exists()
    assert parent.returncode == 75, errors
