"""The bound of one learned-variance checkpoint under its own, the small and the large variance: one network, one set of draws.

python benchmarks/variational_bound.py CKPT --num-images 200
"""

from __future__ import annotations

import argparse
import math
import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch loads

import torch

import trilemma
from trilemma.checkpoints.loaded import data_of
from trilemma.data.loader import EvalLoader
from trilemma.models.ddpm import BIN_WIDTH, DDPM
from trilemma.processes.gaussian.bound import interpolated_log_variance, step_terms
from trilemma.processes.gaussian.process import broadcast_like
from trilemma.processes.noise import Noise


@torch.no_grad()
def bounds(model: DDPM, batch) -> dict[str, torch.Tensor]:
    """Bits per dimension of each image, [B], under each variance."""
    x0, T, process = batch["image"], model.num_timesteps, model.process
    noise, condition = Noise(0, batch["index"]), model.condition(model.condition.raw_from(batch), num=len(x0))
    total = dict.fromkeys(("learned", "small", "large"), process.prior_kl(x0).flatten(1).mean(1))
    for i in range(1, T + 1):
        t = torch.full((len(x0),), i / T, dtype=torch.float64)
        s = torch.full_like(t, (i - 1) / T)
        xt = process.perturb(x0, t, noise.normal(tuple(x0.shape), dtype=x0.dtype))
        output, fraction = model._output(xt, t, condition)
        mean = model.parameterization.to_x0(process, output, xt, t)
        small, large = process.log_variance_range(s, t)
        choices = {"small": broadcast_like(small, xt), "large": broadcast_like(large, xt)}
        if fraction is not None:
            choices["learned"] = interpolated_log_variance(process, fraction, s, t)
        for name, log_variance in choices.items():
            nats = step_terms(process, x0, xt, s, t, mean, log_variance, bin_width=BIN_WIDTH)
            total[name] = total[name] + nats.flatten(1).mean(1)
    return {name: value / math.log(2) for name, value in total.items() if name != "learned" or fraction is not None}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ckpt")
    parser.add_argument("--num-images", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--root", default=None, help="where the data lies, if not where training found it")
    arguments = parser.parse_args()
    model = trilemma.load(arguments.ckpt)
    split = data_of(model.config, arguments.root).split("test")
    loader = EvalLoader(split, batch_size=arguments.batch_size, max_images=arguments.num_images)
    parts = [bounds(model, batch) for batch in loader]
    print(f"{arguments.num_images} test images, {model.num_timesteps} steps, upper bounds in bits per dimension")
    print("| variance | bound | above the first |\n|---|---|---|")
    first = torch.cat([part[next(iter(parts[0]))] for part in parts])
    for name in parts[0]:
        value = torch.cat([part[name] for part in parts])
        gap, root = value - first, len(value) ** 0.5
        print(
            f"| {name} | {value.mean():.4f} ± {value.std() / root:.4f} | {gap.mean():+.4f} ± {gap.std() / root:.4f} |"
        )
