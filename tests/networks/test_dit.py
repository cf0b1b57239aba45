import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.transformer.dit import DiT

B, C, SIDE, M = 3, 2, 8, 4


def build(*, awake: bool = True, **overrides) -> DiT:
    torch.manual_seed(0)
    options = {"in_channels": C, "out_channels": C, "image_size": SIDE, "patch_size": 2}
    network = DiT(**{**options, "dim": 16, "depth": 2, "num_heads": 2, **overrides}).double()
    if awake:  # leaves the zero gates and head of the start
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def inputs(side: int = SIDE) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, C, side, side).double(), torch.rand(B, dtype=torch.float64)


def conditions() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(B, 7).double(), torch.randn(B, M, 6).double()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "dim", "depth", "num_heads", "published"),
    [("S/2", 384, 12, 6, 33), ("B/2", 768, 12, 12, 130), ("L/2", 1024, 24, 16, 458), ("XL/2", 1152, 28, 16, 675)],
)
def test_sizes_are_the_published_ones(name, dim, depth, num_heads, published):
    """Peebles and Xie 2023, table 4, in millions, on 32 x 32 x 4 latents with a learned variance.

    Theirs have a table of 1,000 labels and one for no label, which lies outside our network, and count a fixed
    position for each of the 256 patches, where ours are learned by row and column.
    """
    with torch.device("meta"):
        network = DiT(
            in_channels=4,
            out_channels=4,
            image_size=32,
            patch_size=2,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            learn_variance=True,
        )
    theirs = count(network) - count(network.position) + 1001 * dim + 256 * dim
    assert abs(theirs / 1e6 - published) < 1
    if name == "XL/2":
        assert theirs == 675_129_632


@torch.no_grad()
def test_same_weights_give_the_same_result_as_diffusers():
    """The reference is diffusers' DiTTransformer2DModel, written independently; given our positions."""
    torch.manual_seed(0)
    ours = build(condition_dim=7)
    theirs = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=C,
        num_layers=2,
        sample_size=SIDE,
        patch_size=2,
        activation_fn="gelu",
        num_embeds_ada_norm=B,
        norm_eps=1e-6,
    )
    theirs = theirs.double().eval()
    (x, _), (pooled, _) = inputs(), conditions()

    def copy(target: nn.Linear, weight: Tensor, bias: Tensor) -> None:
        target.weight.copy_(weight.view_as(target.weight))
        target.bias.copy_(bias)

    copy(theirs.pos_embed.proj, ours.patch.weight, ours.patch.bias)
    theirs.pos_embed.pos_embed = ours.position()[None]
    for layer, block in zip(ours.layers, theirs.transformer_blocks, strict=True):
        embed = block.norm1.emb
        copy(embed.timestep_embedder.linear_1, ours.time.hidden.weight, ours.time.hidden.bias)
        copy(embed.timestep_embedder.linear_2, ours.time.out.weight, ours.time.out.bias)
        embed.class_embedder.embedding_table.weight[:B] = ours.condition(pooled)
        copy(block.norm1.linear, layer.modulation.weight, layer.modulation.bias)
        parts = zip(layer.attention.qkv.weight.chunk(3), layer.attention.qkv.bias.chunk(3), strict=True)
        for target, (weight, bias) in zip((block.attn1.to_q, block.attn1.to_k, block.attn1.to_v), parts, strict=True):
            copy(target, weight, bias)
        copy(block.attn1.to_out[0], layer.attention.out.weight, layer.attention.out.bias)
        copy(block.ff.net[0].proj, layer.mlp.fc1.weight, layer.mlp.fc1.bias)
        copy(block.ff.net[2], layer.mlp.fc2.weight, layer.mlp.fc2.bias)
    copy(theirs.proj_out_1, ours.final_modulation.weight, ours.final_modulation.bias)
    order = torch.arange(C * 4).view(C, 4).T.flatten()  # they have the channels last within a patch
    copy(theirs.proj_out_2, ours.head.weight[order], ours.head.bias[order])

    # At t = 0 it does not show that the frequencies of the sinusoids are spaced a little differently.
    expected = theirs(x, torch.zeros(B), torch.arange(B)).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, torch.zeros(B), pooled), expected, rtol=1e-9, atol=1e-9)


def test_the_start_is_zero_and_every_layer_the_identity():
    network = build(awake=False, context_dim=6)
    (x, t), (_, context) = inputs(), conditions()
    assert torch.equal(network(x, t, None, context), torch.zeros_like(x))
    tokens = torch.randn(B, 16, 16).double()
    for layer in network.layers:
        assert torch.equal(layer(tokens, torch.randn(B, 16).double(), context), tokens)


def test_patches_are_put_back_where_they_were_cut():
    """A network whose layers are the identity and whose head inverts the patch embedding returns the image."""
    network = build(awake=False, dim=C * 4, num_heads=1)
    nn.init.zeros_(network.patch.bias)
    with torch.no_grad():
        # The last normalisation changes a token by a shift and a scale only, which the next lines undo.
        network.patch.weight.copy_(torch.eye(C * 4))
        network.head.weight.copy_(torch.eye(C * 4))
        for axis in network.position.axes:
            axis.zero_()
    x, t = inputs()
    tiles = x.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, 4, 4, 2, 2]
    mean = tiles.mean((1, 4, 5), keepdim=True)
    std = (tiles.var((1, 4, 5), keepdim=True, correction=0) + 1e-6).sqrt()
    expected = ((tiles - mean) / std).transpose(3, 4).reshape(B, C, SIDE, SIDE)
    torch.testing.assert_close(network(x, t), expected)


def test_learned_variance_doubles_the_channels():
    assert build(learn_variance=True)(*inputs()).shape == (B, 2 * C, SIDE, SIDE)


def test_gradients_reach_all_parameters():
    network = build(condition_dim=7, context_dim=6, mlp_kernel=3)
    network(*inputs(), *conditions(), torch.ones(B, M, dtype=torch.bool)).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("what", ["pixel", "time", "pooled", "context"])
def test_every_input_matters_everywhere(what):
    network = build(condition_dim=7, context_dim=6)
    (x, t), (pooled, context) = inputs(), conditions()
    before = network(x, t, pooled, context)
    if what == "pixel":
        x[:, -1, -1, -1] += 1
    elif what == "time":
        t = (t + 0.01) % 1
    elif what == "pooled":
        pooled[:, 0] += 1
    else:
        context[:, -1] += 1
    assert ((network(x, t, pooled, context) - before).abs() > 1e-9).all()


def test_images_of_a_batch_do_not_see_each_other():
    network = build(condition_dim=7, context_dim=6)
    (x, t), (pooled, context) = inputs(), conditions()
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], pooled[i : i + 1], context[i : i + 1]) for i in range(B)])
    torch.testing.assert_close(alone, network(x, t, pooled, context))


def test_masked_context_is_not_seen():
    network = build(context_dim=6)
    (x, t), (_, context) = inputs(), conditions()
    mask = torch.tensor([[True, True, False, False], [True, True, True, True], [False, False, False, False]])
    before = network(x, t, None, context, mask)
    torch.testing.assert_close(network(x, t, None, context + ~mask[:, :, None], mask), before)
    assert before.isfinite().all()


def test_without_positions_patches_are_a_set():
    network = build()
    with torch.no_grad():
        for axis in network.position.axes:
            axis.zero_()
    x, t = inputs()
    moved = x.roll((2, 4), (2, 3))
    torch.testing.assert_close(network(moved, t), network(x, t).roll((2, 4), (2, 3)))
    assert (build()(moved, t) - build()(x, t).roll((2, 4), (2, 3))).abs().max() > 0.01


def test_bad_sizes_say_how_to_mend_them():
    with pytest.raises(UserError, match=r"data\.size to a multiple of 3"):
        build(patch_size=3)
    with pytest.raises(UserError, match=r"network\.num_heads"):
        build(num_heads=3)


def test_conditions_are_given_where_the_network_has_them():
    (x, t), (pooled, _) = inputs(), conditions()
    with pytest.raises(ValueError, match="`context` is missing"):
        build(context_dim=6)(x, t)
    with pytest.raises(ValueError, match="`pooled` was given"):
        build()(x, t, pooled)
