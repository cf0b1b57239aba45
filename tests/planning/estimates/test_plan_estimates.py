"""Bytes and seconds of a plan, by hand."""

import math

import pytest
import torch

from trilemma.errors import UserError
from trilemma.planning.estimates.communication import Communication, Fabric, communication
from trilemma.planning.estimates.gpus import GPUS, find_gpu
from trilemma.planning.estimates.layout import Layout
from trilemma.planning.estimates.memory import memory_rows
from trilemma.planning.estimates.sizes import Sizes
from trilemma.planning.estimates.step import StepWork
from trilemma.planning.estimates.timing import step_time

GB = 10**9
SIZES = Sizes(
    parts=(),
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
FABRIC = Fabric(node_gbits=200, efficiency=0.8, latency=0.0)


def layout(nodes, gpus, strategy, **options):
    return Layout(num_nodes=nodes, gpus_per_node=gpus, strategy=strategy, **options)


def held(*args, **options):
    return sum(row.bytes for row in memory_rows(SIZES, WORK, *args, **options))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_one_gpu_holds_everything_once():
    assert held(layout(1, 1, "single")) == pytest.approx((2 + 0.1 + 4 + 2 + 7) * GB)


def test_ddp_holds_buckets_too():
    assert held(layout(2, 4, "ddp")) == pytest.approx((2 + 0.1 + 4 + 2 + 2 + 7) * GB)
    assert held(layout(2, 4, "ddp"), bucket_view=True) == pytest.approx((2 + 0.1 + 4 + 2 + 2 + 6) * GB)


@pytest.mark.parametrize("gathered", [1.0, 0.5])
def test_fsdp_shares_what_can_be_shared(gathered):
    block, outside = SIZES.largest_block, SIZES.outside_blocks
    whole = 2 * gathered * block + outside + (gathered + 1) * block
    for nodes in (1, 2, 16):
        shared = (2 + 4 + 2 + 2) * GB / (4 * nodes)
        found = held(layout(nodes, 4, "fsdp", gathered_share=gathered))
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
    assert A100.operations(torch.bfloat16) == A100.operations(torch.float16) == 312e12
    assert A100.operations(torch.float32) == 19.5e12
    with pytest.raises(UserError, match=r"no blocks for bfloat16: take trainer\.precision=16-mixed"):
        GPUS["v100-16gb"].operations(torch.bfloat16)


def test_figures_of_a_kind_agree():
    for gpu in GPUS.values():
        assert gpu.half > gpu.single
        assert gpu.link < gpu.bandwidth
        assert gpu.name.endswith(f"-{gpu.memory:g}gb")
        assert "data sheet" in gpu.source


# --- links ------------------------------------------------------------------------------------------------------------


def test_one_gpu_sends_nothing():
    sent = communication(SIZES, A100, layout(1, 1, "single"), FABRIC)
    assert sent == Communication()
    assert sent.exposed(1.0, 2.0) == sent.exposed(1.0, 2.0, overlap=False) == 0.0


def test_a_ring_passes_gradients_twice():
    within = communication(SIZES, A100, layout(1, 4, "ddp"), FABRIC)
    assert within.bytes_per_gpu == 2 * 3 / 4 * 2 * GB
    assert within.backward == pytest.approx(2 * 3 / 4 * 2 * GB / (0.8 * 300e9))
    between = communication(SIZES, A100, layout(2, 4, "ddp"), FABRIC)
    assert between.backward == pytest.approx(2 * 7 / 8 * 2 * GB / (0.8 * 25e9))
    assert between.forward == 0.0
    assert between.unhidden == pytest.approx(between.backward / math.ceil(2 * GB / (25 * 2**20)))


@pytest.mark.parametrize("gathered", [1.0, 0.5])
def test_sharing_passes_weights_twice_and_gradients_once(gathered):
    sent = communication(SIZES, A100, layout(2, 4, "fsdp", gathered_share=gathered), FABRIC)
    weights = 7 / 8 * (gathered * (SIZES.weights - SIZES.outside_blocks) + SIZES.outside_blocks)
    gradients = 7 / 8 * SIZES.weights
    assert sent.bytes_per_gpu == pytest.approx(2 * weights + gradients)
    assert sent.forward == pytest.approx(weights / (0.8 * 25e9))
    assert sent.backward == pytest.approx((weights + gradients) / (0.8 * 25e9))


def test_every_piece_waits_for_the_other_nodes():
    late = Fabric(node_gbits=200, efficiency=0.8, latency=1e-3)
    for strategy, waits in (("ddp", math.ceil(2 * GB / (25 * 2**20)) * 2 * 3), ("fsdp", 3 * 21 * 7)):
        where = layout(8, 4, strategy)
        more = communication(SIZES, A100, where, late).seconds - communication(SIZES, A100, where, FABRIC).seconds
        assert more == pytest.approx(waits * 1e-3)
    where = layout(1, 4, "ddp")
    assert communication(SIZES, A100, where, late) == communication(SIZES, A100, where, FABRIC)


def test_a_pass_hides_what_runs_beside_it():
    sent = Communication(forward=0.1, backward=0.5, unhidden=0.02, bytes_per_gpu=1.0)
    assert sent.exposed(1.0, 1.0) == 0.02
    assert sent.exposed(1.0, 0.2) == pytest.approx(0.3)
    assert sent.exposed(0.04, 0.2) == pytest.approx(0.06 + 0.3)
    assert sent.exposed(1.0, 1.0, overlap=False) == pytest.approx(0.6)


# --- time -------------------------------------------------------------------------------------------------------------


def estimate(where, **options):
    return step_time(WORK, SIZES, A100, where, FABRIC, precision=torch.bfloat16, utilisation=0.5, **options)


def test_a_step_on_one_gpu():
    time = estimate(layout(1, 1, "single"))
    assert time.forward == pytest.approx(8e12 / (0.5 * 312e12))
    assert time.backward == pytest.approx(16e12 / (0.5 * 312e12))
    # Read and written: weights, states, averages; read: gradients, and the weights once more for the averages.
    assert time.optimiser == pytest.approx((2 * (2 + 4 + 2) + 2 + 2) * GB / 1555e9)
    assert time.seconds == pytest.approx(time.forward + time.backward + time.optimiser)
    assert time.efficiency == 1.0


def test_the_network_shows_in_what_is_not_hidden():
    time, plain = estimate(layout(2, 4, "ddp")), estimate(layout(2, 4, "ddp"), overlap=False)
    sent = 2 * 7 / 8 * 2 * GB / (0.8 * 25e9)
    assert time.exposed == pytest.approx(sent - time.backward)
    assert plain.exposed == pytest.approx(sent)
    assert time.efficiency == pytest.approx(time.computing / (time.computing + sent - time.backward))


def test_accumulation_shares_gradients_once():
    once, twice = (estimate(layout(2, 4, "ddp"), num_accumulated=n) for n in (1, 2))
    assert twice.computing - twice.optimiser == pytest.approx(2 * (once.computing - once.optimiser))
    assert twice.exposed == once.exposed
    assert estimate(layout(2, 4, "fsdp"), num_accumulated=2).exposed == 2 * estimate(layout(2, 4, "fsdp")).exposed


def test_sharing_shares_the_optimisers_work():
    assert estimate(layout(2, 4, "fsdp")).optimiser == pytest.approx(estimate(layout(1, 1, "single")).optimiser / 8)
