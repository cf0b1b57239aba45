"""The noise of a training batch: the same for an image however many processes share the batch, other in another batch."""

from types import SimpleNamespace

import pytest
import torch
from families import build
from lightning.pytorch.trainer.states import TrainerFn

from trilemma.processes.noise import TorchNoise, mixed_seed
from trilemma.training.timesteps import UniformTimesteps


def parts(draw, world_size):
    """What `world_size` processes draw for their parts of a batch, one after another."""
    sources = (
        TorchNoise(torch.Generator().manual_seed(3), rank=rank, world_size=world_size) for rank in range(world_size)
    )
    return torch.cat([draw(noise, 12 // world_size) for noise in sources])


DRAWS = {
    "uniform": lambda noise, num: noise.uniform((num, 5)),
    "normal": lambda noise, num: noise.normal((num, 2, 3), dtype=torch.float64),
    "categorical": lambda noise, num: noise.categorical(torch.rand(7).expand(num, 4, 7)),
    "one_after_another": lambda noise, num: noise.uniform((num,)) + noise.normal((num,)),
    "stratified": lambda noise, num: UniformTimesteps().sample(num, noise, None)[0],
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_processes_draw_the_parts_of_what_one_draws(name, world_size):
    def draw(noise, num):
        torch.manual_seed(0)
        return DRAWS[name](noise, num)

    assert torch.equal(parts(draw, world_size), parts(draw, 1))


def test_the_strata_of_all_processes_cover_the_unit_interval():
    times = parts(DRAWS["stratified"], 4)
    assert sorted((12 * (1 - times)).floor().long().tolist()) == list(range(12))


def in_batch(batch, *, rank=0, world_size=1, seed=7):
    """A family as in that batch of a run."""
    model = build("ddpm")
    model.noise_seed = seed
    model._trainer = SimpleNamespace(
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        fit_loop=SimpleNamespace(total_batch_idx=batch),
        global_rank=rank,
        world_size=world_size,
    )
    return model


def drawn(model, num=4):
    return model.training_noise().uniform((num,)).tolist()


def test_noise_is_a_function_of_seed_batch_and_call():
    model = in_batch(5)
    first, second = drawn(model), drawn(model)
    assert first != second
    assert [drawn(again) for again in [in_batch(5)] for _ in range(2)] == [first, second]
    model._trainer.fit_loop.total_batch_idx = 6
    assert drawn(model) == drawn(in_batch(6)) != first
    assert drawn(in_batch(5, seed=8)) != first


def test_it_leaves_torchs_generators_alone_and_does_not_depend_on_them():
    one, other = in_batch(5), in_batch(5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drawn(one)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert drawn(other) == first


def test_processes_take_their_parts():
    whole = drawn(in_batch(5), 6)
    taken = [drawn(in_batch(5, rank=rank, world_size=3), 2) for rank in range(3)]
    assert [value for part in taken for value in part] == whole


def test_outside_a_trainer_it_comes_from_torchs_generators():
    model = build("ddpm")
    torch.manual_seed(1)
    first = drawn(model)
    torch.manual_seed(1)
    assert drawn(model) == first
    torch.manual_seed(1)
    assert torch.rand(4).tolist() == first


def test_seeds_differ_where_numbers_or_their_order_do():
    seeds = [mixed_seed(*numbers) for numbers in [(0, 1), (1, 0), (0, 1, 0), (1,), (11,), (1, 1)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
    low = [mixed_seed(0, batch, 0) % 2**32 for batch in range(20_000)]  # all that the CPU's generator looks at
    assert len(set(low)) > 19_990
