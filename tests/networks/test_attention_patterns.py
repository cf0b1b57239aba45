"""Local attention: who sees whom, against its definition position by position, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from trilemma.errors import UserError
from trilemma.networks.transformer.attention_patterns import Local1D, Local2D, attend_locally
from trilemma.networks.transformer.causal import CausalTransformer, KeyValueCache

B, K = 2, 3


def seen_1d(length, query, memory):
    return [{j for j in range(length) if i // query * query - memory <= j <= i} for i in range(length)], list(
        range(length)
    )


def seen_2d(shape, query, margin):
    """Order and sights of the paper's 2-D attention, from rows and columns."""
    height, width = shape[0], math.prod(shape[1:])
    cells = [(y, x) for y in range(height) for x in range(width)]
    order = sorted(cells, key=lambda c: (c[0] // query[0], c[1] // query[1], c))
    seen = []
    for i, (y, x) in enumerate(order):
        top, left = y // query[0] * query[0], x // query[1] * query[1]
        rows, columns = range(top - margin[0], top + query[0]), range(left - margin[1], left + query[1] + margin[1])
        seen.append({j for j in range(i + 1) if order[j][0] in rows and order[j][1] in columns})
    return seen, [y * width + x for y, x in order]


PATTERNS = {
    "1-D": (Local1D(4, 3), (3, 4), seen_1d(12, 4, 3)),
    "1-D, far": (Local1D(2, 5), (2, 2, 3), seen_1d(12, 2, 5)),
    "2-D": (Local2D((2, 2), (2, 1)), (4, 6), seen_2d((4, 6), (2, 2), (2, 1))),
    "2-D, colours": (Local2D((1, 3), (1, 2)), (3, 2, 3), seen_2d((3, 2, 3), (1, 3), (1, 2))),
    "2-D, uneven": (Local2D((2, 3), (1, 0)), (4, 3), seen_2d((4, 3), (2, 3), (1, 0))),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_layout_is_what_the_paper_defines(name):
    pattern, shape, (seen, order) = PATTERNS[name]
    layout = pattern.layout(shape)
    assert layout.order.tolist() == order
    sights = [
        [int(m) for m, visible in zip(memory, row, strict=True) if visible]
        for memory, mask in zip(layout.memory, layout.mask, strict=True)
        for row in mask
    ]
    assert all(len(set(sight)) == len(sight) for sight in sights), "a place would be weighed twice"
    assert [set(sight) for sight in sights] == seen


@pytest.mark.parametrize("name", PATTERNS)
def test_block_by_block_it_is_attention_under_a_mask(name):
    pattern, shape, (seen, _) = PATTERNS[name]
    layout, length = pattern.layout(shape), math.prod(shape)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, B, 2, length, 4).double()
    mask = torch.tensor([[j in sight for j in range(length)] for sight in seen])
    expected = (q @ k.mT / 2).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    found = attend_locally(q, k, v, torch.tensor(layout.memory), torch.tensor(layout.mask))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def build(name, **options):
    pattern, shape, _ = PATTERNS[name]
    torch.manual_seed(0)
    network = CausalTransformer(
        num_classes=K, code_shape=shape, dim=8, depth=1, num_heads=2, attention=pattern, condition_dim=5, **options
    )
    for p in network.parameters():
        nn.init.normal_(p, std=0.4)
    return network.double().eval()


@pytest.mark.parametrize("name", PATTERNS)
def test_a_token_is_predicted_from_what_it_sees_and_nothing_else(name):
    """In one layer, place i reads the token before each place that it sees, and the condition from everywhere."""
    network, (_, shape, (seen, _)) = build(name), PATTERNS[name]
    length = math.prod(shape)
    embedded = torch.randn(1, length - 1, 8, dtype=torch.float64, requires_grad=True)
    pooled = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    network.token.forward = lambda tokens: embedded
    out = network(torch.zeros(1, length, dtype=torch.int64), pooled).square().sum((0, 2))
    for i, o in enumerate(out):
        tokens, condition = torch.autograd.grad(o, (embedded, pooled), retain_graph=True)
        found = {j + 1 for j in np.flatnonzero(tokens.abs().sum((0, 2)).numpy())}
        assert found == {j for j in seen[i] if j}
        assert condition.all()


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("pieces", [[0] + [1] * 11, [5, 4, 2], [3, 1, 7]])
def test_a_cache_gives_the_logits_of_a_whole_pass_however_the_tokens_come(name, pieces):
    network, pooled = build(name), torch.randn(B, 5).double()
    tokens = torch.randint(K, (B, math.prod(PATTERNS[name][1])))
    whole, cache, done, found = network(tokens, pooled), KeyValueCache(), 0, []
    for n in pieces:
        found.append(network(tokens[:, done : done + n], pooled, cache=cache))
        done += n
    torch.testing.assert_close(torch.cat(found, 1), whole[:, : done + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pattern", [Local1D(6, 6), Local1D(3, 3), Local2D((2, 3), (1, 1)), Local2D((1, 3), (1, 1))])
def test_a_memory_of_all_places_is_full_attention(pattern):
    networks = [
        CausalTransformer(num_classes=K, code_shape=(2, 3), dim=8, depth=2, num_heads=2, attention=attention).double()
        for attention in (pattern, None)
    ]
    for p in networks[0].parameters():
        nn.init.normal_(p, std=0.4)
    networks[1].load_state_dict(networks[0].state_dict())
    tokens = torch.randint(K, (B, 6))
    torch.testing.assert_close(networks[0](tokens), networks[1](tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("build_layout", "said"),
    [
        (lambda: Local1D(0, 4), r"query_length=0 .* must be at least 1"),
        (lambda: Local1D(5, 4).layout((3, 4)), "query_length=5 does not divide the 12 positions"),
        (lambda: Local2D((2, 0), (1, 1)), "must each be a height and a width"),
        (lambda: Local2D((2, 2), (1, 1)).layout((3, 4)), "does not tile an image of 3 rows and 4 columns"),
        (lambda: build("1-D", context_dim=3), "take network/attention=full"),
    ],
)
def test_refusals(build_layout, said):
    with pytest.raises(UserError, match=said):
        build_layout()
