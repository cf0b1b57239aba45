"""Checkpoints measured by one protocol: rows written, and what they teach drawn."""

from __future__ import annotations

from glob import glob, has_magic
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from trilemma.capabilities import supports
from trilemma.checkpoints.loaded import LoadedModel
from trilemma.checkpoints.settings import set_threads
from trilemma.distributed.ranks import Ranks
from trilemma.errors import UserError
from trilemma.evaluation.protocol import NO_EXTRACTOR
from trilemma.evaluation.report import (
    Row,
    check_comparable,
    comparable_among,
    entries_of,
    read_row,
    write_frontier,
    write_report,
)
from trilemma.evaluation.rows import write_row
from trilemma.evaluation.table import print_row, print_sweep
from trilemma.loggers.evaluation import EvaluationLogger
from trilemma.measuring.classification import evaluate_classifier
from trilemma.measuring.inputs import load_with_data, prepare_measurement
from trilemma.measuring.measure import is_complete, measure_setup, measurement, reconstruction_row
from trilemma.measuring.oracle import run_oracle
from trilemma.models.capabilities import Classifies, Reconstructs
from trilemma.models.generator import ImageGenerator
from trilemma.quiet import quieten
from trilemma.runs.directory import prepare

REPORT = Path("outputs/report")


def measure(cfg: DictConfig, log: EvaluationLogger, ranks: Ranks) -> None:
    """Run an oracle, report on rows that exist, measure several checkpoints or one.

    Raises:
        UserError: For anything that the user can fix, before anything is drawn.
    """
    if cfg.oracle is not None:
        ranks.first(lambda: run_oracle(cfg))
        return
    quieten()
    set_threads(cfg)
    if cfg.rows is not None:
        ranks.first(lambda: _report_rows(cfg, log))
    elif cfg.ckpts is not None:
        _compare(cfg, log, ranks)
    else:
        _measure_one(cfg, log, ranks)


def _measure_one(cfg: DictConfig, log: EvaluationLogger, ranks: Ranks) -> None:
    loaded = ranks.rank_zero_first(lambda: load_with_data(cfg, cfg.ckpt))
    folder = Path(cfg.output_dir) if cfg.output_dir else loaded.run_dir / "evaluation"
    ranks.first(lambda: prepare(folder))
    if supports(loaded.model, Classifies):
        log.refuse(f"{cfg.ckpt} is a classifier")
        ranks.first(lambda: evaluate_classifier(loaded, folder, device=cfg.device, seed=cfg.seed))
        return
    if not isinstance(loaded.model, ImageGenerator) and not supports(loaded.model, Reconstructs):
        raise UserError(
            f"{cfg.ckpt} holds a {type(loaded.model).__name__}, which neither samples nor reconstructs: nothing to measure"
        )
    loaded = ranks.rank_zero_first(lambda: prepare_measurement(cfg, loaded))
    if loaded.setups:
        rows = _measure_all(cfg, loaded, folder, log, ranks)
        ranks.first(lambda: _show(rows, folder))
        return
    row = reconstruction_row(cfg, loaded, ranks)
    path = folder / f"{loaded.slug}-reconstruction.json"

    def write() -> None:
        write_row(path, row)
        log.row(row, path, loaded)
        print_row(row)
        print(f"row: {path}")

    ranks.first(write)


def _show(rows: list[Row], folder: Path) -> None:
    if len(rows) > 1:
        print_sweep([row.content for row in rows])
        if rows[0].protocol["extractor"] != NO_EXTRACTOR:
            print(f"frontier: {write_frontier(rows, folder)}")
    else:
        print_row(rows[0].content)
        print(f"row: {folder / rows[0].name}.json")
    title = str(rows[0].protocol["model"]).partition(" (")[0]
    print(f"page: {write_report(entries_of(rows), folder, title=title)}")


def _compare(cfg: DictConfig, log: EvaluationLogger, ranks: Ranks) -> None:
    """Measure every checkpoint by one protocol and write the report; all are checked before the first is measured."""
    folder = Path(cfg.output_dir) if cfg.output_dir else REPORT
    models = ranks.rank_zero_first(lambda: _load_comparable(cfg))
    ranks.first(lambda: prepare(folder))
    rows = [row for one in models for row in _measure_all(cfg, one, _folder_of(one, ranks), log, ranks)]
    ranks.first(lambda: _report(rows, folder, log))


def _load_comparable(cfg: DictConfig) -> list[LoadedModel]:
    """Load the checkpoints to compare.

    Raises:
        UserError: If one cannot be measured, or two cannot be compared.
    """
    models: list[LoadedModel] = []
    for path in dict.fromkeys(str(path) for path in cfg.ckpts):
        loaded = load_with_data(cfg, path)
        if not isinstance(loaded.model, ImageGenerator):
            raise UserError(
                f"{path} holds a {type(loaded.model).__name__}, which draws no images: leave it out of ckpts "
                f"(ckpt={path} measures what it can do)"
            )
        if twin := next((one.path for one in models if one.sha256 == loaded.sha256), None):
            raise UserError(f"{twin} and {path} are the same checkpoint: name it once")
        models.append(prepare_measurement(cfg, loaded))
    first = models[0]
    for one in models[1:]:
        if (one.data.fingerprint, one.data_name) != (first.data.fingerprint, first.data_name):
            raise UserError(
                f"{first.path} was trained on {first.data_name} and {one.path} on {one.data_name} "
                f"({first.data.fingerprint[:8]} and {one.data.fingerprint[:8]}): one report compares models of one data set"
            )
        if one.judge != first.judge:
            raise UserError(f"extractors {first.judge} and {one.judge} do not compare: name one with extractor=")
    return models


def _folder_of(loaded: LoadedModel, ranks: Ranks) -> Path:
    folder = loaded.run_dir / "evaluation"
    ranks.first(lambda: prepare(folder))
    return folder


def _report_rows(cfg: DictConfig, log: EvaluationLogger) -> None:
    """A report on rows that earlier evaluations wrote: files, wildcards, or all rows in folders.

    Rows that are named must all stand in one table; of those found in folders, the largest group that does is taken.
    """
    given = [str(name) for name in (cfg.rows if OmegaConf.is_list(cfg.rows) else [cfg.rows])]
    rows: dict[Path, Row] = {}
    found: dict[Path, Row] = {}
    for name in given:
        folder = Path(name)
        if folder.is_dir():
            found |= _rows_in(folder)
            continue
        files = sorted(glob(name)) if has_magic(name) else [name]
        if not files:
            raise UserError(f"rows={name}: no file has such a name")
        rows |= {Path(file): read_row(file) for file in files}
    taken, others = comparable_among([row for path, row in found.items() if path not in rows])
    for line in others:
        print(f"passed over: {line}")
    target = Path(cfg.output_dir) if cfg.output_dir else REPORT
    prepare(target)
    _report([*rows.values(), *taken], target, log)


def _rows_in(folder: Path) -> dict[Path, Row]:
    """All rows in a folder; what else lies there as JSON is passed over, which is said."""
    rows: dict[Path, Row] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            rows[path] = read_row(path)
        except UserError as error:
            print(f"passed over: {error}")
    if not rows:
        raise UserError(f"rows={folder}: the folder holds no rows of results (*.json)")
    return rows


def _report(rows: list[Row], folder: Path, log: EvaluationLogger) -> None:
    check_comparable(rows)
    print_sweep([row.content for row in rows])
    print(f"report: {write_report(entries_of(rows), folder, title='The generative trilemma')}")
    log.report(folder)


def _measure_all(cfg: DictConfig, loaded: LoadedModel, folder: Path, log: EvaluationLogger, ranks: Ranks) -> list[Row]:
    """Measure the setups that are not measured yet, one row each; the rows are read in the first process."""
    rows: list[Row] = []
    for number, setup in enumerate(loaded.setups, start=1):
        what = measurement(cfg, loaded, setup, ranks)
        if ranks.is_first and len(loaded.setups) > 1:
            state = "kept" if is_complete(what, folder) else "measuring"
            print(f"{number}/{len(loaded.setups)} {setup.name}: {state}", flush=True)
        path, row = measure_setup(what, folder)
        if ranks.is_first:
            log.row(row, path, loaded)
            rows.append(read_row(path))
    return rows
