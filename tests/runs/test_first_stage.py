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
    raise SystemExit(7)
signal.signal(signal.SIGINT, interrupted)
pathlib.Path("started").touch()
time.sleep(60)
"""
PARENT = f"""
import signal, sys
from trilemma.runs.codec import _run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
_run([sys.executable, "-c", {CHILD!r}])
"""


def test_ctrl_c_waits_for_the_childs_checkpoint(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline, parent.communicate()
        time.sleep(0.05)
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to parent and child
    _, errors = parent.communicate(timeout=60)
    assert (tmp_path / "saved").exists()
    assert "KeyboardInterrupt" in errors
