"""Rows of two processes come together exactly."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from trilemma.evaluation.distributed import gather, share

NUM_SAMPLES = 45


def pictures(num: int, *, seed: int) -> Tensor:
    return torch.randint(256, (num, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def work(rank: int, folder: str) -> None:
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    try:
        found: dict[str, object] = {}
        # Samples that each rank drew for its own indices.
        mine = share(NUM_SAMPLES)
        found["share"] = mine
        found["gathered"] = gather(pictures(NUM_SAMPLES, seed=1)[mine], num=NUM_SAMPLES)
        found["too few"] = gather(mine[:1] if rank == 0 else mine[:0], num=1)
    finally:
        dist.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, object]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    other = mp.get_context("spawn").Process(target=work, args=(1, str(folder)))
    other.start()
    work(0, str(folder))
    other.join()
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_samples_of_both_ranks_come_in_the_order_of_their_indices(ranks):
    assert torch.equal(torch.cat([found["share"] for found in ranks]).sort().values, torch.arange(NUM_SAMPLES))
    for found in ranks:
        assert torch.equal(found["gathered"], pictures(NUM_SAMPLES, seed=1))
        assert found["too few"].tolist() == [0]


def test_without_a_process_group_all_is_plain():
    images = pictures(10, seed=4)
    assert torch.equal(share(5, block=2), torch.arange(5))
    assert torch.equal(gather(images, num=10), images)
    with pytest.raises(ValueError, match="9 rows for a share of 10"):
        gather(images[:9], num=10)
