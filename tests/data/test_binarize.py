from itertools import islice

import pytest
import torch

from trilemma.codecs.pixels import PixelLevels
from trilemma.data.binarize import draw_binary
from trilemma.data.images import to_float
from trilemma.data.loader import BatchStream
from trilemma.errors import UserError
from trilemma.processes.noise import Noise


def stream(data, **options):
    """Batches of the grey training images, drawn anew each time."""
    options = {"batch_size": 6, "num_batches": 7, "seed": 5, "flip": True, **options}
    return BatchStream(data._read()["train"], draw_binary=True, **options)


@pytest.fixture
def dynamic(toy):
    return toy(num_train=60, binarize="dynamic")


def test_a_pixel_is_on_with_its_grey_value_as_probability():
    grey = torch.tensor([0, 51, 128, 255], dtype=torch.uint8).repeat(20000, 1)[:, :, None, None]
    drawn = draw_binary(grey, Noise(0, torch.arange(len(grey))))
    assert set(drawn.unique().tolist()) == {0, 255}
    share = (drawn == 255).double().mean((0, 2, 3))
    assert share[0] == 0
    assert share[3] == 1
    torch.testing.assert_close(share, grey[0, :, 0, 0].double() / 255, rtol=0, atol=0.02)


def test_training_images_are_drawn_anew_and_the_others_once_and_for_all(toy):
    one, other = (toy(num_train=12, binarize="dynamic", seed=seed, batch_size=12) for seed in (1, 2))
    one.num_train_batches = 2
    first, second = ({int(i): x for i, x in zip(b["index"], b["image"], strict=True)} for b in one.train_dataloader())
    assert first.keys() == second.keys()
    assert all(not torch.equal(first[i], second[i]) for i in first)
    assert all(set(x.unique().tolist()) <= {-1.0, 1.0} for x in first.values())
    for name in ("val", "test"):
        assert torch.equal(one.split(name).images, other.split(name).images)
        assert not torch.equal(one.split(name).images, one.split("train").images[: len(one.split(name))])
    (batch,) = toy(num_val=4, binarize="dynamic").val_dataloader()
    assert torch.equal(batch["image"], to_float(toy(num_val=4, binarize="dynamic").split("val").images))


@pytest.mark.parametrize("stop", [0, 1, 4, 6])
def test_a_restored_stream_draws_exactly_what_was_left(dynamic, stop):
    whole = [batch["image"] for batch in stream(dynamic)]
    killed = stream(dynamic)
    list(islice(killed, stop))
    restored = stream(dynamic)
    restored.load_state_dict(killed.state_dict())
    left = [batch["image"] for batch in restored]
    assert len(left) == 7 - stop
    assert all(torch.equal(a, b) for a, b in zip(whole[stop:], left, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_draw_what_one_process_draws(dynamic, world_size):
    shards = [list(stream(dynamic, rank=r, world_size=world_size)) for r in range(world_size)]
    for n, batch in enumerate(stream(dynamic)):
        assert torch.equal(batch["image"], torch.cat([shard[n]["image"] for shard in shards]))


def test_workers_draw_the_same(dynamic):
    with_workers = [batch["image"].clone() for batch in stream(dynamic, num_workers=2)]
    assert all(torch.equal(a["image"], b) for a, b in zip(stream(dynamic), with_workers, strict=True))


def test_the_mode_is_in_the_name_and_in_the_content(toy):
    data = {mode: toy(binarize=mode) for mode in (None, "threshold", "dynamic")}
    assert [one.name for one in data.values()] == ["toy", "toy_threshold", "toy_dynamic"]
    assert [one.num_levels for one in data.values()] == [256, 2, 2]
    assert len({one.fingerprint for one in data.values()}) == 3
    grey, two = data[None].split("train").images, data["threshold"].split("train").images
    assert torch.equal(two, torch.where(grey < 128, 0, 255).to(torch.uint8))
    with pytest.raises(UserError, match=r"data\.binarize=dynamical: take dynamic"):
        toy(binarize="dynamical")


def test_a_codec_of_two_levels_says_how_it_binarises():
    shape = (1, 2, 2)
    assert PixelLevels(shape, 2).binarize == "threshold"
    assert PixelLevels(shape, 2, stochastic=True).binarize == "dynamic"
    assert PixelLevels(shape, 4).binarize is None
