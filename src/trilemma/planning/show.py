"""What `debug=plan` does."""

from __future__ import annotations

from omegaconf import DictConfig

from trilemma.planning.figures import make_plan
from trilemma.planning.scaling import scaling_table
from trilemma.planning.table import table
from trilemma.planning.ways import ways_to_fit
from trilemma.quiet import quieten


def show_plan(cfg: DictConfig) -> None:
    """Print what the run that `cfg` describes will take.

    Raises:
        UserError: If the configuration is wrong, or names something that a plan does not know.
    """
    quieten()
    plan, measured = make_plan(cfg)
    otherwise = measured.otherwise(plan.batch_per_gpu, plan.layout, recomputes=plan.recomputes)
    print(table(plan, otherwise=otherwise, ways=() if plan.fits else ways_to_fit(plan, measured)))
    if cfg.plan.nodes is not None:
        print(f"\n{scaling_table(plan, list(cfg.plan.nodes))}")
