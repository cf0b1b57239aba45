"""The protocol: everything that must be equal before two numbers may be compared."""

from __future__ import annotations

import dataclasses
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

NO_EXTRACTOR = "none"  # in a protocol of what is measured without one
SMOKE_BELOW = 2_000
METRICS = 2  # raised when a metric changes its meaning: older rows are measured anew, never mixed with newer ones
_INCIDENTAL = ("machine", "budget", "model", "run")
PREPROCESSING = "round and clip to uint8, native size"


@dataclass(frozen=True)
class Machine:
    """What computed a number; no host, user or path.

    Attributes:
        cpu: Model of the processor.
        num_cores: Cores this process may use.
        num_threads: Threads torch used.
        accelerator: Model of the accelerator; None on the CPU.
        torch_version: Version of PyTorch.
    """

    cpu: str
    num_cores: int
    num_threads: int
    accelerator: str | None
    torch_version: str

    @staticmethod
    def here(device: torch.device | str = "cpu") -> Machine:
        """This machine, with computation on `device`."""
        device = torch.device(device)
        accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        if device.type not in ("cpu", "cuda"):
            accelerator = device.type
        return Machine(_cpu_model(), _num_cores(), torch.get_num_threads(), accelerator, torch.__version__)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a row of numbers was made; written beside each.

    Attributes:
        data: Name of the data set.
        data_fingerprint: Content hash of the data set.
        split: Split that the features are compared with.
        held_out: Split that the held-out baseline, and half of C_T, are taken from.
        num_images: Number of samples (or reconstructions) N.
        extractor: Name of the feature extractor, with its hash.
        model: What was evaluated, for people.
        run: Run that trained it.
        checkpoint: Content hash of its checkpoint; None where it was built by hand.
        sampler: Name and settings of the sampler.
        guidance: Name and settings of the guidance.
        condition: What the samples were conditioned on.
        weights: Whether averaged ("ema") or raw weights were used.
        preprocessing: What lies between the model's output and the extractor.
        seed: Seed of the samples.
        machine: What computed it.
        budget: What training took, for instance steps and seconds.
        metrics: Version of the metrics' definitions.
    """

    data: str
    data_fingerprint: str
    split: str
    num_images: int
    extractor: str
    model: str
    weights: Literal["ema", "raw"]
    seed: int
    held_out: str = "test"
    run: str | None = None
    checkpoint: str | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    guidance: dict[str, Any] = field(default_factory=dict)
    condition: str = "none"
    preprocessing: str = PREPROCESSING
    machine: Machine = field(default_factory=Machine.here)
    budget: dict[str, Any] = field(default_factory=dict)
    metrics: int = METRICS

    @property
    def tier(self) -> Literal["smoke", "standard"]:
        """Smoke below 2,000 images: the bias of a Frechet distance then outweighs the differences between models."""
        return "smoke" if self.num_images < SMOKE_BELOW else "standard"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, the tier included."""
        return {**dataclasses.asdict(self), "tier": self.tier}

    def describes(self, written: dict[str, Any]) -> bool:
        """Whether a protocol that was written down is this one; machine, budget and names for people may differ."""
        own = self.to_dict()
        return all(written.get(key) == value for key, value in own.items() if key not in _INCIDENTAL)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # counts what a job was given, not what the node has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
