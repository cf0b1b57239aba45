"""Bytes and seconds of a plan, by hand."""

import math
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from trilemma.errors import UserError
from trilemma.planning.cluster import GPUS, Setup, find_gpu
from trilemma.planning.plan import memory_rows
from trilemma.planning.sizes import Sizes
from trilemma.planning.step import StepWork
from trilemma.planning.timing import communication, step_time

GB = 10**9
SIZES = Sizes(
    parts={},
    weights=2 * GB,
    frozen=GB // 10,
    optimiser=4 * GB,
    averages=2 * GB,
    largest_block=GB // 10,
    outside_blocks=GB // 50,
    num_blocks=20,
)
WORK = StepWork(
    forward_flops=8 * 10**12,
    backward_flops=16 * 10**12,
    kept_bytes=5 * GB,
    peak_bytes=6 * GB,
    peak_with_gradients_bytes=7 * GB,
)
A100 = GPUS["a100-40gb"]
ASSUMED = {"node_gbits": 200, "network_efficiency": 0.8, "latency_us": 0.0, "utilisation": 0.5, "memory_share": 0.9}


def setup(nodes, gpus, strategy, *, late=0.0, precision="32-true", **options):
    assumed = OmegaConf.create(ASSUMED | {"latency_us": late})
    where = {"num_nodes": nodes, "gpus_per_node": gpus, "strategy": strategy}
    return Setup(gpu=A100, assumed=assumed, precision=precision, **where, **options)


def held(where):
    return sum(size for _, size, _ in memory_rows(SIZES, WORK, where))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_one_gpu_holds_everything_once():
    assert held(setup(1, 1, "single")) == pytest.approx((2 + 0.1 + 4 + 2 + 7) * GB)


def test_ddp_holds_buckets_too():
    assert held(setup(2, 4, "ddp")) == pytest.approx((2 + 0.1 + 4 + 2 + 2 + 7) * GB)
    assert held(setup(2, 4, "ddp", bucket_view=True)) == pytest.approx((2 + 0.1 + 4 + 2 + 2 + 6) * GB)


@pytest.mark.parametrize(("precision", "gathered"), [("32-true", 1.0), ("16-mixed", 1.0), ("bf16-mixed", 0.5)])
def test_fsdp_shares_what_can_be_shared(precision, gathered):
    block, outside = SIZES.largest_block, SIZES.outside_blocks
    whole = 2 * gathered * block + outside + (gathered + 1) * block
    for nodes in (1, 2, 16):
        shared = (2 + 4 + 2 + 2) * GB / (4 * nodes)
        found = held(setup(nodes, 4, "fsdp", precision=precision))
        assert found == pytest.approx(shared + 0.1 * GB + whole + 6 * GB, abs=8)


# --- GPUs -------------------------------------------------------------------------------------------------------------


def test_a_gpu_is_found_or_suggested():
    assert find_gpu("h100-80gb").memory == 80
    with pytest.raises(UserError, match="did you mean a100-40gb or a100-80gb"):
        find_gpu("A100")
    with pytest.raises(UserError, match="did you mean h200-141gb"):
        find_gpu("h200_141gb")
    with pytest.raises(UserError, match=r"plan\.gpu=tpu is not known: there are v100-16gb"):
        find_gpu("tpu")


def test_precision_decides_the_rate():
    assert (
        setup(1, 1, "single", precision="bf16-mixed").rate == setup(1, 1, "single", precision="16-mixed").rate == 312e12
    )
    assert setup(1, 1, "single").rate == 19.5e12


def test_figures_of_a_kind_agree():
    for gpu in GPUS.values():
        assert gpu.half > gpu.single
        assert gpu.link < gpu.bandwidth
        assert gpu.name.endswith(f"-{gpu.memory:g}gb")


# --- links ------------------------------------------------------------------------------------------------------------


def test_one_gpu_sends_nothing():
    for strategy in ("single", "ddp", "fsdp"):
        assert communication(SIZES, setup(1, 1, strategy, late=10.0)) == (0.0, 0.0, 0.0)


def test_a_ring_passes_gradients_twice():
    _, within, _ = communication(SIZES, setup(1, 4, "ddp"))
    assert within == pytest.approx(2 * 3 / 4 * 2 * GB / (0.8 * 300e9))
    forward, between, unhidden = communication(SIZES, setup(2, 4, "ddp"))
    assert between == pytest.approx(2 * 7 / 8 * 2 * GB / (0.8 * 25e9))
    assert forward == 0.0
    assert unhidden == pytest.approx(between / math.ceil(2 * GB / (25 * 2**20)))


@pytest.mark.parametrize(("precision", "gathered"), [("32-true", 1.0), ("bf16-mixed", 0.5)])
def test_sharing_passes_weights_twice_and_gradients_once(precision, gathered):
    forward, backward, unhidden = communication(SIZES, setup(2, 4, "fsdp", precision=precision))
    weights = 7 / 8 * (gathered * (SIZES.weights - SIZES.outside_blocks) + SIZES.outside_blocks)
    assert forward == pytest.approx(weights / (0.8 * 25e9))
    assert backward == pytest.approx((weights + 7 / 8 * SIZES.weights) / (0.8 * 25e9))
    assert unhidden == pytest.approx(7 / 8 * (gathered + 1) * SIZES.largest_block / (0.8 * 25e9))


def test_every_piece_waits_for_the_other_nodes():
    for strategy, waits in (("ddp", math.ceil(2 * GB / (25 * 2**20)) * 2 * 3), ("fsdp", 3 * 21 * 7)):
        late, prompt = (communication(SIZES, setup(8, 4, strategy, late=late)) for late in (1000.0, 0.0))
        assert sum(late[:2]) - sum(prompt[:2]) == pytest.approx(waits * 1e-3)
    assert communication(SIZES, setup(1, 4, "ddp", late=1000.0)) == communication(SIZES, setup(1, 4, "ddp"))


# --- time -------------------------------------------------------------------------------------------------------------


def estimate(where, **options):
    return step_time(WORK, SIZES, replace(where, precision="bf16-mixed"), **options)


def test_a_step_on_one_gpu():
    time = estimate(setup(1, 1, "single"))
    assert time.forward == pytest.approx(8e12 / (0.5 * 312e12))
    assert time.backward == pytest.approx(16e12 / (0.5 * 312e12))
    # Read and written: weights, states, averages; read: gradients, and the weights once more for the averages.
    assert time.optimiser == pytest.approx((2 * (2 + 4 + 2) + 2 + 2) * GB / 1555e9)
    assert time.seconds == pytest.approx(time.forward + time.backward + time.optimiser)
    assert time.efficiency == 1.0


def test_the_network_shows_in_what_is_not_hidden():
    time, plain = estimate(setup(2, 4, "ddp")), estimate(setup(2, 4, "ddp"), overlap=False)
    sent = 2 * 7 / 8 * 2 * GB / (0.8 * 25e9)
    assert time.exposed == pytest.approx(sent - time.backward)
    assert plain.exposed == pytest.approx(sent)
    assert time.efficiency == pytest.approx(time.computing / (time.computing + sent - time.backward))


def test_a_pass_hides_what_runs_beside_it():
    where = setup(2, 4, "fsdp", precision="bf16-mixed")
    forward, backward, unhidden = communication(SIZES, where)
    assert estimate(where, images=1000.0).exposed == unhidden
    time = estimate(where, images=0.1)
    assert time.forward < forward
    assert time.exposed == pytest.approx(forward - time.forward + backward - time.backward)
    assert estimate(where, overlap=False).exposed == pytest.approx(forward + backward)


def test_accumulation_shares_gradients_once():
    once, twice = (estimate(setup(2, 4, "ddp", num_accumulated=n)) for n in (1, 2))
    assert twice.computing - twice.optimiser == pytest.approx(2 * (once.computing - once.optimiser))
    assert twice.exposed == once.exposed
    once, twice = (estimate(setup(2, 4, "fsdp", num_accumulated=n)) for n in (1, 2))
    assert twice.exposed == 2 * once.exposed


def test_sharing_shares_the_optimisers_work():
    assert estimate(setup(2, 4, "fsdp")).optimiser == pytest.approx(estimate(setup(1, 1, "single")).optimiser / 8)
