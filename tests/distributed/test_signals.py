"""Requests to stop are heeded at once or noted, by the process they are meant for."""

import os
import signal
import subprocess
import sys

import pytest

from trilemma.distributed import signals
from trilemma.errors import Stopped


@pytest.fixture
def heard():
    signals.listen()
    yield
    signals.stop_listening()


def send(number):
    os.kill(os.getpid(), number)


def test_an_entry_point_listens_before_it_imports_torch():
    code = "import sys; import trilemma.cli.main; assert not {'torch', 'lightning'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("number", signals.PREEMPTION)
def test_at_once(heard, number):
    with pytest.raises(Stopped, match=f"stopped by {number.name}") as stop:
        send(number)
    assert stop.value.status == 75


def test_ctrl_c_at_once(heard):
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=["USR1", "INT"])
def test_in_the_midst_of_an_import_the_program_ends(tmp_path, number, status):
    """Numpy catches whatever its lazy imports raise, and calls itself until the stack is full."""
    (tmp_path / "takes_long.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\nexcept BaseException:\n    print('swallowed')\n"
    )
    code = "from trilemma.distributed import signals; signals.listen(); import takes_long; print('went on')"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == f"stopped by {number.name}; the same command goes on\n"


def test_noted(heard, capfd):
    with signals.waiting(*signals.ALL):
        assert signals.asked() == 0
        send(signal.SIGUSR2)
        send(signal.SIGTERM)
        assert (signals.asked(), signals.name()) == (75, "SIGUSR2")
        with pytest.raises(Stopped, match="stopped by SIGUSR2") as stop:
            signals.check()
        assert stop.value.status == 75
        send(signal.SIGINT)  # the user has the last word
        assert (signals.asked(), signals.name()) == (130, "SIGINT")
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    said = [line for line in capfd.readouterr().err.splitlines() if line]
    assert [line.partition(":")[0] for line in said] == ["SIGUSR2", "SIGINT"]


def test_a_block_that_nobody_watches_heeds_what_was_noted_before(heard):
    with signals.waiting(*signals.PREEMPTION):
        with signals.at_once(), pytest.raises(Stopped):
            send(signal.SIGTERM)
        with pytest.raises(Stopped), signals.at_once():
            pass


def test_what_waits_is_no_other_signal(heard):
    with signals.waiting(*signals.PREEMPTION), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_a_process_that_is_not_the_first_notes_from_the_start(capfd):
    signals.listen(wait=True)
    for number in signals.ALL:
        send(number)
    assert signals.asked() == 130
    assert capfd.readouterr().err == ""


def test_handlers_come_back():
    before = [signal.getsignal(number) for number in signals.ALL]
    assert signals.listen()
    assert not signals.listen()
    signals.stop_listening()
    assert [signal.getsignal(number) for number in signals.ALL] == before
    assert signals.asked() == 0


FORKS = """
import os, signal
from trilemma.distributed import signals
signals.listen()
with signals.waiting(*signals.ALL):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for number in signals.ALL:
            os.kill(os.getpid(), number)
        os.write(writing, b"alive")
        os._exit(0)
    assert os.read(reading, 5) == b"alive"
    assert os.waitpid(child, 0)[1] == 0
    assert signals.asked() == 0
"""


def test_a_forked_child_ignores_them():
    assert subprocess.run([sys.executable, "-c", FORKS], check=False).returncode == 0
