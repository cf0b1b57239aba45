"""Rows with invented numbers, in the form that `evaluate.py` writes: no model was run for any of them."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trilemma.evaluation.report import Row, read_row

EXTRACTOR = "invented-00000000"
FD, KID = f"FD[{EXTRACTOR}]", f"KID[{EXTRACTOR}]"

_SCORES = {
    "precision": 0.8,
    "recall": 0.7,
    "density": 0.9,
    "coverage": 0.75,
    "label_accuracy": 0.9,
    "authenticity": 0.6,
}
_REAL = {
    "precision": 0.92,
    "recall": 0.91,
    "density": 0.99,
    "coverage": 0.96,
    "label_accuracy": 0.99,
    "authenticity": 0.55,
}


def content(
    *,
    model: str = "toy/model (Family)",
    fd: float = 2.0,
    steps: int | None = 10,
    scale: float | None = 2.0,
    seed: int = 0,
    checkpoint: str = "a" * 64,
    num_images: int = 2000,
    seconds: float | None = 0.1,
    two_stage: bool = True,
    machine: dict[str, Any] | None = None,
    waited: float | None = None,
    **scores: Any,
) -> dict[str, Any]:
    """One row; what is None is left out."""
    sampler = {} if steps is None else {"_target_": "trilemma.samplers.categorical.ancestral.Ancestral", "num_steps": steps,
                                        "temperature": 1.0, "truncation": 1.0}  # fmt: skip
    guidance = {} if scale is None else {"_target_": "trilemma.samplers.guidance.ClassifierFree", "scale": scale,
                                         "start": 1.0, "stop": 0.0}  # fmt: skip
    metrics = {"num_images": float(num_images), FD: fd, f"FD_stderr[{EXTRACTOR}]": 0.05, KID: float(fd) / 1000,
               f"KID_stderr[{EXTRACTOR}]": 0.0001, **_SCORES, "precision_stderr": 0.01, "recall_stderr": 0.012,
               "coverage_stderr": 0.009, "ct": -0.5, **scores}  # fmt: skip
    metrics["precision_ratio"] = metrics["precision"] / _REAL["precision"]
    metrics["coverage_ratio"] = metrics["coverage"] / _REAL["coverage"]
    machine = machine or {
        "cpu": "Invented CPU",
        "num_cores": 2,
        "num_threads": 1,
        "accelerator": None,
        "torch_version": "0",
    }
    row: dict[str, Any] = {
        "format": 2,
        "protocol": {
            "data": "toys", "data_fingerprint": "f" * 64, "split": "train", "num_images": num_images,
            "extractor": EXTRACTOR, "model": model, "weights": "ema", "seed": seed, "checkpoint": checkpoint, "run": "one",
            "sampler": sampler, "guidance": guidance, "condition": "label: all in turn",
            "preprocessing": "round and clip to uint8, native size", "held_out": "test", "metrics": 2, "machine": machine,
            "budget": {"max_steps": 100, "note": None}, "tier": "smoke" if num_images < 2000 else "standard",
        },
        "metrics": metrics,
        "floor": {"num_images": float(num_images), FD: 0.18, KID: 0.00002, **_REAL},
        "copycat": {"num_images": float(num_images), FD: 0.15, KID: 0.00001, **_REAL, "authenticity": 0.0},
    }  # fmt: skip
    if seconds is not None:
        calls = float((steps or 1) * (2 if scale not in (None, 0.0, 1.0) else 1))
        subnetworks = [
            {"name": name, "counted_at": name, "num_calls": int(n), "evaluations_per_image": n, "flops_per_image": 1e8 * n,
             "num_parameters": size} for name, n, size in (("network", calls, 8_100_000), ("codec", 1.0, 600_000))
        ]  # fmt: skip
        row["ledger"] = {
            "work": {"subnetworks": subnetworks, "flops_per_image": 1e8 * (calls + 1.5), "flops_outside_per_image": 5e7,
                     "num_parameters": 8_700_000, "num_images": 4},
            "latency": {"p50_seconds": seconds, "p95_seconds": 1.2 * seconds, "num_runs": 20},
            "throughput": {"images_per_second": 3 / seconds, "batch_size": 64, "tried": [], "stopped_by": "end"},
            "memory": [{"peak_bytes": 700 * 2**20, "before_bytes": 2**29, "measure": "resident", "batch_size": 1},
                       {"peak_bytes": 900 * 2**20, "before_bytes": 2**29, "measure": "resident", "batch_size": 64}],
            "machine": machine, "waited": waited,
        }  # fmt: skip
    if two_stage:
        row["likelihood"] = {"kind": "bound", "unit": "token", "num_dims": 49, "num_images": 10000, "nats_per_image": 100.0,
                             "nats_standard_error": 0.3, "bits_per_dim": 2.9443, "bits_standard_error": 0.009}  # fmt: skip
        row["two_stage"] = {
            "codec": {"psnr": 24.5, "psnr_pooled": 24.0, "ssim": 0.93, f"rFD[{EXTRACTOR}]": 0.35,
                      "codebook_perplexity": 81.5, "codebook_usage": 1.0},
            "oracle": {FD: 0.5, "precision": 0.9, "recall": 0.88, "coverage": 0.93},
            "code_bits_per_image": 343.0,
            "prior_bits_per_image": 144.27,
        }  # fmt: skip
    row["samples_sha256"] = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
    return row


def row(name: str = "row", **options: Any) -> Row:
    """A row without pictures."""
    return Row(name, content(**options))


def without(given: Row, *parts: str) -> Row:
    """The same without some of its parts."""
    kept = {key: value for key, value in copy.deepcopy(dict(given.content)).items() if key not in parts}
    return Row(given.name, kept)


def written(folder: Path, name: str, **options: Any) -> Row:
    """A row as a file with its two pictures, read back."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content(**options)))
    rng = np.random.default_rng(len(name))
    for suffix, height in (("", 600), ("-neighbours", 160)):
        noise = rng.integers(0, 256, (height // 20, 30), dtype=np.uint8)
        Image.fromarray(noise).resize((600, height), Image.Resampling.NEAREST).save(folder / f"{name}{suffix}.png")
    return read_row(folder / f"{name}.json")
