"""Draw samples: `python sample.py ckpt=PATH num_images=1000 condition.label=7`. `--help` lists what can be overridden."""

from typing import Any

import hydra
from omegaconf import DictConfig

from trilemma.cli import main as cli


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> Any:
    """Load, draw, write."""
    from trilemma.cli.sample import sample

    return cli.job(sample, cfg)


if __name__ == "__main__":
    cli.run(main, together=True)
