"""Train a model: `python train.py experiment=mnist/vq_diffusion run.id=first`. `--help` lists what can be overridden."""

import hydra
from omegaconf import DictConfig

from trilemma.runs import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Check, build, fit."""
    from trilemma.runs.train import train

    cli.job(train, cfg)


if __name__ == "__main__":
    cli.run(main, together=True)
