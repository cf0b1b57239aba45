"""Entry points in two processes, as torchrun starts them."""

import os
import subprocess
import sys

from command import ROOT


def run_two(script, *arguments):
    """stdout and stderr of both; torchrun itself ends with status 1 whatever theirs was, and says which."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, f"{script}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
