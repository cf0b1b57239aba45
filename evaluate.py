"""Measure a checkpoint: `python evaluate.py ckpt=PATH num_images=2000`. `--help` lists what can be overridden."""

from typing import Any

import hydra
from omegaconf import DictConfig

from trilemma.cli import main as cli


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> Any:
    """Load, draw, measure."""
    from trilemma.cli.evaluate import evaluate

    return cli.job(evaluate, cfg)


if __name__ == "__main__":
    cli.run(main, together=True)
