"""Make the wandb workspace: `python -m trilemma.dashboard entity=me`. `--help` lists what can be overridden."""

import hydra
from omegaconf import DictConfig

from trilemma.runs import cli


@hydra.main(version_base="1.3", config_path=str(cli.CONF), config_name="dashboard")
def main(cfg: DictConfig) -> None:
    """Check, build, save or print."""
    from trilemma.dashboard.workspace import dashboard

    cli.job(dashboard, cfg)


if __name__ == "__main__":
    cli.run(main)
