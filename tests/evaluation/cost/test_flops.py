"""Counts of operations against counts by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trilemma.evaluation.cost.flops import flop_counter

DEVICES = ["cpu", "meta"]


def counted(run):
    with flop_counter() as operations:
        run()
    return operations.get_total_flops()


@pytest.mark.parametrize("device", DEVICES)
def test_a_matrix_product_and_its_gradients(device):
    x = torch.ones(5, 7, device=device, requires_grad=True)
    weight = torch.ones(11, 7, device=device, requires_grad=True)
    assert counted(lambda: F.linear(x, weight)) == 2 * 5 * 7 * 11
    assert counted(lambda: F.linear(x, weight).sum().backward()) == 3 * 2 * 5 * 7 * 11
    assert counted(lambda: F.linear(x.detach(), weight).sum().backward()) == 2 * 2 * 5 * 7 * 11


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("device", DEVICES)
def test_a_convolution_and_its_gradients(device, groups):
    x = torch.ones(2, 6, 8, 9, device=device, requires_grad=True)
    conv = nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=groups, device=device)
    once = 2 * 2 * (4 * 5) * 12 * (6 // groups) * 9  # a result's cell meets every weight of its channel
    assert counted(lambda: conv(x)) == once
    assert counted(lambda: conv(x).sum().backward()) == 3 * once
    assert counted(lambda: conv(x.detach()).sum().backward()) == 2 * once


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_a_transposed_convolution_and_its_gradients(device, groups):
    x = torch.ones(2, 6, 4, 5, device=device, requires_grad=True)
    conv = nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1, groups=groups, device=device)
    once = 2 * 2 * (4 * 5) * 6 * (8 // groups) * 16  # an input's cell meets every weight of its channel
    assert counted(lambda: conv(x)) == once
    assert counted(lambda: conv(x).sum().backward()) == 3 * once


def test_a_gradient_of_a_gradient_is_counted():
    x = torch.ones(4, 6, device="meta", requires_grad=True)
    layer = nn.Linear(6, 3, bias=False, device="meta")  # a module: torch's counter alone fails at it

    def run():
        out = layer(x).square().sum()
        (gradient,) = torch.autograd.grad(out, x, create_graph=True)
        gradient.square().sum().backward()

    # The product, its gradient in x, and then each of the two again for every tensor that needs a gradient.
    assert counted(run) == (1 + 1 + 2 + 2) * 2 * 4 * 6 * 3
