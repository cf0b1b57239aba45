"""Discrete diffusion against the bare network and against diffusers: `python benchmarks/discrete.py`.

Sizes: S: K=128, L=49, d=128, 4 layers, batch 64. M: K=1024, L=256, d=256, 6 layers, batch 16. L: K=4096, L=1024, batch 4 (maths only).
"""

from __future__ import annotations

import argparse

from timing import HEADER, interleaved, row

import torch  # isort: skip
import torch.nn.functional as F

from trilemma.codecs.pixels import PixelLevels
from trilemma.conditions.label import LabelCondition
from trilemma.models.discrete_diffusion import DiscreteDiffusion
from trilemma.networks.transformer.bidirectional import BidirectionalTransformer
from trilemma.processes.categorical.closed_form import MaskAndReplace
from trilemma.processes.categorical.schedules import VQDiffusionPaper
from trilemma.processes.inverse_cdf import inverse_cdf
from trilemma.processes.noise import Noise, TorchNoise
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.guidance import ClassifierFree, Guidance
from trilemma.training.loss_weights import Simple
from trilemma.training.timesteps import ImportanceTimesteps

SIZES = {"S": (128, 7, 128, 4, 64), "M": (1024, 16, 256, 6, 16)}


class FixedCodec(PixelLevels):
    """Tokens are given, no image is ever decoded: only the prior is measured."""

    def __init__(self, num_classes: int, side: int) -> None:
        super().__init__((1, side, side), 256)
        self.num_classes = num_classes


def family(size: str) -> DiscreteDiffusion:
    K, side, dim, depth, _ = SIZES[size]
    torch.manual_seed(0)
    network = BidirectionalTransformer(
        num_states=K + 1,
        num_classes=K,
        code_shape=(side, side),
        dim=dim,
        depth=depth,
        num_heads=dim // 32,
        condition_dim=dim,
    )
    # A network that is not trained makes every class alike. Logits of deviation 2.2 are as peaked as a trained one's.
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    torch.nn.init.normal_(network.head.weight, std=2.2 * dim**-0.5)
    return DiscreteDiffusion(
        codec=FixedCodec(K, side),
        process=MaskAndReplace(K, VQDiffusionPaper()),
        network=network,
        condition=LabelCondition(10, dim),
        sampler=Ancestral(25),
        guidance=Guidance(),
        times=ImportanceTimesteps(100),
        weight=Simple(),
    )


def training(size: str, rounds: int) -> None:
    K, side, _, _, B = SIZES[size]
    model = family(size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    tokens, label = torch.randint(K, (B, side * side)), torch.randint(10, (B,))
    t = torch.rand(B)

    def ours() -> None:
        optimizer.zero_grad()
        model.loss({"code": tokens, "label": label}).total.backward()
        optimizer.step()

    def bare() -> None:
        optimizer.zero_grad()
        logits = model.network(tokens, t, model.condition(label, num=B).pooled)
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()

    print(
        row(
            f"{size}: training step / bare network with cross-entropy",
            interleaved({"a": ours, "b": bare}, rounds=rounds),
            "a",
            "b",
        ),
        flush=True,
    )


def sampling(size: str, rounds: int, num_steps: int = 10) -> None:
    K, side, _, _, B = SIZES[size]
    model = family(size).eval()
    L = side * side
    label = torch.randint(10, (B,))
    states = torch.randint(K + 1, (B, L))
    times = torch.linspace(1, 1 / num_steps, num_steps)

    def walk(sampler: Ancestral, guidance: Guidance) -> None:
        model.sample_codes(Noise(0, torch.arange(B)), B, label, sampler=sampler, guidance=guidance)

    @torch.no_grad()
    def bare(copies: int) -> None:
        pooled = model.condition(label, num=B).pooled
        for t in times:
            model.network(states.repeat(copies, 1), t.expand(copies * B), pooled.repeat(copies, 1))

    @torch.no_grad()
    def floor_truncated() -> None:
        # the least a truncation can cost: the forward and one partial selection of the classes
        pooled = model.condition(label, num=B).pooled
        for t in times:
            model.network(states, t.expand(B), pooled).softmax(-1).topk(min(K, 32), -1)

    functions = {
        "plain": lambda: walk(Ancestral(num_steps), Guidance()),
        "truncated": lambda: walk(Ancestral(num_steps, truncation=0.86), Guidance()),
        "guided": lambda: walk(Ancestral(num_steps), ClassifierFree(2.0)),
        "bare": lambda: bare(1),
        "bare, top-k": floor_truncated,
        "bare, two branches": lambda: bare(2),
    }
    took = interleaved(functions, rounds=rounds, warmup=1)
    print(row(f"{size}: sampling, {num_steps} steps / bare forwards", took, "plain", "bare"))
    print(row(f"{size}: sampling, truncation 0.86 / bare forwards + top-k", took, "truncated", "bare, top-k"))
    print(
        row(f"{size}: sampling, guidance 2 / bare forwards of both branches", took, "guided", "bare, two branches"),
        flush=True,
    )


def maths(K: int, L: int, B: int, rounds: int) -> None:
    process = MaskAndReplace(K, VQDiffusionPaper())
    torch.manual_seed(0)
    logits = torch.randn(B, L, K, requires_grad=True)
    x0 = torch.randint(K, (B, L))
    t, s = torch.full((B,), 0.5), torch.full((B,), 0.49)
    noise = TorchNoise()
    xt = process.sample(x0, t, noise)
    with torch.no_grad():
        log_x0, probs = logits.log_softmax(-1), logits.softmax(-1).flatten(0, 1)
    uniform = torch.rand(B * L, dtype=torch.float64)

    def loss() -> None:
        logits.grad = None
        kl, ce = process.bound_terms(logits, x0, xt, s, t, "posterior")
        (kl.mean() + 0.001 * ce.mean()).backward()

    def cross_entropy() -> None:
        logits.grad = None
        F.cross_entropy(logits.flatten(0, 1), x0.flatten()).backward()

    functions = {
        "step": lambda: process.step(log_x0, xt, 0.49, 0.5, "posterior", noise),
        "draw": lambda: inverse_cdf(probs, uniform),
        "loss": loss,
        "cross-entropy": cross_entropy,
    }
    try:
        from diffusers import VQDiffusionScheduler

        scheduler = VQDiffusionScheduler(num_vec_classes=K + 1, num_train_timesteps=100)
        scheduler.set_timesteps(100)
        transposed = log_x0.transpose(1, 2).contiguous()
        functions["diffusers"] = lambda: scheduler.step(transposed, torch.tensor(49), xt)
    except ImportError:
        pass
    with torch.no_grad():
        functions["step"]()
    took = interleaved(functions, rounds=rounds, warmup=1)
    name = f"K={K}, L={L}, batch {B}"
    print(row(f"{name}: reverse step / one inverse-CDF draw", took, "step", "draw"))
    print(row(f"{name}: loss forward + backward / cross-entropy", took, "loss", "cross-entropy"))
    if "diffusers" in took:
        print(row(f"{name}: diffusers' scheduler step / ours", took, "diffusers", "step"), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=["S", "M", "maths"], action="append")
    arguments = parser.parse_args()
    wanted = arguments.only or ["S", "M", "maths"]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} rounds\n\n{HEADER}",
        flush=True,
    )
    for size in ("S", "M"):
        if size in wanted:
            rounds = arguments.rounds if size == "S" else max(5, arguments.rounds // 3)
            training(size, rounds)
            sampling(size, max(5, rounds // 2), 10 if size == "S" else 5)
    if "maths" in wanted:
        maths(128, 49, 64, 10 * arguments.rounds)
        maths(1024, 256, 16, 3 * arguments.rounds)
        maths(4096, 1024, 4, arguments.rounds)
