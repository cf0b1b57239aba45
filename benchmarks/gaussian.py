"""Gaussian diffusion against its bare network, and the U-Net against others': `python benchmarks/gaussian.py`.

Sizes: S: the network of conf/network/unet.yaml, 28 x 28, batch 64. M: a U-Net without patches, 28 x 28, batch 64. L: the
network of Ho et al. 2020 for CIFAR-10, 32 x 32, batch 4.

denoising-diffusion-pytorch's U-Net is one of the others where it can be imported; it needs little of what it asks for:
`pip install --no-deps --target DIR denoising-diffusion-pytorch einops`, then `PYTHONPATH=DIR python benchmarks/gaussian.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock, patch

from timing import HEADER, interleaved, row

import torch  # isort: skip
from diffusers import UNet2DModel
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trilemma.codecs.pixels import Pixels
from trilemma.conditions.none import NoCondition
from trilemma.models.ddpm import DDPM
from trilemma.networks.unet.unet import UNet
from trilemma.processes.gaussian.parameterization import V
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import CosineBeta
from trilemma.processes.noise import Noise
from trilemma.samplers.gaussian.base import GaussianSampler
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.guidance import Guidance
from trilemma.training.loss_weights import Simple
from trilemma.training.timesteps import ChainTimesteps

Forward = Callable[[Tensor, Tensor], Tensor]
SIZES = {"S": ((1, 28, 28), 64), "M": ((1, 28, 28), 64), "L": ((3, 32, 32), 4)}
PEER_HEADER = HEADER.replace("floor", "theirs").replace("overhead", "difference")


def unet(size: str) -> UNet:
    torch.manual_seed(0)
    c, side, _ = SIZES[size][0]
    if size == "S":
        path = Path(__file__).parents[1] / "conf/network/unet.yaml"
        config = OmegaConf.create({"network": OmegaConf.load(path), "facts": {"code_shape": [c, side, side]}})
        options = OmegaConf.to_container(config.network, resolve=True)
        del options["_target_"]
        network = UNet(**options)
    elif size == "M":
        network = UNet(
            in_channels=c,
            out_channels=c,
            image_size=side,
            channels=32,
            channel_mults=(1, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(7,),
        )
    else:
        network = UNet(in_channels=c, out_channels=c, image_size=side)
    return awake(network)


def awake(network: nn.Module) -> nn.Module:
    """Leave the zeros of the start: products with them can be faster than others."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    return network


def diffusers_unet(size: str) -> UNet2DModel:
    """The network of `unet`, as diffusers has it; normalised in 32 groups, or 8 where its widths need fewer."""
    (c, side, _), _ = SIZES[size]
    widths, attended, groups = ((32, 64, 64), 2, 8) if size == "M" else ((128, 256, 256, 256), 1, 32)
    down = ["AttnDownBlock2D" if level == attended else "DownBlock2D" for level in range(len(widths))]
    up = ["AttnUpBlock2D" if level == attended else "UpBlock2D" for level in reversed(range(len(widths)))]
    network = UNet2DModel(
        sample_size=side,
        in_channels=c,
        out_channels=c,
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=1 if size == "M" else 2,
        attention_head_dim=None,
        norm_num_groups=groups,
    )
    return awake(network)


def lucidrains_unet(size: str, num_parameters: int) -> nn.Module | None:
    """denoising-diffusion-pytorch's U-Net of the nearest width; None where it is not installed."""
    if find_spec("denoising_diffusion_pytorch") is None:
        return None
    for name in ("torchvision", "accelerate", "ema_pytorch"):  # for training loops and other models: not used here
        if name not in sys.modules and find_spec(name) is None:
            sys.modules[name] = MagicMock()
    Unet = import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch").Unet  # no dependency of ours

    (c, _, _), _ = SIZES[size]
    mults = (1, 2, 4) if size == "M" else (1, 2, 4, 8)

    def build(dim: int) -> nn.Module:
        # Its attention as it advises for speed: torch's own fused one.
        return Unet(dim=dim, dim_mults=mults, channels=c, flash_attn=True)

    with torch.device("meta"):
        dim = min(range(8, 129, 4), key=lambda dim: abs(count(build(dim)) - num_parameters))
    return awake(build(dim))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def step_of(network: nn.Module, forward: Callable[[], Tensor], target: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (forward() - target).square().mean().backward()
        optimizer.step()

    return step


def peers(size: str, rounds: int) -> None:
    shape, B = SIZES[size]
    ours = unet(size)
    networks: dict[str, tuple[nn.Module, Forward]] = {"ours": (ours, ours)}
    theirs = diffusers_unet(size)
    networks["diffusers' UNet2DModel"] = (theirs, lambda x, t: theirs(x, 1000 * t).sample)
    if (other := lucidrains_unet(size, count(ours))) is not None:
        networks["denoising-diffusion-pytorch's Unet"] = (other, lambda x, t: other(x, 1000 * t))
    x, t = torch.randn(B, *shape), torch.rand(B)
    functions: dict[str, Callable[[], object]] = {}
    names = {}
    for name, (network, forward) in networks.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(x, t)
        work = counter.get_total_flops() / 2e9 / B
        names[name] = f"{name} ({count(network) / 1e6:.2f} M, {work:.2f} GMAC)"
        functions[f"{name}: forward"] = torch.no_grad()(lambda forward=forward: forward(x, t))
        functions[f"{name}: training step"] = step_of(network, lambda forward=forward: forward(x, t), x)
    took = interleaved(functions, rounds=rounds, warmup=1)
    for name in list(networks)[1:]:
        for what in ("forward", "training step"):
            label = f"{size}: {what}, {names['ours']} / {names[name]}"
            print(row(label, took, f"ours: {what}", f"{name}: {what}"), flush=True)


def family(size: str) -> DDPM:
    return DDPM(
        codec=Pixels(SIZES[size][0]),
        process=GaussianProcess(CosineBeta(1000)),
        network=unet(size),
        condition=NoCondition(),
        sampler=DDIM(50),
        guidance=Guidance(),
        parameterization=V(),
        times=ChainTimesteps(1000),
        weight=Simple(),
        condition_dropout=0.0,
    )


def training(size: str, rounds: int) -> None:
    shape, B = SIZES[size]
    model = family(size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    images, t = torch.rand(B, *shape) * 2 - 1, torch.rand(B)

    def ours() -> None:
        optimizer.zero_grad()
        model.loss({"image": images}).total.backward()
        optimizer.step()

    functions = {"a": ours, "b": step_of(model.network, lambda: model.network(images, t), images)}
    name = f"{size}: training step of DDPM / bare U-Net with MSE"
    print(row(name, interleaved(functions, rounds=rounds), "a", "b"), flush=True)


def sampling(size: str, rounds: int, num_steps: int) -> None:
    shape, B = SIZES[size]
    model = family(size).eval()
    state, times = torch.randn(B, *shape), torch.linspace(1, 1 / num_steps, num_steps)

    def walk(sampler: GaussianSampler) -> None:
        model.sample_codes(Noise(0, torch.arange(B)), B, sampler=sampler)

    @torch.no_grad()
    def bare() -> None:
        for t in times:
            model.network(state, t.expand(B))

    functions = {
        "DDIM": lambda: walk(DDIM(num_steps)),
        "DPM-Solver++": lambda: walk(DPMSolver(num_steps)),
        "bare": bare,
    }
    took = interleaved(functions, rounds=rounds, warmup=1)
    for name in ("DDIM", "DPM-Solver++"):
        print(row(f"{size}: {name}, {num_steps} steps / bare forwards", took, name, "bare"), flush=True)


def main(wanted: list[str], rounds: int, *, cpu_time: bool) -> None:
    clock = "CPU time" if cpu_time else "wall time"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds, {clock}")
    if find_spec("denoising_diffusion_pytorch") is None:
        print("denoising-diffusion-pytorch is not installed: its rows are left out (see --help)")
    fewer = max(3, rounds // 3)
    print(f"\n{HEADER}", flush=True)
    if "S" in wanted:
        training("S", rounds)
        sampling("S", max(3, rounds // 2), 10)
    if "L" in wanted:
        training("L", fewer)
        sampling("L", fewer, 5)
    print(f"\n{PEER_HEADER}", flush=True)
    if "M" in wanted:
        peers("M", rounds)
    if "L" in wanted:
        peers("L", fewer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=list(SIZES), action="append")
    parser.add_argument(
        "--cpu-time", action="store_true", help="this process's own time, for a busy machine; one thread"
    )
    arguments = parser.parse_args()
    with patch("time.perf_counter", time.process_time) if arguments.cpu_time else nullcontext():
        main(arguments.only or list(SIZES), arguments.rounds, cpu_time=arguments.cpu_time)
