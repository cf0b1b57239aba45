"""Entry points as a user starts them: in a process of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(script, *arguments, status=0):
    done = subprocess.run([sys.executable, f"{script}.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done
