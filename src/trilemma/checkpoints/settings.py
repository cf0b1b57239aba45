"""The sampling settings of a checkpoint: those it was trained with, overridden by the command line."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from trilemma.checkpoints.guiding_classifier import GuidingClassifier
from trilemma.config.build import RESERVED
from trilemma.config.check import check_node
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.errors import UserError

NO_GUIDANCE = "trilemma.samplers.guidance.Guidance"
CLASSIFIER_FREE = "trilemma.samplers.guidance.ClassifierFree"


def set_threads(cfg: DictConfig) -> None:
    """Set the number of CPU threads to `num_threads`, where it is given."""
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)


def sampling_settings(
    cfg: DictConfig, config: Mapping[str, Any], classifier: GuidingClassifier | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Merge the checkpoint's sampler and guidance with the command line's.

    Args:
        cfg: With nodes `sampler` and `guidance`: a whole object's node replaces the checkpoint's, single numbers replace its values.
        config: The checkpoint's configuration.
        classifier: The one that `cfg.guidance` names, if any.

    Returns:
        Plain nodes of sampler (empty for a family that has none) and guidance, the latter with the classifier's content instead
        of its path.
    """
    sampler = _merge(OmegaConf.to_container(cfg.sampler, resolve=True), config.get("sampler"), "sampler")
    wanted = OmegaConf.to_container(cfg.guidance, resolve=True)
    trained = config.get("guidance") or {"_target_": NO_GUIDANCE}
    if isinstance(wanted, dict) and wanted.get("scale") is not None and "scale" not in trained:
        trained = {"_target_": CLASSIFIER_FREE, "scale": 1.0}
    guidance = _merge(wanted, trained, "guidance")
    return sampler, guidance if classifier is None else {**guidance, "classifier": classifier.record}


def _merge(wanted: Any, trained: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    if "_target_" in wanted:
        _refuse_foreign(wanted, where)
        return dict(wanted)
    changes = {k: v for k, v in wanted.items() if v is not None}
    if not trained:
        if changes:
            raise UserError(
                f"{where}.{next(iter(changes))}: the checkpoint's family draws without a {where}; leave it out"
            )
        return {}
    merged = {**trained, **changes}
    if where == "sampler":
        known = inspect.signature(locate(trained["_target_"], COMMAND_LINE, where)).parameters
        if unknown := [key for key in changes if key not in known]:
            name = trained["_target_"].rsplit(".", 1)[1]
            raise UserError(f"{where}.{unknown[0]}: the checkpoint's {where} {name} has no such setting")
        check_node(merged, where)
    return merged


def _refuse_foreign(node: Mapping[str, Any], where: str) -> None:
    target = locate(node["_target_"], COMMAND_LINE, where)
    known = inspect.signature(target).parameters
    foreign = [key for key in node if key not in known and key not in RESERVED]
    if foreign:
        raise UserError(f"{where}.{foreign[0]}: {target.__name__} has no such setting; it has {', '.join(known)}")


def settings_name(
    cfg: DictConfig, config: Mapping[str, Any], sampler: Mapping[str, Any], guidance: Mapping[str, Any]
) -> str:
    """Name a file after the settings that differ from the defaults; two checkpoints of an experiment share the name."""
    label = cfg.condition.label
    parts = [f"n{cfg.num_images}"]
    if "num_steps" in sampler:
        parts.append(f"steps{sampler['num_steps']}")
    parts.append("unconditional" if label == "none" else f"scale{guidance.get('scale', 1):g}")
    parts += [
        _class_name(node)
        for node, key in ((sampler, "sampler"), (guidance, "guidance"))
        if node and _is_other(node, config, key)
    ]
    parts += _sampler_words(sampler)
    plainest = {"start": 1.0, "stop": 0.0}
    parts += [f"{key}{guidance[key]:g}" for key, usual in plainest.items() if guidance.get(key, usual) != usual]
    if cfg.condition.get("caption") is not None:
        parts.append(_caption_word(cfg.condition.caption))
    elif label not in (None, "none"):
        parts.append(f"label{label}".replace(" ", ""))
    if config.get("weights") == "raw":
        parts.append("raw")
    if Path(cfg.ckpt).stem != "last":
        parts.append(Path(cfg.ckpt).stem)
    return "-".join([*parts, f"seed{cfg.seed}"])


def _caption_word(caption: Any) -> str:
    """Name one caption, or several, by the first words and a hash: two of them share no file name."""
    text = " ".join([caption] if isinstance(caption, str) else list(caption))
    words = re.sub(r"[^a-z0-9]+", "_", text.lower())[:24].strip("_")
    return f"caption-{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _sampler_words(node: Mapping[str, Any]) -> list[str]:
    """Abbreviate each setting that differs from the class's own default, as in eta0.5, karras, large, noclip."""
    if not node:
        return []
    parameters = inspect.signature(locate(node["_target_"], COMMAND_LINE, "sampler")).parameters
    words = []
    for key in sorted(parameters):
        usual = parameters[key].default
        value = node.get(key, usual)
        if usual is inspect.Parameter.empty or value == usual or not isinstance(value, (int, float, str)):
            continue
        if isinstance(value, bool):
            words.append(key if value else f"no{key}")
        else:
            words.append(str(value) if isinstance(value, str) else f"{key}{value:g}")
    return words


def _is_other(node: Mapping[str, Any], config: Mapping[str, Any], key: str) -> bool:
    """Check whether an object is of another class than the checkpoint's own."""
    own = (config.get(key) or {}).get("_target_")
    return own is not None and node["_target_"] not in (own, CLASSIFIER_FREE)


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2].lower()
