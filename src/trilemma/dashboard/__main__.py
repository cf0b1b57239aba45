"""Make the wandb workspace: `python -m trilemma.dashboard entity=me`. `--help` lists what can be overridden."""

import hydra
from omegaconf import DictConfig

from trilemma.cli import main as cli
from trilemma.config import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="dashboard")
def main(cfg: DictConfig) -> None:
    """Check, build, save or print."""
    from trilemma.dashboard.workspace import dashboard

    cli.job(dashboard, cfg)


if __name__ == "__main__":
    cli.run(main)
