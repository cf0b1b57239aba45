import pytest
import torch
from torch import Tensor, nn

from trilemma.networks.embeddings import GridPosition, TimeEmbedding
from trilemma.networks.transformer.bidirectional import BidirectionalTransformer
from trilemma.networks.transformer.layers import MLP, CrossAttention, SelfAttention

B, L, S, K, M = 3, 12, 6, 5, 4
SHAPE = (3, 4)


def build(*, awake: bool = True, **overrides) -> BidirectionalTransformer:
    torch.manual_seed(0)
    options = {"num_states": S, "num_classes": K, "code_shape": SHAPE, "dim": 16, "depth": 2, "num_heads": 2}
    network = BidirectionalTransformer(**{**options, **overrides}).double()
    if awake:  # leaves the zero gates and head of the start
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(S, (B, L)), torch.rand(B, dtype=torch.float64)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, visible: Tensor | None = None) -> Tensor:
    """[B, L, d] attention, a head and an image at a time."""
    out = torch.zeros_like(q)
    width = q.shape[-1] // num_heads
    for b in range(len(q)):
        for h in range(num_heads):
            part = slice(h * width, (h + 1) * width)
            scores = q[b, :, part] @ k[b, :, part].T / width**0.5
            if visible is not None:
                scores = scores.masked_fill(~visible[b], -torch.inf)
            out[b, :, part] = scores.softmax(-1) @ v[b, :, part]
    return out


def test_logits_have_shape_and_start_uniform():
    tokens, t = inputs()
    assert build()(tokens, t).shape == (B, L, K)
    assert torch.equal(build(awake=False)(tokens, t), torch.zeros(B, L, K, dtype=torch.float64))


def test_gradients_reach_all_parameters():
    network = build(condition_dim=7, context_dim=6, mlp_kernel=3)
    tokens, t = inputs()
    pooled, context = torch.randn(B, 7).double(), torch.randn(B, M, 6).double()
    network(tokens, t, pooled, context, torch.ones(B, M, dtype=torch.bool)).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("what", ["token", "time", "pooled", "context"])
def test_every_input_matters_everywhere(what):
    network = build(condition_dim=7, context_dim=6)
    tokens, t = inputs()
    pooled, context = torch.randn(B, 7).double(), torch.randn(B, M, 6).double()
    before = network(tokens, t, pooled, context)
    if what == "token":  # the last one: a causal network would leave the others as they were
        tokens[:, -1] = (tokens[:, -1] + 1) % S
    elif what == "time":
        t = (t + 0.01) % 1
    elif what == "pooled":
        pooled[:, 0] += 1
    else:
        context[:, -1] += 1
    changed = (network(tokens, t, pooled, context) - before).abs().amax(-1)
    assert (changed > 1e-9).all()


def test_images_of_a_batch_do_not_see_each_other():
    network = build(condition_dim=7)
    tokens, t = inputs()
    pooled = torch.randn(B, 7).double()
    together = network(tokens, t, pooled)
    alone = torch.cat([network(tokens[i : i + 1], t[i : i + 1], pooled[i : i + 1]) for i in range(B)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_without_positions_it_is_permutation_equivariant_and_with_them_not():
    network = build()
    tokens, t = inputs()
    order = torch.randperm(L)
    assert not torch.allclose(network(tokens[:, order], t), network(tokens, t)[:, order])
    for axis in network.position.axes:
        nn.init.zeros_(axis)
    torch.testing.assert_close(network(tokens[:, order], t), network(tokens, t)[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_position_is_the_sum_of_its_axes_in_raster_order(shape):
    position = GridPosition(shape, 8)
    grid = position().view(*shape, 8)
    for cell in torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(-1, len(shape)).tolist():
        expected = sum(axis[i] for axis, i in zip(position.axes, cell, strict=True))
        torch.testing.assert_close(grid[tuple(cell)], expected)


def test_self_attention_equals_one_head_at_a_time():
    attention = SelfAttention(8, 2).double()
    x = torch.randn(B, L, 8).double()
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    torch.testing.assert_close(attention(x), attention.out(naive_attention(q, k, v, 2)), rtol=0, atol=1e-12)


def test_cross_attention_equals_one_head_at_a_time_and_an_empty_context_gives_zeros():
    attention = CrossAttention(8, 6, 2).double()
    x, context = torch.randn(B, L, 8).double(), torch.randn(B, M, 6).double()
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]]).bool()
    k, v = attention.key_value(context).chunk(2, dim=-1)
    out = attention(x, context, mask)
    expected = attention.out(naive_attention(attention.query(x), k, v, 2, mask))
    torch.testing.assert_close(out[:2], expected[:2], rtol=0, atol=1e-12)
    assert torch.equal(out[2], torch.zeros(L, 8, dtype=torch.float64))


def test_an_empty_context_has_finite_gradients():
    attention = CrossAttention(8, 6, 2)
    context = torch.randn(1, M, 6, requires_grad=True)
    attention(torch.randn(1, L, 8), context, torch.zeros(1, M, dtype=torch.bool)).sum().backward()
    assert torch.equal(context.grad, torch.zeros(1, M, 6))


def test_masked_context_is_ignored():
    network = build(context_dim=6)
    tokens, t = inputs()
    context = torch.randn(B, M, 6).double()
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]]).bool()
    before = network(tokens, t, None, context, mask)
    context[~mask] = 1e3
    assert torch.equal(network(tokens, t, None, context, mask), before)
    cut = network(tokens[:1], t[:1], None, context[:1, :2])
    torch.testing.assert_close(cut, before[:1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("built", "given", "names"),
    [
        ({"condition_dim": 7}, {}, "`pooled` is missing"),
        ({}, {"pooled": torch.zeros(B, 7)}, "`pooled` was given"),
        ({"context_dim": 6}, {}, "`context` is missing"),
        ({}, {"context": torch.zeros(B, M, 6)}, "`context` was given"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(built, given, names):
    with pytest.raises(ValueError, match=names):
        build(**built)(*inputs(), **given)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads=3"):
        build(num_heads=3)


def test_logits_are_float32_under_autocast_and_in_bfloat16():
    tokens, t = inputs()
    network = build(condition_dim=7, context_dim=6).float()
    pooled, context = torch.randn(B, 7), torch.randn(B, M, 6)
    exact = network(tokens, t, pooled, context)
    assert exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(tokens, t, pooled, context)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()
    network.bfloat16()
    assert network(tokens, t, pooled.bfloat16(), context.bfloat16()).dtype == torch.float32


def test_time_embedding_is_the_same_from_either_precision_and_tells_near_times_apart():
    embedding = TimeEmbedding(16)
    t = torch.tensor([0.0, 0.25, 0.251, 0.252, 1.0], dtype=torch.float64)
    assert torch.equal(embedding(t.float()), embedding(t.float().double()))
    gaps = torch.cdist(embedding(t), embedding(t)) + torch.eye(5)
    assert gaps.min() > 1e-3


def test_dropout_acts_in_training_only():
    network = build(dropout=0.5)
    tokens, t = inputs()
    assert not torch.equal(network(tokens, t), network(tokens, t))
    network.eval()
    assert torch.equal(network(tokens, t), network(tokens, t))


@pytest.mark.parametrize("grid", [(3, 4), (3, 2, 2)])
def test_the_convolution_of_a_perceptron_mixes_neighbours_on_the_grid_alone(grid):
    torch.manual_seed(0)
    perceptron = MLP(5, 6, grid=grid, kernel=3).double()
    x = torch.randn(2, 12, 5, dtype=torch.float64)
    hidden = perceptron.fc1(x).view(2, *grid[:2], -1, 6)
    mixed = hidden + perceptron.mix.bias
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(3):
                for j in range(3):
                    r, c = row + i - 1, column + j - 1
                    if 0 <= r < grid[0] and 0 <= c < grid[1]:
                        mixed[:, row, column] += perceptron.mix.weight[:, 0, i, j] * hidden[:, r, c]
    expected = perceptron.fc2(torch.nn.functional.gelu(mixed.view(2, 12, 6)))
    torch.testing.assert_close(perceptron(x), expected)


def test_a_kernel_has_a_middle():
    with pytest.raises(ValueError, match="kernel=4"):
        build(mlp_kernel=4)
