"""Pack images into tar shards: `python -m trilemma.shards data=image_folder data.root=DIR output_dir=OUT`; `--help` says more."""

import hydra
from omegaconf import DictConfig

from trilemma.cli import main as cli
from trilemma.config import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="shards")
def main(cfg: DictConfig) -> None:
    """List, read, write."""
    from trilemma.cli.pack_shards import pack

    cli.job(pack, cfg)


if __name__ == "__main__":
    cli.run(main)
