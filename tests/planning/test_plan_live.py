"""The memory of a step on paper, against what torch's allocator hands out in a real one."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from trilemma.networks.transformer.bidirectional import BidirectionalTransformer
from trilemma.networks.transformer.vq_diffusion import VQDiffusionTransformer
from trilemma.networks.unet.unet import UNet
from trilemma.planning.live import LiveMemory
from trilemma.planning.precision import GPURules

B = 4


def tokens(device):
    return torch.randint(33, (B, 64), device=device), torch.rand(B, device=device)


def images(device):
    return torch.rand(B, 3, 16, 16, device=device), torch.rand(B, device=device)


def transformer():
    return BidirectionalTransformer(
        num_states=33, num_classes=32, code_shape=(8, 8), dim=64, depth=2, num_heads=4, mlp_kernel=3
    )


def released():
    return VQDiffusionTransformer(
        num_states=33, num_classes=32, code_shape=(8, 8), dim=64, depth=2, num_heads=4, num_timesteps=10
    )


def unet():
    return UNet(
        in_channels=3, out_channels=3, image_size=16, channels=32, channel_mults=(1, 2), attention_resolutions=(8,)
    )


CASES = pytest.mark.parametrize(
    ("build", "inputs", "scratch"),
    # The CPU's kernels lay the weights of full convolutions out anew, in memory of their own: some copies of 64 x 256 x 9.
    [(transformer, tokens, 0), (released, tokens, 3 * 64 * 256 * 9 * 4), (unet, images, 0)],
    ids=["transformer", "released", "unet"],
)


def on_paper(network, inputs):
    """Kept by the forward pass, and the most that is held, on the meta device."""
    network = network.to("meta")
    arguments = inputs("meta")
    with LiveMemory(network) as memory:
        with GPURules():
            loss = network(*arguments).square().mean()
        kept = memory.live
        loss.backward()
    return kept, memory.peak_with_gradients


@pytest.mark.filterwarnings("ignore")
def allocated(network, inputs):
    """The most that torch's allocator has handed out at once in a step, beyond what stood before."""
    arguments = inputs("cpu")
    network(*arguments).square().mean().backward()  # kernels set themselves up
    network.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        network(*arguments).square().mean().backward()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@CASES
def test_the_height_is_what_the_allocator_hands_out(build, inputs, scratch):
    torch.manual_seed(0)
    real = allocated(build(), inputs)
    _, found = on_paper(build(), inputs)
    assert 0.99 * real - scratch < found < 1.01 * real


@CASES
def test_what_is_kept_is_what_autograd_saves(build, inputs, scratch):
    network, arguments = build(), inputs("cpu")
    standing = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers(), *arguments)}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in standing:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(*arguments).square().mean()
    kept, _ = on_paper(build(), inputs)
    assert loss.requires_grad
    assert kept == pytest.approx(sum(size for size, _ in saved.values()), rel=1e-3)


def test_gradients_of_weights_count_apart_and_stay():
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)).to("meta")
    x = torch.empty(4, 10, device="meta")
    with LiveMemory(network) as memory:
        loss = network(x).sum()
        assert memory.live == 4 * 20 * 4 + 4  # what the second layer multiplies, and the loss
        loss.backward()
        assert memory.gradients == 4 * sum(p.numel() for p in network.parameters())
        del loss
        assert memory.live == 0
    assert memory.peak >= 2 * 4 * 20 * 4
    assert memory.peak_with_gradients > memory.peak


def test_a_weight_that_is_used_twice_has_one_gradient():
    layer = nn.Linear(6, 6, bias=False, device="meta")
    with LiveMemory(layer) as memory:
        layer(layer(torch.empty(2, 6, device="meta"))).sum().backward()
    assert memory.gradients == 6 * 6 * 4


def test_weights_and_inputs_do_not_count():
    layer = nn.Linear(1000, 1000, device="meta")
    x = torch.empty(500, 1000, device="meta")
    with LiveMemory(layer) as memory:
        x.add_(1)
        assert memory.live == memory.peak == 0
