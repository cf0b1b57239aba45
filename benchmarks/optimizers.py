"""A step of each optimiser on the network of mnist/vq_diffusion, on one thread: `python benchmarks/optimizers.py`.

Muon is ours (float32 on a CPU) and torch's own, which orthogonalises in bfloat16: without instructions for it, a step takes seconds.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from timing import interleaved

import torch  # isort: skip
from torch import nn
from torch.optim import AdamW, Muon

from trilemma.networks.transformer.bidirectional import BidirectionalTransformer
from trilemma.training.muon import MuonAdamW

KNOWN = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "bf16")


def instructions() -> str:
    """Name the vector instructions of this CPU that decide how fast half precision is."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return " ".join(name for name in KNOWN if name in words) or torch.backends.cpu.get_cpu_capability()


def network() -> nn.Module:
    """The transformer of mnist/vq_diffusion, with gradients."""
    torch.manual_seed(0)
    net = BidirectionalTransformer(
        num_states=129, num_classes=128, code_shape=(7, 7), dim=128, depth=4, num_heads=4, condition_dim=128
    )
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    return net


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    nets = {name: network() for name in ("AdamW", "Muon + AdamW, ours", "Muon, torch's, the same matrices")}
    ours = MuonAdamW(nets["Muon + AdamW, ours"].named_parameters(), lr=1e-4)
    names = set(ours.param_groups[0]["param_names"])
    theirs = [p for name, p in nets["Muon, torch's, the same matrices"].named_parameters() if name in names]
    steps = {
        "AdamW": AdamW(nets["AdamW"].parameters(), lr=1e-4, fused=True).step,
        "Muon + AdamW, ours": ours.step,
        "Muon, torch's, the same matrices": Muon(theirs, lr=1e-4, adjust_lr_fn="match_rms_adamw").step,
    }
    times = interleaved(steps, rounds=rounds)
    size = sum(p.numel() for p in nets["AdamW"].parameters())
    print(
        f"{size / 1e6:.2f} M parameters, one thread, {instructions()}\n\n| optimiser | step, ms (median) |\n|---|---|"
    )
    for name, seconds in times.items():
        print(f"| {name} | {statistics.median(seconds) * 1e3:.1f} |")


if __name__ == "__main__":
    main()
