"""Causality and the whole receptive field of the PixelCNNs, and their caches, in float64."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trilemma.errors import UserError
from trilemma.networks.pixelcnn.causal import Cache
from trilemma.networks.pixelcnn.gated import GatedPixelCNN
from trilemma.networks.pixelcnn.plus_plus import PixelCNNPlusPlus

K, B = 3, 2


@torch.no_grad()
def awake(network):
    """Weights far from the initialisation, so that no dependence is too small to see."""
    torch.manual_seed(0)
    for name, p in network.named_parameters():
        nn.init.normal_(p, std=0.2 if name.endswith("bias") else 0.7 / p[0].numel() ** 0.5)
        if name.endswith(("out.bias", "head.0.bias")):
            p.add_(3.0)  # no rectified unit is off
    return network.double().eval()


def gated(code_shape=(5, 5), **options):
    options = {"channels": 6, "depth": 2, "head_channels": 6, "embedding_dim": 4, **options}
    return awake(GatedPixelCNN(num_classes=K, code_shape=code_shape, **options))


def plus_plus(**options):
    options = {"in_channels": 3, "image_size": 8, "channels": 4, "num_blocks": 1, "num_components": 2, **options}
    return awake(PixelCNNPlusPlus(**options))


def sees(inputs, parameters):
    """Whether the output at each pixel depends on the input at each pixel: bool [h w, h w]."""
    outputs = parameters.square().sum((0, 1)).flatten()  # squares, lest channels cancel
    rows = [torch.autograd.grad(out, inputs, retain_graph=True)[0] for out in outputs]
    return torch.stack([row.abs().sum((0, 1)).flatten() for row in rows]) > 0


def earlier(num):
    return torch.ones(num, num).tril(-1).bool()


def test_the_gated_stacks_see_all_before_and_nothing_else():
    """A first window of 7 and a second layer of 3 reach four pixels far: all of a 5 x 5 grid, so a blind spot would show."""
    network = gated()
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    network._embedded = lambda tokens: x
    assert torch.equal(sees(x, network(None)), earlier(25))


@pytest.mark.parametrize("embedding_dim", [None, 2])
def test_channels_come_in_order(embedding_dim):
    """Red sees no channel of its pixel, green sees red, blue sees both; all see all of the pixels before."""
    network, C = gated((3, 3, 3), embedding_dim=embedding_dim), 3
    width = embedding_dim or 1
    x = torch.randn(1, C * width, 3, 3, dtype=torch.float64, requires_grad=True)
    network._embedded = lambda tokens: x
    logits = network(None).view(C, K, 9).square().sum(1).T.flatten()  # in the order of the sequence
    rows = torch.stack([torch.autograd.grad(out, x, retain_graph=True)[0] for out in logits])
    found = rows.view(27, C, width, 9).abs().sum(2).transpose(1, 2).flatten(1) > 0
    assert torch.equal(found, earlier(27))


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_plus_plus_sees_all_before_and_nothing_else(num_levels):
    """A single level reaches as far where it has more blocks."""
    network = plus_plus(num_levels=num_levels, num_blocks=3 if num_levels == 1 else 2)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.equal(sees(x, network(x)), earlier(64))


CACHED = {
    "tokens": lambda: (gated((4, 5), condition_dim=3), torch.randint(K, (B, 1, 4, 5))),
    "levels of colours": lambda: (
        gated((3, 4, 3), embedding_dim=None, kernel_size=5, condition_dim=3),
        torch.randint(K, (B, 3, 3, 4)),
    ),
    "pp, 1 level": lambda: (plus_plus(num_levels=1, condition_dim=3), torch.randn(B, 3, 8, 8).double()),
    "pp, 3 levels": lambda: (plus_plus(num_levels=3, num_blocks=2, condition_dim=3), torch.randn(B, 3, 8, 8).double()),
}


@pytest.mark.parametrize("name", CACHED)
@torch.no_grad()
def test_a_pixel_from_the_cache_is_that_of_the_whole_map(name):
    """While what is not known yet is zero: of a gated network also the later channels of a pixel."""
    network, x = CACHED[name]()
    pooled = torch.randn(B, 3).double()
    whole, grid, cache = network(x, pooled), torch.zeros_like(x), Cache()
    parts = 1 if isinstance(network, PixelCNNPlusPlus) else x.shape[1]
    for row, column, part in itertools.product(range(x.shape[2]), range(x.shape[3]), range(parts)):
        found = network(grid, pooled, cache=cache, pixel=(row, column))[:, :, 0, 0].chunk(parts, 1)[part]
        torch.testing.assert_close(found, whole[..., row, column].chunk(parts, 1)[part], rtol=0, atol=1e-12)
        now = slice(None) if parts == 1 else part
        grid[:, now, row, column] = x[:, now, row, column]


def test_a_cached_pixel_costs_what_it_touches():
    """The work of all pixels is about that of one whole map, not of one a pixel."""
    network = gated((12, 12), channels=16, embedding_dim=None)
    x = torch.randint(K, (1, 1, 12, 12))
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        network(x)
    cache = Cache()
    with torch.no_grad(), FlopCounterMode(display=False) as cached:
        for row, column in itertools.product(range(12), range(12)):
            network(x, cache=cache, pixel=(row, column))
    assert cached.get_total_flops() <= 1.05 * whole.get_total_flops()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: gated(kernel_size=2), "network.kernel_size=2"),
        (lambda: gated(first_kernel_size=1), "network.first_kernel_size=1"),
        (lambda: gated((4, 4, 3), channels=8), "network.channels=8: must be a multiple of the 3"),
        (lambda: gated(head_channels=0), "network.head_channels=0"),
        (lambda: gated(depth=0), "network.depth=0"),
        (lambda: plus_plus(num_levels=5), "cannot be halved 4 times"),
        (lambda: plus_plus(num_blocks=0), "network.num_blocks=0"),
        (lambda: plus_plus(dropout=1.0), "network.dropout=1.0"),
    ],
)
def test_what_makes_no_network_is_refused(build, said):
    with pytest.raises(UserError, match=said):
        build()
