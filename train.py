"""Train a model: `python train.py experiment=mnist/vq_diffusion run.id=first`. `--help` lists what can be overridden."""

from typing import Any

import hydra
from omegaconf import DictConfig

from trilemma.cli import main as cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> Any:
    """Check, build, fit."""
    from trilemma.cli.train import train

    return cli.job(train, cfg)


if __name__ == "__main__":
    cli.run(main, together=True)
