import os
import signal
import stat
import subprocess
import sys

import pytest

from trilemma.atomic import atomic_write, atomic_write_text, remove_leftovers
from trilemma.errors import UserError


def test_writes_in_new_folders(tmp_path):
    with atomic_write(tmp_path / "a" / "b") as handle:
        handle.write(b"12")
        handle.seek(0)
        assert handle.read() == b"12"
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b").read_bytes() == b"12"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o666 & ~mask


def test_error_leaves_the_old_file_and_no_other(tmp_path):
    def fail():
        with atomic_write(tmp_path / "a") as handle:
            handle.write(b"new")
            raise ZeroDivisionError

    atomic_write_text(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


KILLED = """
import os, signal, sys
from trilemma.atomic import atomic_write
path, moment = sys.argv[1:]
def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if moment != "write":
    setattr(os, moment, kill)
with atomic_write(path) as handle:
    handle.write(b"half")
    if moment == "write":
        handle.flush()
        kill()
"""


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_kill_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / "a"
    atomic_write_text(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*/a: No space left on device; free some space"):
        atomic_write_text(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == []


def test_not_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        atomic_write_text(tmp_path / "file" / "a", "x")


def test_other_files_errors_are_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()


def test_leftovers(tmp_path):
    (tmp_path / ".tmp-a.xyz").touch()
    (tmp_path / "a").touch()
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
