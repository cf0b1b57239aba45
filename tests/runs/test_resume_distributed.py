"""Two processes stop at the same batch, whichever of them is asked to, and go on bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "resume_program.py"


def test_two_processes_stop_and_resume_together(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, PROGRAM, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [each["before"] for each in found] == [75, 75]
    # The first process says what happened, the other one ends with it.
    assert "No space left on device" in found[0]["full"]
    assert found[1]["full"] == 2
