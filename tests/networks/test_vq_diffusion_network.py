import math

import pytest
import torch
from torch import Tensor, nn

from trilemma.networks.transformer.layers import SelfAttention
from trilemma.networks.transformer.vq_diffusion import (
    AdaLayerNorm,
    GridPerceptron,
    VQDiffusionTransformer,
    gelu2,
    place,
)

B, K, M, T = 3, 5, 4, 10
SHAPE = (3, 4)
L = math.prod(SHAPE)


def build(**overrides) -> VQDiffusionTransformer:
    torch.manual_seed(0)
    options = {"num_states": K + 1, "num_classes": K, "code_shape": SHAPE, "dim": 8, "depth": 2, "num_heads": 2}
    network = VQDiffusionTransformer(num_timesteps=T, **{**options, **overrides}).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(K + 1, (B, L)), torch.tensor([1, 4, T], dtype=torch.float64) / T


def normalised(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """A 3 x 3 convolution of [h, w, d] over a grid, a cell and a neighbour at a time."""
    h, w, _ = x.shape
    out = layer.bias.expand(h, w, -1).clone()
    for i in range(h):
        for j in range(w):
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    if 0 <= i + a < h and 0 <= j + b < w:
                        out[i, j] += layer.weight[:, :, a + 1, b + 1] @ x[i + a, j + b]
    return out


def test_the_whole_network_is_what_the_configuration_says():
    """Against a forward pass written out for one image at a time."""
    network = build(condition_dim=2 * 8)
    tokens, t = inputs()
    pooled = torch.randn(B, 16, dtype=torch.float64)
    found = network(tokens, t, pooled)
    rows, columns = network.position.axes
    for n in range(B):
        row = round(float(t[n]) * T) - 1
        cells = [network.token.weight[tokens[n, k]] + rows[k // SHAPE[1]] + columns[k % SHAPE[1]] for k in range(L)]
        x = torch.stack(cells)
        for number, layer in enumerate(network.layers):
            vectors = (layer.attention_norm.steps.weight[row], pooled[n, 8 * number : 8 * (number + 1)])
            steers = []
            for norm, vector in zip((layer.attention_norm, layer.mlp_norm), vectors, strict=True):
                out = norm.modulation.weight @ (vector / (1 + (-vector).exp())) + norm.modulation.bias
                steers.append((out[:8], out[8:]))
            x = x + layer.attention((normalised(x) * (1 + steers[0][1]) + steers[0][0])[None])[0]
            hidden = convolved((normalised(x) * (1 + steers[1][1]) + steers[1][0]).view(*SHAPE, 8), layer.mlp.fc1)
            hidden = hidden * torch.sigmoid(1.702 * hidden)
            x = x + convolved(hidden, layer.mlp.fc2).view(L, 8)
        torch.testing.assert_close(found[n], network.head(network.final_norm(x)))


def test_a_layer_without_convolution_is_two_linear_layers():
    torch.manual_seed(0)
    perceptron = GridPerceptron(6, 10, grid=SHAPE, kernel=1).double()
    x = torch.randn(B, L, 6, dtype=torch.float64)
    hidden = x @ perceptron.fc1.weight[:, :, 0, 0].T + perceptron.fc1.bias
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    torch.testing.assert_close(perceptron(x), hidden @ perceptron.fc2.weight[:, :, 0, 0].T + perceptron.fc2.bias)


def test_planes_of_a_third_axis_are_convolved_apart():
    torch.manual_seed(0)
    flat = GridPerceptron(6, 10, grid=SHAPE, kernel=3).double()
    deep = GridPerceptron(6, 10, grid=(*SHAPE, 2), kernel=3).double()
    deep.load_state_dict(flat.state_dict())
    x = torch.randn(B, L, 2, 6, dtype=torch.float64)
    found = deep(x.flatten(1, 2)).view(B, L, 2, 6)
    torch.testing.assert_close(found, torch.stack([flat(x[:, :, c]) for c in range(2)], dim=2))


def test_the_activation_and_its_gradient():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(gelu2(x), x * torch.sigmoid(1.702 * x))
    assert torch.autograd.gradcheck(gelu2, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("length", [1, 7, 100, 1000])
def test_a_time_of_the_grid_is_its_row_exactly(length, dtype):
    i = torch.arange(1, length + 1)
    found = place(i.to(dtype) / length, length)
    assert torch.equal(found.low, i - 1)
    assert torch.equal(found.low, found.high)
    assert not found.fraction.any()


def test_between_two_times_of_the_grid_lies_the_straight_line():
    norm = AdaLayerNorm(8, num_timesteps=T).double()
    table = norm.steps.weight.detach()
    for t, expected in [(0.325, 0.75 * table[2] + 0.25 * table[3]), (0.99, 0.1 * table[8] + 0.9 * table[9])]:
        where = place(torch.tensor([t], dtype=torch.float64), T)
        torch.testing.assert_close(
            torch.lerp(table[where.low], table[where.high], where.fraction[:, None])[0], expected
        )


def test_before_the_first_time_of_the_grid_is_its_row():
    found = place(torch.tensor([0.0, 0.05, 0.1]), T)
    assert found.low.tolist() == found.high.tolist() == [0, 0, 0]
    assert not found.fraction.any()


def test_the_network_is_continuous_in_time():
    """No jump where a time crosses the grid, which a sampler of other steps would see."""
    network = build()
    tokens, _ = inputs()
    at = network(tokens, torch.full((B,), 0.4, dtype=torch.float64))
    for t in (0.4 - 1e-3, 0.4 + 1e-3):
        near = network(tokens, torch.full((B,), t, dtype=torch.float64))
        assert 0 < (near - at).abs().max() < 0.05 * at.abs().max()


def test_a_shared_condition_is_every_layers_part():
    parts, shared = build(condition_dim=16), build(condition_dim=8)
    shared.load_state_dict(parts.state_dict())
    tokens, t = inputs()
    pooled = torch.randn(B, 8, dtype=torch.float64)
    torch.testing.assert_close(parts(tokens, t, pooled.repeat(1, 2)), shared(tokens, t, pooled))


def test_gradients_reach_all_parameters():
    network = build(condition_dim=16, context_dim=6)
    tokens, _ = inputs()
    every = torch.arange(1, T + 1, dtype=torch.float64) / T
    pooled, context = torch.randn(T, 16).double(), torch.randn(T, M, 6).double()
    network(tokens[:1].repeat(T, 1), every, pooled, context).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
    for layer in network.layers:  # a row of each table for each time
        assert layer.attention_norm.steps.weight.grad.abs().sum(1).min() > 0


def test_images_do_not_mix():
    network = build(condition_dim=8)
    tokens, t = inputs()
    pooled = torch.randn(B, 8, dtype=torch.float64)
    together = network(tokens, t, pooled)
    for n in range(B):
        torch.testing.assert_close(together[n : n + 1], network(tokens[n : n + 1], t[n : n + 1], pooled[n : n + 1]))


def test_logits_are_single_precision_at_least():
    network = build().bfloat16()
    tokens, t = inputs()
    assert network(tokens, t.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_heads": 3}, "num_heads=3"),
        ({"condition_dim": 12}, "depth x dim=16"),
        ({"mlp_kernel": 2}, "odd"),
        ({"num_timesteps": 0}, "num_timesteps=0"),
    ],
    ids=["heads", "condition", "kernel", "timesteps"],
)
def test_sizes_that_do_not_fit_are_refused(wrong, words):
    options = {"num_states": 6, "num_classes": 5, "code_shape": SHAPE, "dim": 8, "depth": 2, "num_heads": 2}
    with pytest.raises(ValueError, match=words):
        VQDiffusionTransformer(**{**options, **wrong})


# --- sizes ------------------------------------------------------------------------------------------------------------


def released(*, K, d, layers, T=100, side, classes=None, text=None, convolution) -> int:
    """Parameters of a released configuration, weight by weight.

    Its grid of positions has `side` rows and columns: 32 also where the tokens are 16 x 16.
    """
    attention = 4 * (d * d + d)
    steered = d * 2 * d + 2 * d
    taps = 9 if convolution else 1
    mlp = (taps * d * 4 * d + 4 * d) + (taps * 4 * d * d + d)
    layer = attention + (T * d + steered) + mlp
    layer += classes * d + steered if classes else 2 * d
    if text:
        layer += (T * d + steered) + 2 * (d * d + d) + 2 * (text * d + d)
    return (K + 1) * d + 2 * side * d + layers * layer + 2 * d + d * K + K


def on_paper(*, K, d, layers, heads, side, **options) -> VQDiffusionTransformer:
    with torch.device("meta"):
        return VQDiffusionTransformer(
            num_states=K + 1, num_classes=K, code_shape=(side, side), dim=d, depth=layers, num_heads=heads, **options
        )


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_imagenet_configuration_has_half_a_billion_parameters():
    theirs = released(K=974, d=512, layers=24, side=32, classes=1000, convolution=True)
    assert f"{theirs / 1e9:.2f}" == "0.52"
    network = on_paper(K=974, d=512, layers=24, heads=16, side=16, condition_dim=24 * 512)
    # Theirs has a table of classes in each layer, ours has them in the condition; and theirs has positions for a 32 x 32 grid.
    assert count(network) + 24 * 1000 * 512 + 2 * 16 * 512 == theirs


def test_the_ffhq_configuration_has_four_tenths_of_a_billion():
    theirs = released(K=1024, d=512, layers=20, side=32, convolution=True)
    assert f"{theirs / 1e9:.2f}" == "0.41"
    assert count(on_paper(K=1024, d=512, layers=20, heads=16, side=16)) + 2 * 16 * 512 == theirs


@pytest.mark.parametrize(
    ("name", "K", "d", "layers", "billions"),
    [("coco", 2887, 1024, 19, 0.38), ("ithq", 4096, 1408, 36, 1.35)],
    ids=["coco", "ithq"],
)
def test_the_sizes_of_the_text_configurations_can_be_built(name, K, d, layers, billions):
    theirs = released(K=K, d=d, layers=layers, side=32, text=512, convolution=False)
    assert abs(theirs / 1e9 - billions) < 0.01
    network = on_paper(K=K, d=d, layers=layers, heads=16, side=32, context_dim=512, mlp_kernel=1)
    assert count(network) == theirs


def test_most_of_the_imagenet_network_is_convolutions():
    network = on_paper(K=974, d=512, layers=24, heads=16, side=16)
    shares = {
        kind: sum(count(m) for m in network.modules() if isinstance(m, kind))
        for kind in (GridPerceptron, SelfAttention)
    }
    assert shares[GridPerceptron] / count(network) > 0.85
