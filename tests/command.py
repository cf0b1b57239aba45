"""Entry points as a user starts them: in a process of their own, or in this one, which is quick."""

import io
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from hydra.core.global_hydra import GlobalHydra

from trilemma.distributed import signals
from trilemma.distributed.job import new_run_id, this_job

ROOT = Path(__file__).parents[1]


def run(script, *arguments, status=0):
    done = subprocess.run([sys.executable, f"{script}.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done


class Result(NamedTuple):
    status: int
    out: str
    err: str


def run_here(script, *arguments):
    """Run an entry point in this process: its exit status, and what it printed."""
    path = ROOT / f"{script}.py"
    GlobalHydra.instance().clear()
    out, err, status = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, [str(path), *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    finally:  # the next command is another process, as far as it knows
        sys.argv = before
        signals.stop_listening()
        new_run_id.cache_clear()
        this_job.cache_clear()
    return Result(status, out.getvalue(), err.getvalue())
