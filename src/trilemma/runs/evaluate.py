"""What `evaluate.py` does: measure a checkpoint by one protocol and write a row."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from trilemma.atomic import atomic_write_text
from trilemma.codecs.base import Codec
from trilemma.data.base import ImageData
from trilemma.data.images import to_float
from trilemma.errors import UserError
from trilemma.evaluation.card import ExtractorCard
from trilemma.evaluation.evaluate import Evaluation, evaluate_reconstruction, evaluate_samples
from trilemma.evaluation.extractor import Extractor, load_extractor, save_extractor
from trilemma.evaluation.protocol import Machine, Protocol
from trilemma.evaluation.rows import print_table, row, write_row
from trilemma.images import save_png
from trilemma.models.base import Family, Reconstructs, Samples
from trilemma.models.classifier import Classifier
from trilemma.networks.classifier import FeatureClassifier
from trilemma.runs import schema
from trilemma.runs.build import build
from trilemma.runs.check import check_config
from trilemma.runs.codes import codec_hash
from trilemma.runs.directory import prepare
from trilemma.runs.load import load_with_config
from trilemma.runs.oracle import run_oracle
from trilemma.runs.quiet import quieten
from trilemma.runs.sample import conditioned_on, draw, grid_of, run_dir_of
from trilemma.runs.settings import build_sampling, labels_for, sampling_settings, settings_name
from trilemma.runs.targets import CHECKPOINT


def evaluate(cfg: DictConfig) -> None:
    """Measure what the checkpoint's family can do: samples, reconstructions, or classification; or run an oracle.

    Raises:
        UserError: For anything that is the user's to mend, before anything is drawn.
    """
    if cfg.oracle is not None:
        run_oracle(cfg)
        return
    check_config(cfg, schema.EVALUATE)
    quieten()
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    if cfg.num_images < 1 or cfg.batch_size < 1:
        raise UserError("num_images and batch_size must be at least 1")
    model, config = load_with_config(cfg.ckpt, weights=cfg.weights, device=cfg.device)
    data = data_of(config, cfg.data.root)
    run_dir = run_dir_of(Path(cfg.ckpt))
    folder = Path(cfg.output_dir) if cfg.output_dir else run_dir / "evaluation"
    prepare(folder)
    if isinstance(model, Classifier):
        _classification(cfg, model, config, data, folder)
        return
    extractor = load_extractor(cfg.extractor or data.extractor_name)
    if isinstance(model, Samples):
        _samples(cfg, model, config, data, extractor, folder)
    elif isinstance(model, Reconstructs):
        _reconstructions(cfg, model, config, data, extractor, folder)
    else:
        raise UserError(
            f"{cfg.ckpt} holds a {type(model).__name__}, which neither samples nor reconstructs: nothing to measure"
        )


def data_of(config: dict[str, Any], root: str | None) -> ImageData:
    """The data set a checkpoint was trained on.

    Args:
        config: The checkpoint's configuration.
        root: Where the data lies now, where that is not where training found it.
    """
    node = dict(config["data"])
    if root is not None:
        node["root"] = root
    data = build(node, allowed=CHECKPOINT, where="data")
    if not isinstance(data, ImageData):
        raise UserError("the checkpoint's configuration names no data set; was it written by train.py?")
    data.setup()
    return data


def _samples(
    cfg: DictConfig, model: Any, config: dict[str, Any], data: ImageData, extractor: Extractor, folder: Path
) -> None:
    sampler_node, guidance_node = sampling_settings(cfg, config)
    sampler, guidance = build_sampling(sampler_node, guidance_node)
    condition = labels_for(cfg.num_images, cfg.condition.label, conditioned_on(config))
    kind = (
        "none"
        if condition is None
        else f"label: {'all in turn' if cfg.condition.label is None else cfg.condition.label}"
    )
    protocol = _protocol(
        cfg, model, config, data, extractor, sampler=sampler_node, guidance=guidance_node, condition=kind
    )
    images = draw(model, cfg, condition, sampler, guidance)
    labels = None if condition is None else torch.tensor(condition)
    evaluation = evaluate_samples(
        images,
        labels,
        real=data.split("train"),
        real_floor=data.split("test"),
        extractor=extractor,
        cache_dir=Path(cfg.cache_dir) / "features",
        seed=cfg.seed,
    )
    if isinstance(model, Reconstructs):
        metrics = _reconstruction_metrics(cfg, model, data, extractor)
        evaluation.metrics.update({f"reconstruction/{name}": value for name, value in metrics.items()})
    name = f"{_slug(config)}-{settings_name(cfg, config, sampler_node, guidance_node)}"
    _finish(folder, name, protocol, evaluation, images)
    save_png(grid_of(images, labels), folder / f"{name}.png")


def _reconstructions(
    cfg: DictConfig, model: Any, config: dict[str, Any], data: ImageData, extractor: Extractor, folder: Path
) -> None:
    test = data.split("test")
    metrics = _reconstruction_metrics(cfg, model, data, extractor)
    protocol = dataclasses.replace(_protocol(cfg, model, config, data, extractor, split="test"), num_images=len(test))
    _finish(folder, f"{_slug(config)}-reconstruction", protocol, Evaluation(metrics, {}), test.images[:])


def _reconstruction_metrics(
    cfg: DictConfig, model: Reconstructs, data: ImageData, extractor: Extractor
) -> dict[str, float]:
    """Scores of the model's reconstructions; those of a codec are kept, since every row of its priors shows them."""
    codec = getattr(model, "codec", None)
    kept: Path | None = None
    if isinstance(codec, Codec):
        key = f"{type(codec).__name__}-{codec.num_classes}-{codec_hash(codec)}-{data.fingerprint[:16]}-{extractor.name}"
        kept = Path(cfg.cache_dir) / "reconstruction" / f"{key}.json"
        if kept.is_file():
            scores: dict[str, float] = json.loads(kept.read_text())
            return scores
    found = evaluate_reconstruction(
        model,
        data.split("test").images,
        extractor=extractor,
        codec=codec if isinstance(codec, Codec) else None,
        device=cfg.device,
        cache_dir=Path(cfg.cache_dir) / "features",
    )
    if kept is not None:
        atomic_write_text(kept, json.dumps(found))
    return found


@torch.no_grad()
def _classification(cfg: DictConfig, model: Classifier, config: dict[str, Any], data: ImageData, folder: Path) -> None:
    """Test accuracy, and the network written as a feature extractor that `extractor=PATH` takes."""
    test = data.split("test")
    if test.labels is None or data.label_names is None:
        raise UserError("the data has no labels: there is nothing to classify")
    accuracy = test_accuracy(model, test.images, test.labels, torch.device(cfg.device))
    network = model.network
    if not isinstance(network, FeatureClassifier):
        print(
            f"test accuracy {accuracy:.4f} on {len(test)} images; {type(network).__name__} has no features to extract"
        )
        return
    card = ExtractorCard(
        dataset=data.extractor_name,
        network=config["model"]["network"],
        image_shape=data.image_shape,
        label_names=tuple(data.label_names),
        test_accuracy=accuracy,
        command=f"python train.py experiment={config['experiment']}",
    )
    path = save_extractor(network, card, folder)
    print(f"test accuracy {accuracy:.4f} on {len(test)} images; as a feature extractor: {path}")


def test_accuracy(model: Classifier, images: Any, labels: Tensor, device: torch.device) -> float:
    """Share of uint8 images [N, C, H, W] whose most likely label is right."""
    right = 0
    for start in range(0, len(labels), 500):
        logits = model.network(to_float(images[start : start + 500]).to(device))
        right += int((logits.argmax(1).cpu() == labels[start : start + 500]).sum())
    return right / len(labels)


def _protocol(
    cfg: DictConfig,
    model: Family,
    config: dict[str, Any],
    data: ImageData,
    extractor: Extractor,
    *,
    split: str = "train",
    sampler: dict[str, Any] | None = None,
    guidance: dict[str, Any] | None = None,
    condition: str = "none",
) -> Protocol:
    return Protocol(
        data=data.name,
        data_fingerprint=data.fingerprint,
        split=split,
        num_images=cfg.num_images,
        extractor=extractor.name,
        model=f"{config.get('experiment')} ({type(model).__name__})",
        weights=config["weights"],
        seed=cfg.seed,
        checkpoint=hashlib.sha256(Path(cfg.ckpt).read_bytes()).hexdigest(),
        sampler=sampler or {},
        guidance=guidance or {},
        condition=condition,
        machine=Machine.here(cfg.device),
        budget={"max_steps": config.get("max_steps"), "note": config.get("budget")},
    )


def _slug(config: dict[str, Any]) -> str:
    """The experiment's name, fit for a file name."""
    return str(config.get("experiment")).replace("/", "-")


def _finish(folder: Path, name: str, protocol: Protocol, evaluation: Evaluation, images: Tensor) -> None:
    print_table(protocol, evaluation)
    write_row(folder / f"{name}.json", row(protocol, evaluation, images))
    print(f"row: {folder / f'{name}.json'}")
