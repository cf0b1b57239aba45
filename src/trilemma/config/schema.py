"""The keys of the configurations of the three entry points."""

from __future__ import annotations

from typing import Any, Literal

_OPTIONAL_INT = int | None
_OPTIONAL_STR = str | None
_OPTIONAL_FLOAT = float | None

FACTS: dict[str, Any] = {
    "image_shape": None,
    "num_labels": None,
    "num_train_images": None,
    "num_levels": None,
    "code_shape": None,
    "num_classes": None,
    "num_states": None,
    "codec": None,
    "run": None,
}
PATHS: dict[str, Any] = {"output_dir": str, "data_dir": str, "run_dir": str, "cache_dir": str}

PLAN: dict[str, Any] = {
    "gpu": str,
    "gpus_per_node": int,
    "utilisation": float,
    "memory_share": float,
    "node_gbits": float,
    "network_efficiency": float,
    "latency_us": float,
    "nodes": list | None,
}

TRAIN: dict[str, Any] = {
    "experiment_name": str,
    "data": None,
    "model": None,
    "codec": {"checkpoint": str, "experiment": str, "overrides": list, "read_as": str},
    "process": None,
    "network": None,
    "sampler": None,
    "guidance": None,
    "condition": None,
    "optimizer": None,
    "scheduler": None,
    "trainer": None,
    "callbacks": "targets",
    "logger": "targets",
    "paths": PATHS,
    "run": {"id": str | int, "resume": str, "budget": _OPTIONAL_STR},
    "facts": FACTS,
    "plan": PLAN,
    "seed": int,
    "num_threads": _OPTIONAL_INT,
    "optimized_metric": _OPTIONAL_STR,
    "init_from": _OPTIONAL_STR,
    "deterministic": bool,
    "compile": bool,
    "activation_checkpointing": bool,
}

_SAMPLING: dict[str, Any] = {
    "ckpt": str,
    "weights": Literal["ema", "raw"],
    "num_images": int,
    "sampler": None,  # checked against the class of the resulting sampler
    "guidance": {
        "scale": _OPTIONAL_FLOAT,
        "start": _OPTIONAL_FLOAT,
        "stop": _OPTIONAL_FLOAT,
        "classifier": _OPTIONAL_STR,
    },
    "seed": int,
    "batch_size": _OPTIONAL_INT,
    "num_threads": _OPTIONAL_INT,
    "output_dir": _OPTIONAL_STR,
}

SAMPLE: dict[str, Any] = {
    **_SAMPLING,
    "task": str,
    "num_images": _OPTIONAL_INT,
    "strength": None,
    "data": {"root": _OPTIONAL_STR},
    "condition": {"label": None, "caption": None},
    "num_png": int,
    "device": str,
}

EVALUATE: dict[str, Any] = {
    **_SAMPLING,
    "ckpt": _OPTIONAL_STR,
    "ckpts": list | None,
    "rows": str | list | None,
    "condition": {"label": None, "caption": None},
    "data": {"root": _OPTIONAL_STR},
    "sweep": dict.fromkeys(("sampler", "num_steps", "scale", "temperature", "truncation", "eta", "seed")),
    "extractor": _OPTIONAL_STR,
    "ledger": {"max_seconds": float, "batch_sizes": list},
    "likelihood": {"num_images": int, "seed": int, "num_samples": _OPTIONAL_INT},
    "two_stage": bool,
    "keep_samples": bool,
    "oracle": None,
    "logger": None,
    "cache_dir": str,
    "device": str,
}
