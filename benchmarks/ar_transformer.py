"""The autoregressive transformer against its bare network and x-transformers: `PYTHONPATH=DIR python benchmarks/ar_transformer.py`.

256 tokens of 128 classes, 4 layers of width 128, batch 8, one thread. DIR holds x-transformers, which is no dependency (`pip install
--no-deps --target DIR x-transformers einx einops loguru frozendict`); without it those rows are left out. A training step is forward,
backward and AdamW, its floor that of the network with a cross-entropy.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from functools import partial

import timing
from timing import HEADER, interleaved, row

import torch  # isort: skip
import torch.nn.functional as F

from trilemma.codecs.pixels import PixelLevels
from trilemma.conditions.none import NoCondition
from trilemma.models.ar_transformer import ARTransformer
from trilemma.networks.transformer.causal import CausalTransformer
from trilemma.processes.noise import Noise
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.guidance import Guidance

# A peer to measure beside, which is no dependency: `pip install x-transformers` brings it.
x_transformers = importlib.import_module("x_transformers") if importlib.util.find_spec("x_transformers") else None

K, L, DIM, DEPTH, HEADS, BATCH = 128, 256, 128, 4, 4, 8


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time, where other programs run too")
    arguments = parser.parse_args()
    if arguments.cpu_time:
        timing.time.perf_counter = time.process_time
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codec = PixelLevels((1, 16, 16), K)
    network = CausalTransformer(num_classes=K, code_shape=codec.code_shape, dim=DIM, depth=DEPTH, num_heads=HEADS)
    model = ARTransformer(
        codec=codec,
        network=network,
        condition=NoCondition(),
        sampler=AutoregressiveSampler(),
        guidance=Guidance(),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
    ).eval()

    functions = {"ours": lambda: model.sample_codes(Noise(0, torch.arange(BATCH)), BATCH)}
    if x_transformers is not None:
        for name, flash in (("theirs", False), ("theirs, flash", True)):
            functions[name] = peer(flash)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters")
    print(HEADER)
    times = interleaved(functions, rounds=arguments.rounds, warmup=1)
    for name in list(functions)[1:]:
        print(row(f"{L} cached tokens / x-transformers' generate ({name})", times, "ours", name))

    optimizer = model.configure_optimizers()
    batch = {"code": torch.randint(K, (BATCH, L)), "image": torch.empty(BATCH), "index": torch.arange(BATCH)}

    def update(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    steps = {
        "ours": lambda: update(model.loss(batch).total),
        "floor": lambda: update(F.cross_entropy(network(batch["code"]).flatten(0, 1), batch["code"].flatten())),
    }
    times = interleaved(steps, rounds=3 * arguments.rounds)
    print(row("training step / bare network with cross-entropy", times, "ours", "floor"))


def peer(flash: bool):
    """Cached sampling by x-transformers, of a network of the same width, depth and heads."""
    layers = x_transformers.Decoder(dim=DIM, depth=DEPTH, heads=HEADS, attn_dim_head=DIM // HEADS, attn_flash=flash)
    wrapper = x_transformers.TransformerWrapper(num_tokens=K, max_seq_len=L + 1, attn_layers=layers)
    theirs = x_transformers.AutoregressiveWrapper(wrapper).eval()
    start = torch.zeros(BATCH, 1, dtype=torch.long)
    return lambda: theirs.generate(start, L, cache_kv=True)


if __name__ == "__main__":
    main()
