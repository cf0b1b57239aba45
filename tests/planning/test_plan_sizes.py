from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adagrad, Adam, AdamW

from trilemma.models.base import Family, Loss
from trilemma.planning.model import on_meta
from trilemma.planning.sizes import OptimiserProbe, blocks_of, measure_sizes
from trilemma.training.muon import MuonAdamW


def build():
    return nn.ModuleDict(
        {
            "embedding": nn.Embedding(17, 6),
            "layers": nn.Sequential(nn.Linear(6, 30), nn.Linear(30, 6)),
            "conv": nn.Conv2d(6, 9, 3),
        }
    )


@pytest.mark.parametrize(
    "factory",
    [
        partial(AdamW, fused=True),
        partial(Adam, fused=False),
        partial(Adam, amsgrad=True),
        partial(SGD, lr=0.1),
        partial(SGD, lr=0.1, momentum=0.9),
        Adagrad,
        Adafactor,
        partial(MuonAdamW, lr=0.1),
    ],
    ids=["adamw", "adam", "amsgrad", "sgd", "momentum", "adagrad", "adafactor", "muon"],
)
def test_states_on_paper_are_those_that_an_optimiser_makes(factory):
    network = build()
    optimizer = factory(list(network.named_parameters()))
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]

    probe = OptimiserProbe(factory)
    with on_meta():
        probe(list(build().named_parameters()))
    assert probe.bytes == sum(value.numel() * value.itemsize for value in states)


def test_two_optimisers_add_up():
    probe = OptimiserProbe(Adam)
    with on_meta():
        layer = nn.Linear(10, 10)
    probe(list(layer.named_parameters()))
    once = probe.bytes
    probe(list(layer.named_parameters()))
    assert probe.bytes == 2 * once


class Units(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 8, bias=False)
        self.layers = nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 16, bias=False)])

    def layer_blocks(self):
        return list(self.layers)


class Small(Family):
    def __init__(self):
        super().__init__()
        self.network = Units()
        self.codec = nn.Linear(5, 5, bias=False).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(3, dtype=torch.float64))

    def loss(self, batch):
        return Loss(torch.zeros(()))


def test_a_model_adds_up():
    model = Small()
    sizes = measure_sizes(model, optimiser=123, num_averages=2)
    assert sizes.parts == {"network": (224, 0), "codec": (0, 25)}
    assert (sizes.num_trainable, sizes.num_frozen) == (224, 25)
    assert (sizes.weights, sizes.frozen, sizes.optimiser, sizes.averages) == (4 * 224, 4 * 25 + 3 * 8, 123, 2 * 4 * 224)
    assert (sizes.num_blocks, sizes.largest_block, sizes.outside_blocks) == (2, 4 * 128, 4 * 32)
    assert blocks_of(model) == list(model.network.layers)


def test_averages_are_wide_where_weights_are_not():
    model = Small().bfloat16()
    sizes = measure_sizes(model, optimiser=0, num_averages=1)
    assert (sizes.weights, sizes.averages) == (2 * 224, 4 * 224)
