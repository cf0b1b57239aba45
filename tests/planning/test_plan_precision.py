import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trilemma.planning.live import LiveMemory
from trilemma.planning.precision import GPURules

LOW = torch.bfloat16


def empty(*shape, dtype=torch.float32, **options):
    return torch.empty(*shape, dtype=dtype, device="meta", **options)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x: F.linear(x, empty(6, 8)), LOW),
        (lambda x: x @ empty(8, 3), LOW),
        (lambda x: F.conv2d(x.view(1, 4, 4, 4), empty(5, 4, 1, 1)), LOW),
        (lambda x: F.scaled_dot_product_attention(*(3 * [x.view(2, 2, 4, 4)])), LOW),
        (lambda x: F.layer_norm(x.to(LOW), (8,)), torch.float32),
        (lambda x: x.to(LOW).softmax(-1), torch.float32),
        (lambda x: F.mse_loss(x.to(LOW), x.to(LOW)), torch.float32),
        (lambda x: F.silu(x.to(LOW)), LOW),
        (lambda x: x.to(LOW) + x, torch.float32),
        (lambda x: F.linear(x.double(), empty(6, 8, dtype=torch.float64)), torch.float64),
    ],
    ids=["linear", "matmul", "conv", "attention", "norm", "softmax", "loss", "activation", "sum", "double"],
)
def test_types_are_those_of_autocast_on_a_gpu(run, expected):
    with GPURules(LOW):
        assert run(empty(8, 8)).dtype == expected


def test_nothing_is_cast_in_full_precision():
    with GPURules():
        assert F.linear(empty(2, 4), empty(3, 4)).dtype == torch.float32


def test_a_weight_is_cast_once_and_kept_for_the_backward_pass():
    layer = nn.Linear(64, 64, bias=False, device="meta")
    rules = GPURules(LOW)
    with LiveMemory(layer) as memory, rules:
        x = empty(2, 64, requires_grad=True)
        layer(layer(x))
        once = memory.live
        out = layer(layer(layer(layer(x))))
    # One copy of the weight in all, and what each product keeps of its input.
    assert 64 * 64 * 2 <= once < memory.live < 2 * 64 * 64 * 2
    rules.forget()
    out.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
def test_attention_keeps_no_matrix(masked):
    length = 256
    x = empty(2, 4, length, 16, requires_grad=True)
    mask = empty(2, 1, 1, length, dtype=torch.bool) if masked else None
    with LiveMemory(nn.Identity()) as memory, GPURules():
        out = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        assert out.shape == x.shape
        del out
    assert memory.peak < 2 * 4 * length * length * 4 / 4
    with LiveMemory(nn.Identity()) as plain:
        F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
    assert plain.peak > 2 * 4 * length * length * 4
    with GPURules():
        F.scaled_dot_product_attention(x, x, x, attn_mask=mask).sum().backward()
    assert x.grad.shape == x.shape
