"""What is done to the blocks of networks: exact gradients for less memory, and compiling that leaves no trace in a checkpoint."""

import functools

import pytest
import torch
from families import FAMILIES, LABELS, SIDE, build
from torch import nn
from torch._dynamo.utils import counters

from trilemma.distributed.network_blocks import compile_networks, inner_blocks, recompute_activations, trained_networks
from trilemma.errors import UserError

WITH_BLOCKS = (
    "discrete_diffusion",
    "vq_diffusion_released",
    "ddpm",
    "noisy_classifier",
    "pixelcnn",
    "pixelcnn_pp",
    "ar_transformer",
    "imagebart",
    "ddgan",
)
WITHOUT_DROPOUT = ("pixelcnn",)


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    """The compiler of torch warns of its own parts."""


def batch_of(num=6):
    images = torch.rand((num, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"image": images, "label": torch.arange(num) % LABELS, "index": torch.arange(num)}


def gradients(model, num=6):
    """The loss and its gradients, from one state of torch's generators."""
    torch.manual_seed(5)
    model.zero_grad()
    loss = model.loss(batch_of(num)).total
    loss.backward()
    return [loss.detach(), *[p.grad for p in model.parameters() if p.grad is not None]]


def bytes_kept(model):
    """What a forward pass keeps for the gradient, without the weights, each tensor once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = model.loss(batch_of()).total
    del loss
    return sum(kept.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_trained_network_says_what_it_is_made_of(name):
    networks = trained_networks(build(name))
    assert bool(networks) == (name != "classifier")
    for network in networks:
        blocks = inner_blocks(network)
        assert bool(blocks) == (name in WITH_BLOCKS)
        assert len({id(block) for block in blocks}) == len(blocks)
        assert not any(a is not b and a in list(b.modules()) for a in blocks for b in blocks)
        in_blocks = sum(p.numel() for block in blocks for p in block.parameters())
        if blocks:
            assert in_blocks > 0.3 * sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(name):
    plain, recomputed = build(name, dropout=True), build(name, dropout=True)
    recompute_activations(recomputed)
    assert recomputed.state_dict().keys() == plain.state_dict().keys()
    for a, b in zip(gradients(plain), gradients(recomputed), strict=True):
        assert torch.equal(a, b)
    dropped = not torch.equal(gradients(plain)[0], gradients(build(name))[0])
    assert dropped == (name not in WITHOUT_DROPOUT), "dropout must have something to draw"
    assert bytes_kept(recomputed) < 0.7 * bytes_kept(plain)


def test_recomputing_is_for_gradients_only():
    model = build("discrete_diffusion")
    calls = []
    model.network.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    recompute_activations(model)
    with torch.no_grad():
        model.loss(batch_of())
    assert len(calls) == 1
    gradients(model)
    assert len(calls) == 3


@pytest.fixture
def by_dynamo_alone(monkeypatch):
    """Compiling as far as graphs, without a C++ compiler."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="eager"))
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "num_graphs"), [("vq_diffusion_released", 1), ("ddpm", 1), ("vqvae", 2)])
def test_compiling_leaves_names_and_gradients_as_they_are(by_dynamo_alone, name, num_graphs):
    plain, compiled = build(name), build(name)
    compile_networks(compiled)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert [n for n, _ in compiled.named_parameters()] == [n for n, _ in plain.named_parameters()]
    for a, b in zip(gradients(plain), gradients(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == num_graphs
    assert not counters["graph_break"]
    gradients(compiled)
    assert counters["stats"]["unique_graphs"] == num_graphs, "each batch compiles anew"
    for num in (4, 5, 7, 8):  # the first other size makes it dynamic, once
        gradients(compiled, num)
    assert counters["stats"]["unique_graphs"] <= 2 * num_graphs


def test_activations_may_be_recomputed_in_what_is_compiled(by_dynamo_alone):
    plain, compiled = build("discrete_diffusion"), build("discrete_diffusion")
    recompute_activations(compiled)
    compile_networks(compiled)
    for a, b in zip(gradients(plain), gradients(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["discrete_diffusion", "ddpm"])
def test_compiled_code_gives_the_same_gradients(name):
    torch._dynamo.reset()
    plain, compiled = build(name), build(name)
    compile_networks(compiled)
    for a, b in zip(gradients(plain), gradients(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    labels = [0, 1, 2]
    torch.testing.assert_close(plain.eval().sample(3, condition=labels), compiled.eval().sample(3, condition=labels))


def test_refusals():
    with pytest.raises(UserError, match="no network of a Classifier"):
        compile_networks(build("classifier"))
    with pytest.raises(UserError, match="no network of a VQVAE has blocks"):
        recompute_activations(build("vqvae"))
    with pytest.raises(UserError, match="trainer=fsdp: the blocks of a UNet differ"):
        compile_networks(build("ddpm"), sharded=True)
    compile_networks(build("discrete_diffusion"), sharded=True)
