import os
import signal
import subprocess
import sys
import threading

import pytest

from trilemma.errors import Stopped, UserError
from trilemma.runs.lock import run_lock

HOLD = """
import os, sys, time
from trilemma.runs.lock import run_lock
with run_lock(sys.argv[1]):
    if os.fork() == 0:  # a loader's worker that outlives its parent
        time.sleep(60)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert int(process.stdout.readline()) == process.pid
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_second_process_is_refused_until_the_first_is_killed(holder, tmp_path):
    with pytest.raises(UserError, match=f"is in use by process {holder.pid} on") as error, run_lock(tmp_path):
        pass
    assert "\n" not in str(error.value)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run_lock(tmp_path):
        pass


def test_same_process_is_refused(tmp_path):
    run = tmp_path / "new" / "run"
    with run_lock(run):
        with pytest.raises(UserError, match="in use by this process"), run_lock(run / ".." / "run"):
            pass
        # and the attempt has not dropped the lock
        code = f"from trilemma.runs.lock import run_lock\nwith run_lock({str(run)!r}): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "UserError" in done.stderr
    with run_lock(run):
        pass


def test_released_on_error(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        _ = 1 / 0
    with run_lock(tmp_path):
        pass


def test_not_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/run"), run_lock(tmp_path / "file" / "run"):
        pass


def test_a_requeued_job_waits_for_its_former_self(tmp_path, capsys):
    former = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("sys.argv[1]", "sys.argv[1], '17'"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        former.stdout.readline()
        for other in (None, "18"):
            with pytest.raises(UserError, match="is in use by process"), run_lock(tmp_path, other):
                pass
        with pytest.raises(Stopped, match="of this same SLURM job") as stop, run_lock(tmp_path, "17", patience=1.0):
            pass
        assert stop.value.status == 75
        assert capsys.readouterr().err.startswith(f"waiting for process {former.pid} on")
        threading.Timer(1.5, former.kill).start()
        with run_lock(tmp_path, "17"):
            pass
    finally:
        os.killpg(former.pid, signal.SIGKILL)
        former.wait()
        former.stdout.close()


def test_of_two_at_the_same_moment_one_is_refused(tmp_path):
    code = f"""
import sys, time
from trilemma.errors import UserError
from trilemma.runs.lock import run_lock
print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock({str(tmp_path)!r}):
        time.sleep(2)
except UserError as error:
    print(error)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    for process in both:
        process.stdout.readline()
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(process.communicate()[0] for process in both)
    assert said[0] == ""
    assert "is in use by" in said[1]


def test_a_directory_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(UserError), run_lock(tmp_path / "run"):
        raise UserError("refused")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_something_stays(tmp_path):
    with run_lock(tmp_path / "run"):
        (tmp_path / "run" / "run.json").touch()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "run.json"]
