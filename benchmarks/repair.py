"""Can a model repair tokens that are wrong? `python benchmarks/repair.py --root DIR MASK_AND_REPLACE.ckpt MASKING_ONLY.ckpt`.

A tenth of each test image's tokens is replaced by other classes at random, none is masked, and the model denoises from there.
The time it starts at is chosen per model on validation images. Reported on test images:

- top-1 recovery: share of the replaced tokens that end as the original;
- kept: share of the untouched tokens that end as the original.

With masking alone an unmasked token is final: the reverse chain cannot change it, so its recovery is zero by construction. The
network's most likely class at the wrong positions ("one look") is shown beside it, since that is all such a model could offer.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import argparse
import json

import torch
from torch import Tensor

from trilemma.checkpoints.load import load_with_config
from trilemma.checkpoints.loaded import data_of
from trilemma.codecs.base import flatten
from trilemma.data.images import to_float
from trilemma.data.split import Split
from trilemma.models.discrete_diffusion import DiscreteDiffusion
from trilemma.processes.noise import Noise
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.guidance import Guidance

SHARE = 0.1
STARTS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)


def damage(x0: Tensor, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace a tenth of the tokens [B, L] by other classes; also says which."""
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(x0.shape, generator=generator) < SHARE
    other = (x0 + torch.randint(1, num_classes, x0.shape, generator=generator)) % num_classes
    return torch.where(hit, other, x0), hit


@torch.no_grad()
def repair(
    model: DiscreteDiffusion, x0: Tensor, label: Tensor, t_start: float, num_steps: int, seed: int
) -> dict[str, float]:
    """Recovery and kept shares of the chain from t_start, and of one look at that time."""
    damaged, hit = damage(x0, model.codec.num_classes, seed)
    noise = Noise(seed, torch.arange(len(x0)))
    chain = model.sample_codes(
        noise, len(x0), label, sampler=Ancestral(num_steps), guidance=Guidance(), x_start=damaged, t_start=t_start
    )
    condition = model.condition(label, num=len(x0))
    look = model.denoise(damaged, torch.full((len(x0),), t_start), condition, noise).log_x0.argmax(-1)
    result = {}
    for name, tokens in (("chain", chain), ("look", look)):
        same = tokens == x0
        result[f"{name}_recovery"] = float(same[hit].float().mean())
        result[f"{name}_kept"] = float(same[~hit].float().mean())
    return result


def tokens(model: DiscreteDiffusion, split: Split, num: int) -> tuple[Tensor, Tensor]:
    """Tokens [num, L] and labels of the first images of a split."""
    assert split.labels is not None
    return flatten(model.codec.encode(to_float(split.images[:num]))), split.labels[:num]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--root", help="where the data lies")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--out", help="a JSON file for the rows")
    arguments = parser.parse_args()
    rows = []
    print(
        "| model | start t | top-1 recovery | kept | one look: recovery | one look: kept |\n|---|---|---|---|---|---|"
    )
    for path in arguments.checkpoints:
        model, config = load_with_config(path)
        assert isinstance(model, DiscreteDiffusion)
        data = data_of(config, arguments.root)
        x0, label = tokens(model, data.split("val"), 250)
        scored = {t: repair(model, x0, label, t, arguments.num_steps, seed=1) for t in STARTS}
        best = max(STARTS, key=lambda t: scored[t]["chain_recovery"] + scored[t]["look_recovery"] * 1e-3)
        x0, label = tokens(model, data.split("test"), arguments.num_images)
        result = repair(model, x0, label, best, arguments.num_steps, seed=2)
        process = type(model.process).__name__
        rows.append(
            {"process": process, "budget": config["max_steps"], "t_start": best, "num_images": len(x0), **result}
        )
        values = " | ".join(f"{result[k]:.3f}" for k in ("chain_recovery", "chain_kept", "look_recovery", "look_kept"))
        print(f"| {config['experiment']}, {process} | {best} | {values} |", flush=True)
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
