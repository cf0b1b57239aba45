"""Make a checkpoint of a VQGAN that was trained elsewhere: `python -m trilemma.convert source=STATE_DICT output=FILE`."""

import hydra
from omegaconf import DictConfig

from trilemma.cli import main as cli
from trilemma.config import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="convert")
def main(cfg: DictConfig) -> None:
    """Read, rebuild, write."""
    from trilemma.cli.convert import convert

    cli.job(convert, cfg)


if __name__ == "__main__":
    cli.run(main)
