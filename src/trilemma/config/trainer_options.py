"""Refuse options of Lightning's trainer that a run cannot honour."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from trilemma.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true", "32", "bf16", "16", "64")
"""Those that keep weights in single precision: in half of it an update below a 256th of a weight is lost."""

_ONE_PASS = "a run is one pass of trainer.max_steps batches, however long that is"
_NOT_HONOURED: dict[str, tuple[Any, str]] = {
    "overfit_batches": (
        0.0,
        "every batch is new; for a trial take debug=fast, and for fewer images a smaller data set",
    ),
    "limit_train_batches": (1.0, _ONE_PASS),
    "min_steps": (None, _ONE_PASS),
    "min_epochs": (None, _ONE_PASS),
    "max_epochs": (-1, _ONE_PASS),
    "check_val_every_n_epoch": (None, "validation comes every trainer.val_check_interval batches"),
    "reload_dataloaders_every_n_epochs": (0, _ONE_PASS),
    "limit_test_batches": (1.0, "checkpoints are measured by evaluate.py"),
    "limit_predict_batches": (1.0, "images are drawn by sample.py"),
    "fast_dev_run": (False, "take debug=fast"),
    "barebones": (False, "take logger=none callbacks=none"),
    "enable_checkpointing": (True, "take callbacks.checkpoint=null"),
    "logger": (None, "take logger=..."),
    "callbacks": (None, "take callbacks=..."),
    "sync_batchnorm": (False, "batch normalisation is always over the whole batch of all processes"),
    "use_distributed_sampler": (False, "batches are always divided among the processes"),
    "model_registry": (None, "nothing here uploads checkpoints"),
}
"""Name -> the value that a run has anyway, and what to do instead."""


def check_trainer_options(cfg: DictConfig) -> None:
    """Check the trainer's options of a composed configuration.

    Raises:
        UserError: If one cannot be honoured, or the precision loses updates.
    """
    trainer = OmegaConf.select(cfg, "trainer")
    if not OmegaConf.is_dict(trainer):
        return
    for name, (neutral, instead) in _NOT_HONOURED.items():
        given = OmegaConf.select(trainer, name)
        if given is not None and given != neutral:
            raise UserError(f"trainer.{name}={given} cannot be honoured: {instead}")
    precision = OmegaConf.select(trainer, "precision")
    if precision is not None and str(precision) not in PRECISIONS:
        choices = ", ".join(PRECISIONS[:4])
        raise UserError(
            f"trainer.precision={precision}: choose one of {choices}; weights in half precision lose updates"
        )
