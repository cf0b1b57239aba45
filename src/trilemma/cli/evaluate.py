"""What `evaluate.py` does: refuse what needs no model, then measure."""

from __future__ import annotations

from omegaconf import DictConfig

from trilemma.checkpoints.archive import check_archive, checkpoint_in
from trilemma.cli.main import checked
from trilemma.cli.sample import check_batch_size
from trilemma.config import schema
from trilemma.config.check import check_config
from trilemma.errors import UserError
from trilemma.evaluation import NEAREST_K
from trilemma.loggers.evaluation import EvaluationLogger, take_logger


def evaluate(cfg: DictConfig) -> None:
    """Measure one checkpoint, compare several, put rows that exist on one page, or run an oracle.

    Of several processes the first one does it, and all of them draw, embed, reconstruct and score. A classifier, rows
    and an oracle are quick: there the others wait.

    Raises:
        UserError: For anything that the user can fix, before anything is drawn.
    """
    with checked(lambda: _check(cfg)) as log:
        from trilemma.checkpoints.device import settle_device
        from trilemma.cli.measurements import measure
        from trilemma.distributed.ranks import run_on_ranks
    settle_device(cfg)
    run_on_ranks(lambda ranks: measure(cfg, log, ranks), cfg.device)


def _check(cfg: DictConfig) -> EvaluationLogger:
    log = take_logger(cfg)
    given = [name for name in ("ckpt", "ckpts", "rows") if cfg[name] is not None]
    if cfg.oracle is not None:
        log.refuse("an oracle writes a row of checks")
        if given:
            raise UserError(
                f"{given[0]}={cfg[given[0]]}: an oracle measures no checkpoint; leave out {given[0]}= or experiment="
            )
    check_config(cfg, schema.EVALUATE)
    if cfg.oracle is not None:
        return log
    check_batch_size(cfg)
    if cfg.likelihood.num_images == 1 or cfg.likelihood.num_images < 0:
        raise UserError("likelihood.num_images: a standard error needs at least 2 images; 0 leaves the likelihood out")
    sizes = list(cfg.ledger.batch_sizes)
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise UserError(f"ledger.batch_sizes={sizes}: give at least one whole number, each at least 1")
    if cfg.num_images <= NEAREST_K:
        raise UserError(f"num_images={cfg.num_images}: precision and coverage need at least {NEAREST_K + 1} images")
    if len(given) != 1:
        raise UserError(
            "name what is to be measured: one of ckpt=PATH (one checkpoint), ckpts=[A,B] (a report that compares them) or "
            "rows=FOLDER (a report on rows that exist)" + (f"; not {' and '.join(given)} at once" if given else "")
        )
    if given == ["ckpts"] and not cfg.ckpts:
        raise UserError("ckpts=[] names no checkpoint")
    if cfg.ckpt is not None:
        cfg.ckpt = checkpoint_in(cfg.ckpt)
    if cfg.ckpts:
        cfg.ckpts = [checkpoint_in(str(path)) for path in cfg.ckpts]
    for path in [cfg.ckpt, *(cfg.ckpts or [])]:
        if path is not None:
            check_archive(path)
    return log
