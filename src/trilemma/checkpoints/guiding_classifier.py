"""The classifier that guides a checkpoint's samples, loaded and checked before anything is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from omegaconf import DictConfig

from trilemma.capabilities import supports
from trilemma.checkpoints.load import load_with_config
from trilemma.codecs.base import Codec
from trilemma.errors import UserError
from trilemma.models.base import Family
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.samplers.classifier_guidance import NoisyLogProb

_TIMES = torch.linspace(0.01, 1.0, 100, dtype=torch.float64)


@runtime_checkable
class GuidesSampling(NoisyLogProb, Protocol):
    """A classifier family whose gradient can guide the samples of another family."""

    def reads(self) -> tuple[Codec, GaussianProcess]:
        """Get the codec and the process of the noisy codes xt that it reads: it can guide models with the same two."""


@dataclass(frozen=True)
class GuidingClassifier:
    """A classifier checked to fit the model it guides.

    Attributes:
        module: The classifier (`GuidesSampling`), in evaluation mode, with averaged weights where its run kept them.
        sha256: Content hash of its checkpoint.
        experiment: Name of the experiment that trained it.
    """

    module: Family
    sha256: str
    experiment: str

    @property
    def record(self) -> dict[str, str]:
        """The classifier's entry in a protocol, independent of where its file is."""
        return {"experiment": self.experiment, "sha256": self.sha256}


def guiding_classifier(cfg: DictConfig, model: Family, config: Mapping[str, Any]) -> GuidingClassifier | None:
    """Load the classifier that `guidance.classifier` names; None where the guidance has none.

    Args:
        cfg: Configuration of `sample.py` or `evaluate.py`, of which `guidance`, `ckpt` and `device` are read.
        model: The model whose samples are guided.
        config: The configuration of its checkpoint.

    Raises:
        UserError: If there is none where there must be one, or it does not fit the model.
    """
    if "classifier" not in cfg.guidance:
        return None
    path = cfg.guidance.classifier
    if "_target_" not in cfg.guidance:
        if path is not None:
            raise UserError(f"guidance.classifier={path} is for gradient guidance: give guidance=classifier too")
        return None
    if path is None:
        raise UserError("guidance=classifier needs guidance.classifier=CHECKPOINT, of experiment=.../noisy_classifier")
    process = getattr(model, "process", None)
    if not isinstance(process, GaussianProcess):
        raise UserError(
            f"guidance=classifier follows a gradient, and {cfg.ckpt} holds a {type(model).__name__}, which samples from no Gaussian "
            "process: take guidance=classifier_free"
        )
    where = f"guidance.classifier={path}"
    if not Path(path).is_file():
        raise UserError(f"{where}: there is no such file; train one with experiment=.../noisy_classifier")
    classifier, own = load_with_config(path, device=str(cfg.device))
    if not supports(classifier, GuidesSampling):
        raise UserError(
            f"{where} holds a {type(classifier).__name__}, not a classifier of noisy images: train one with "
            "experiment=.../noisy_classifier"
        )
    if (theirs := _data_of(own, config)) != (ours := _data_of(config, own)):
        raise UserError(
            f"{where} is a classifier for another data set: it was trained on {theirs}, {cfg.ckpt} on {ours}"
        )
    codec, (its_codec, its_process) = getattr(model, "codec", None), classifier.reads()
    if not isinstance(codec, Codec) or not _same_codec(its_codec, codec):
        raise UserError(
            f"{where} reads codes {_shape(its_codec)} and {cfg.ckpt} has codes {_shape(codec)} of its own codec: train a "
            "classifier on the same one (codec=, codec.checkpoint=)"
        )
    if not _same_process(its_process, process):
        raise UserError(
            f"{where} was trained on {_schedule(its_process)} and {cfg.ckpt} on {_schedule(process)}: "
            "train a classifier with the same process/schedule"
        )
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return GuidingClassifier(classifier, digest, str(own.get("experiment")))


def _data_of(config: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Describe data set and image shape, with the content hash where both checkpoints have one."""
    shape = "x".join(str(size) for size in config["facts"]["image_shape"])
    name = f"{str(config['data']['_target_']).rpartition('.')[2]} {shape}"
    fingerprint, theirs = config.get("data_fingerprint"), other.get("data_fingerprint")
    return f"{name} ({fingerprint[:8]})" if fingerprint and theirs else name


def _same_codec(a: Codec, b: Codec) -> bool:
    """Check whether two codecs share their codes: class, shape, weights and scaling agree."""
    ours, theirs = a.state_dict(), b.state_dict()
    return (
        type(a) is type(b)
        and a.code_shape == b.code_shape
        and ours.keys() == theirs.keys()
        and all(part.shape == theirs[name].shape and torch.allclose(part, theirs[name]) for name, part in ours.items())
    )


def _shape(codec: Any) -> str:
    return f"{'x'.join(map(str, codec.code_shape))} ({type(codec).__name__})" if isinstance(codec, Codec) else "none"


def _same_process(a: GaussianProcess, b: GaussianProcess) -> bool:
    """Check whether two processes agree at every time."""
    pairs = [(a.alpha(_TIMES), b.alpha(_TIMES)), (a.sigma(_TIMES), b.sigma(_TIMES))]
    return all(torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7) for ours, theirs in pairs)


def _schedule(process: GaussianProcess) -> str:
    """Describe a schedule in a few words that distinguish two of one kind."""
    name = type(process.schedule).__name__
    steps = f" of {process.num_steps} steps" if process.num_steps else ""
    return f"{name}{steps} (noise {float(process.sigma(0.5)):.4f} at t = 0.5)"
