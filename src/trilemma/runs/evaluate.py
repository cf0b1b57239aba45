"""What `evaluate.py` does: measure checkpoints by one protocol, write rows, draw what they teach."""

from __future__ import annotations

from glob import glob, has_magic
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from trilemma.errors import UserError
from trilemma.evaluation.evaluate import NEAREST_K
from trilemma.evaluation.extractor import Extractor
from trilemma.evaluation.report import Row, check_comparable, entries_of, read_row, write_frontier, write_report
from trilemma.evaluation.rows import write_row
from trilemma.evaluation.table import print_row, print_sweep
from trilemma.models.base import Reconstructs, Samples, able
from trilemma.models.classifier import Classifier
from trilemma.models.noisy_classifier import NoisyClassifier
from trilemma.runs import schema
from trilemma.runs.cells import Cell, cells_of
from trilemma.runs.check import check_config
from trilemma.runs.classification import evaluate_classifier, evaluate_noisy_classifier
from trilemma.runs.directory import prepare
from trilemma.runs.evaluation_logger import EvaluationLogger, take_logger
from trilemma.runs.guidance import guiding_classifier
from trilemma.runs.measure import is_complete, measure_cell, reconstruction_row
from trilemma.runs.oracle import run_oracle
from trilemma.runs.quiet import quieten
from trilemma.runs.settings import settle_batch_size
from trilemma.runs.subject import Subject, check_data, extractor_for, load_subject

REPORT = Path("outputs/report")


def evaluate(cfg: DictConfig) -> None:
    """Measure one checkpoint, compare several, put rows that exist on one page, or run an oracle.

    Raises:
        UserError: For anything that is the user's to mend, before anything is drawn.
    """
    log = take_logger(cfg)
    if cfg.oracle is not None:
        log.refuse("an oracle writes a row of checks")
        run_oracle(cfg)
        return
    check_config(cfg, schema.EVALUATE)
    quieten()
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    settle_batch_size(cfg)
    if cfg.likelihood.num_images == 1 or cfg.likelihood.num_images < 0:
        raise UserError("likelihood.num_images: a standard error needs at least 2 images; 0 leaves the likelihood out")
    sizes = list(cfg.ledger.batch_sizes)
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise UserError(f"ledger.batch_sizes={sizes}: give at least one whole number, each at least 1")
    if cfg.num_images <= NEAREST_K:
        raise UserError(f"num_images={cfg.num_images}: precision and coverage need at least {NEAREST_K + 1} images")
    given = [name for name in ("ckpt", "ckpts", "rows") if cfg[name] is not None]
    if len(given) != 1:
        raise UserError(
            "name what is to be measured: one of ckpt=PATH (one checkpoint), ckpts=[A,B] (a report that compares them) or "
            "rows=FOLDER (a report on rows that exist)" + (f"; not {' and '.join(given)} at once" if given else "")
        )
    if cfg.rows is not None:
        _report_rows(cfg, log)
    elif cfg.ckpts is not None:
        _compare(cfg, log)
    else:
        _measure_one(cfg, log)


def _measure_one(cfg: DictConfig, log: EvaluationLogger) -> None:
    subject = load_subject(cfg, cfg.ckpt)
    folder = Path(cfg.output_dir) if cfg.output_dir else subject.run_dir / "evaluation"
    prepare(folder)
    if isinstance(subject.model, Classifier):
        log.refuse(f"{cfg.ckpt} is a classifier")
        evaluate_classifier(subject, folder, device=cfg.device)
        return
    if isinstance(subject.model, NoisyClassifier):
        log.refuse(f"{cfg.ckpt} is a classifier")
        evaluate_noisy_classifier(subject, device=cfg.device, seed=cfg.seed)
        return
    extractor = extractor_for(cfg, subject.data)
    check_data(subject.data, extractor)
    if isinstance(subject.model, Samples):
        cells = cells_of(cfg, subject.config, guiding_classifier(cfg, subject.model, subject.config), subject.model)
        rows = _measure_all(cells, subject, extractor, folder, log)
        if len(cells) > 1:
            print_sweep([row.content for row in rows])
            print(f"frontier: {write_frontier(rows, folder)}")
        else:
            print_row(rows[0].content)
            print(f"row: {folder / rows[0].name}.json")
    elif able(subject.model, Reconstructs):
        images = subject.data.split("test").images[:]
        row = reconstruction_row(cfg, subject, extractor, images)
        path = folder / f"{subject.slug}-reconstruction.json"
        write_row(path, row)
        log.row(row, path, subject)
        print_row(row)
        print(f"row: {path}")
    else:
        raise UserError(
            f"{cfg.ckpt} holds a {type(subject.model).__name__}, which neither samples nor reconstructs: nothing to measure"
        )


def _compare(cfg: DictConfig, log: EvaluationLogger) -> None:
    """Measure every checkpoint by one protocol and write the report; all are checked before the first is measured."""
    paths = [str(path) for path in cfg.ckpts]
    if not paths:
        raise UserError("ckpts=[] names no checkpoint")
    folder = Path(cfg.output_dir) if cfg.output_dir else REPORT
    prepare(folder)
    jobs: list[tuple[Subject, Extractor, list[Cell]]] = []
    for path in dict.fromkeys(paths):
        one = cfg.copy()
        OmegaConf.update(one, "ckpt", path)
        subject = load_subject(one, path)
        if not isinstance(subject.model, Samples):
            raise UserError(
                f"{path} holds a {type(subject.model).__name__}, which draws no images: leave it out of ckpts "
                f"(ckpt={path} measures what it can do)"
            )
        if twin := next((job[0].path for job in jobs if job[0].sha256 == subject.sha256), None):
            raise UserError(f"{twin} and {path} are the same checkpoint: name it once")
        extractor = extractor_for(one, subject.data)
        check_data(subject.data, extractor)
        classifier = guiding_classifier(one, subject.model, subject.config)
        jobs.append((subject, extractor, cells_of(one, subject.config, classifier, subject.model)))
    first, judge, _ = jobs[0]
    for subject, extractor, _ in jobs[1:]:
        if subject.data.fingerprint != first.data.fingerprint:
            raise UserError(
                f"{first.path} was trained on {first.data.name} and {subject.path} on {subject.data.name} "
                f"({first.data.fingerprint[:8]} and {subject.data.fingerprint[:8]}): one report compares models of one data set"
            )
        if extractor.name != judge.name:
            raise UserError(f"extractors {judge.name} and {extractor.name} do not compare: name one with extractor=")
    rows = [
        row
        for subject, extractor, cells in jobs
        for row in _measure_all(cells, subject, extractor, _folder_of(subject), log)
    ]
    _report(rows, folder, log)


def _folder_of(subject: Subject) -> Path:
    folder = subject.run_dir / "evaluation"
    prepare(folder)
    return folder


def _report_rows(cfg: DictConfig, log: EvaluationLogger) -> None:
    """A report on rows that earlier evaluations wrote: files, wildcards, or all rows in folders."""
    given = [str(name) for name in (cfg.rows if OmegaConf.is_list(cfg.rows) else [cfg.rows])]
    rows: dict[Path, Row] = {}
    for name in given:
        folder = Path(name)
        if folder.is_dir():
            rows |= _rows_in(folder)
            continue
        files = sorted(glob(name)) if has_magic(name) else [name]
        if not files:
            raise UserError(f"rows={name}: no file has such a name")
        rows |= {Path(file): read_row(file) for file in files}
    target = Path(cfg.output_dir) if cfg.output_dir else REPORT
    prepare(target)
    _report(list(rows.values()), target, log)


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


def _measure_all(
    cells: list[Cell], subject: Subject, extractor: Extractor, folder: Path, log: EvaluationLogger
) -> list[Row]:
    """Measure the cells that are not measured yet, one row each."""
    rows: list[Row] = []
    for number, cell in enumerate(cells, 1):
        if len(cells) > 1:
            state = "kept" if is_complete(cell, subject, extractor, folder) else "measuring"
            print(f"{number}/{len(cells)} {cell.name}: {state}", flush=True)
        path, row = measure_cell(cell, subject, extractor, folder)
        log.row(row, path, subject)
        rows.append(read_row(path))
    return rows
