"""Two processes that each see a part of the images have the features, and so every number, of one that sees them all."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from trilemma.evaluation.distributed import embed_distributed, gather, share
from trilemma.evaluation.extractor_base import Embedding, Extractor, Images
from trilemma.evaluation.metrics.authenticity import authenticity
from trilemma.evaluation.metrics.frechet import frechet_distance
from trilemma.evaluation.metrics.histogram import class_counts
from trilemma.evaluation.metrics.kid import kid
from trilemma.evaluation.metrics.prdc import prdc

NUM_SAMPLES, NUM_REAL = 45, 61


class Convolved(Extractor):
    """One random convolution."""

    def __init__(self, *, batch_size: int, classes: bool = True) -> None:
        super().__init__(name="toy-0", label_names=("a", "b", "c") if classes else (), batch_size=batch_size)
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 6, 5)
        self.num_seen = 0

    def check(self, images: Images) -> None:
        self.num_seen += len(images)

    def see(self, batch: Tensor) -> Embedding:
        features = self.convolution(batch / 255).relu().mean((2, 3))
        return Embedding(features, features[:, :3] if self.num_classes else None)


def pictures(num: int, *, seed: int) -> Tensor:
    return torch.randint(256, (num, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def numbers(samples: Embedding, real: Embedding) -> dict[str, object]:
    assert samples.logits is not None
    return {
        "FD": frechet_distance(samples.features, real.features),
        "KID": kid(samples.features, real.features),
        "PRDC": prdc(real.features[: len(samples.features)], samples.features),
        "counts": class_counts(samples.logits.argmax(1), 3).tolist(),
        "authenticity": authenticity(real.features, samples.features),
    }


def work(rank: int, folder: str) -> None:
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    try:
        found: dict[str, object] = {}
        for batch_size in (7, 100):  # with 100 the second rank has nothing to do
            extractor = Convolved(batch_size=batch_size)
            seen = embed_distributed(extractor, pictures(NUM_SAMPLES, seed=1))
            found[f"seen by {batch_size}"] = extractor.num_seen
            real = embed_distributed(extractor, pictures(NUM_REAL, seed=2))
            found[f"features by {batch_size}"] = torch.cat([seen.features, real.features])
            found[f"numbers by {batch_size}"] = numbers(seen, real)
        found["no logits"] = embed_distributed(Convolved(batch_size=7, classes=False), pictures(9, seed=3)).logits
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


@pytest.mark.parametrize("batch_size", [7, 100])
def test_every_metric_of_two_ranks_is_that_of_one_process(ranks, batch_size):
    extractor = Convolved(batch_size=batch_size)
    samples, real = (extractor.embed(pictures(n, seed=s)) for n, s in ((NUM_SAMPLES, 1), (NUM_REAL, 2)))
    for found in ranks:
        assert torch.equal(found[f"features by {batch_size}"], torch.cat([samples.features, real.features]))
        assert found[f"numbers by {batch_size}"] == numbers(samples, real)


def test_the_work_is_shared(ranks):
    assert [found["seen by 7"] for found in ranks] == [7 * 3 + 3, 7 * 3]  # batches 0, 2, 4, 6 and 1, 3, 5 of 45 images
    assert [found["no logits"] for found in ranks] == [None, None]


def test_samples_of_both_ranks_come_in_the_order_of_their_indices(ranks):
    assert torch.equal(torch.cat([found["share"] for found in ranks]).sort().values, torch.arange(NUM_SAMPLES))
    for found in ranks:
        assert torch.equal(found["gathered"], pictures(NUM_SAMPLES, seed=1))
        assert found["too few"].tolist() == [0]


def test_without_a_process_group_all_is_plain():
    extractor, images = Convolved(batch_size=7), pictures(10, seed=4)
    assert torch.equal(embed_distributed(extractor, images).features, extractor.embed(images).features)
    assert torch.equal(share(5, block=2), torch.arange(5))
    assert torch.equal(gather(images, num=10), images)
    with pytest.raises(ValueError, match="9 rows for a share of 10"):
        gather(images[:9], num=10)
