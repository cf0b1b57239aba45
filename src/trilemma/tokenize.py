"""Write the codes of a data set: `python -m trilemma.tokenize ckpt=CODEC data=mnist`. `--help` lists what can be overridden."""

import hydra
from omegaconf import DictConfig

from trilemma.cli import main as cli
from trilemma.config import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="tokenize")
def main(cfg: DictConfig) -> None:
    """Load, encode, write."""
    from trilemma.cli.tokenize import tokenize

    cli.job(tokenize, cfg)


if __name__ == "__main__":
    cli.run(main)
