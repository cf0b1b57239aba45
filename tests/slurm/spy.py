"""`spy.py train.py OVERRIDES`: train, and write a hash of each process's own weights below the folder SPY."""

import json
import os
import runpy
import sys
from pathlib import Path

from training import digest
from trilemma.callbacks.checkpoint import Checkpoints

at_the_end = Checkpoints.on_train_end


def on_train_end(self, trainer, pl_module):
    at_the_end(self, trainer, pl_module)
    seen = {
        "world_size": trainer.world_size,
        "node": os.environ["SLURMD_NODENAME"],
        "digest": digest(dict(pl_module.named_parameters())),
        "buffers": digest(dict(pl_module.named_buffers())),
    }
    (Path(os.environ["SPY"]) / f"{trainer.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    Checkpoints.on_train_end = on_train_end
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
