"""Two processes that each see half of a batch keep the codebook of one process that sees it all."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from trilemma.codecs.quantizer import EMAQuantizer


def build() -> EMAQuantizer:
    torch.manual_seed(0)
    return EMAQuantizer(codebook_size=5, dim=3, kmeans_init=False, dead_code_threshold=0.0, decay=0.8).train()


def batch(step: int) -> Tensor:
    return torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))


def train(rank: int, folder: str) -> None:
    quantizer = build()  # before there is a process group, as a trainer does it
    started = EMAQuantizer(codebook_size=5, dim=3, dead_code_threshold=0.9, decay=0.8).train()
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    try:
        torch.manual_seed(100 + rank)
        for step in range(3):
            quantizer(batch(step)[rank::2])
            started(batch(step)[rank::2])
    finally:
        dist.destroy_process_group()
    torch.save((quantizer.state_dict(), started.state_dict()), f"{folder}/{rank}.pt")


def test_two_processes_share_one_codebook(tmp_path: Path):
    other = mp.get_context("spawn").Process(target=train, args=(1, str(tmp_path)))
    other.start()
    train(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for plain, started in zip(*states, strict=True):
        for key in plain:
            assert torch.equal(plain[key], started[key]), key
    alone = build()
    for step in range(3):
        alone(batch(step))
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(states[0][0][key], value, msg=key)
