import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.unet.layers import Upsample
from trilemma.networks.unet.unet import UNet

B, C, SIDE, M = 3, 2, 8, 4
# The configuration of google/ddpm-cifar10-32: the network of Ho et al. 2020 for CIFAR-10.
CIFAR10 = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
}


def build(*, awake: bool = True, **overrides) -> UNet:
    torch.manual_seed(0)
    options = {
        "in_channels": C,
        "out_channels": C,
        "image_size": SIDE,
        "channels": 8,
        "channel_mults": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "num_heads": 2,
    }
    network = UNet(**{**options, **overrides}).double()
    if awake:  # leaves the zero branches and head of the start
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def waves(steps: Tensor, num_frequencies: int) -> Tensor:
    """Sinusoids of [B] steps in float64, [B, 2 * num_frequencies]; those of diffusers are always float32."""
    angles = [[step * 10_000 ** (-k / num_frequencies) for k in range(num_frequencies)] for step in steps.tolist()]
    return torch.tensor(
        [[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angles], dtype=torch.float64
    )


def empty(configuration: dict) -> UNet2DModel:
    """A float64 network of diffusers whose weights are still to be set."""
    with torch.device("meta"):
        network = UNet2DModel(**configuration)
    return network.double().to_empty(device="cpu")


def inputs(side: int = SIDE) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, C, side, side).double(), torch.rand(B, dtype=torch.float64)


def conditions() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(B, 7).double(), torch.randn(B, M, 6).double()


class TestAgainstDiffusers:
    """The reference is diffusers' UNet2DModel, written independently."""

    @staticmethod
    def copy_block(ours: nn.Module, theirs: nn.Module) -> tuple[Tensor, Tensor]:
        """Copy a residual block to theirs; its time projection comes back, to be handed over from ours."""
        theirs.norm1.load_state_dict(ours.first_norm.state_dict())
        theirs.conv1.load_state_dict(ours.first.state_dict())
        theirs.norm2.load_state_dict(ours.second_norm.state_dict())
        theirs.conv2.load_state_dict(ours.second.state_dict())
        if theirs.conv_shortcut is not None:
            theirs.conv_shortcut.load_state_dict(ours.shortcut.state_dict())
        return theirs.time_emb_proj.weight, theirs.time_emb_proj.bias

    @staticmethod
    def copy_attention(ours: nn.Module, theirs: nn.Module) -> None:
        theirs.group_norm.load_state_dict(ours.norm.state_dict())
        parts = zip(ours.attention.qkv.weight.chunk(3), ours.attention.qkv.bias.chunk(3), strict=True)
        for target, (weight, bias) in zip((theirs.to_q, theirs.to_k, theirs.to_v), parts, strict=True):
            target.load_state_dict({"weight": weight, "bias": bias})
        theirs.to_out[0].load_state_dict(ours.attention.out.state_dict())

    @classmethod
    @torch.no_grad()
    def copy(cls, ours: UNet, theirs: UNet2DModel) -> None:
        theirs.conv_in.load_state_dict(ours.descent.stem.state_dict())
        theirs.time_embedding.linear_1.load_state_dict(ours.time.hidden.state_dict())
        theirs.time_embedding.linear_2.load_state_dict(ours.time.out.state_dict())
        projections = []
        blocks = zip(
            [*ours.descent.levels, ours.middle, *ours.ascent.levels],
            [*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks],
            strict=True,
        )
        for level, block in blocks:
            attentions = list(getattr(block, "attentions", []) or [])
            stages = [layer for layer in level if hasattr(layer, "block")]
            for stage, resnet in zip(stages, block.resnets, strict=True):
                projections.append(cls.copy_block(stage.block, resnet))
                if stage.attention is not None:
                    cls.copy_attention(stage.attention, attentions.pop(0))
            assert attentions == []
            for layer in level:
                if isinstance(layer, nn.Conv2d):
                    block.downsamplers[0].conv.load_state_dict(layer.state_dict())
                elif not hasattr(layer, "block"):
                    block.upsamplers[0].conv.load_state_dict(layer.conv.state_dict())
        theirs.conv_norm_out.load_state_dict(ours.norm.state_dict())
        theirs.conv_out.load_state_dict(ours.head.state_dict())
        row = 0
        for weight, bias in projections:
            weight.copy_(ours.steering.project.weight[row : row + len(weight)])
            bias.copy_(ours.steering.project.bias[row : row + len(weight)])
            row += len(weight)
        assert row == len(ours.steering.project.bias)

    def test_ddpm_for_cifar10_has_the_published_number_of_parameters(self):
        with torch.device("meta"):
            ours, theirs = UNet(in_channels=3, out_channels=3, image_size=32), UNet2DModel(**CIFAR10)
        assert sum(p.numel() for p in ours.parameters()) == 35_746_307  # the 35.7 M of Ho et al. 2020, appendix B
        assert sum(p.numel() for p in theirs.parameters()) == 35_746_307

    @torch.no_grad()
    def test_the_published_network_gives_the_same_result_in_a_mirror(self):
        """They pad on the other side before halving, as TensorFlow did, so their convolutions are ours mirrored."""
        torch.manual_seed(0)
        # On images of half the side: the same weights, and faster.
        ours = UNet(in_channels=3, out_channels=3, image_size=16, attention_resolutions=(8,)).double()
        theirs = empty(CIFAR10)
        for parameter in ours.parameters():
            nn.init.normal_(parameter, std=0.05)
        self.copy(ours, theirs)
        for module in theirs.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(module.weight.flip(2, 3))
        waves = theirs.time_embedding.linear_1.weight  # theirs are sines first
        waves.copy_(waves.roll(waves.shape[1] // 2, 1))
        # At t = 0 it does not show that their frequencies are spaced a little differently.
        x, t = torch.randn(1, 3, 16, 16).double(), torch.zeros(1)
        expected = theirs(x.flip(2, 3), 1000 * t).sample.flip(2, 3)
        assert expected.std() > 0.02
        torch.testing.assert_close(ours(x, t), expected, rtol=1e-9, atol=1e-11)

    @torch.no_grad()
    @pytest.mark.parametrize("options", [{}, {"scale_shift": True, "num_heads": 4}], ids=["ddpm", "adm"])
    def test_same_weights_give_the_same_result_at_all_times(self, options):
        torch.manual_seed(0)
        ours = UNet(in_channels=3, out_channels=3, image_size=16, attention_resolutions=(8,), **options).double()
        for parameter in ours.parameters():
            nn.init.normal_(parameter, std=0.05)
        # The padding and the frequencies of Dhariwal and Nichol.
        adm = {
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "resnet_time_scale_shift": "scale_shift" if options else "default",
            "attn_norm_num_groups": 32,
            "attention_head_dim": 64 if options else None,
        }
        theirs = empty({**CIFAR10, **adm})
        theirs.time_proj.forward = lambda steps: waves(steps, 64)
        self.copy(ours, theirs)
        x, t = torch.randn(2, 3, 16, 16).double(), torch.tensor([0.3, 0.75]).double()
        expected = theirs(x, 1000 * t).sample
        assert (expected[0] - theirs(x, 750 * t).sample[0]).std() > 0.01
        torch.testing.assert_close(ours(x, t), expected, rtol=1e-9, atol=1e-11)

    def test_the_waves_of_this_file_are_theirs(self):
        steps = torch.tensor([0.0, 1.0, 500.5])
        theirs = get_timestep_embedding(steps, 128, flip_sin_to_cos=True, downscale_freq_shift=0)
        torch.testing.assert_close(waves(steps.double(), 64).float(), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_result_has_the_shape_of_the_image_and_starts_at_zero(side, patch_size):
    x, t = inputs(side)
    out = build(awake=False, image_size=side, patch_size=patch_size)(x, t)
    assert torch.equal(out, torch.zeros(B, C, side, side, dtype=torch.float64))
    assert out.is_contiguous()
    assert build(image_size=side, patch_size=patch_size)(x, t).std() > 0.01


def test_learned_variance_doubles_the_channels():
    assert build(learn_variance=True)(*inputs()).shape == (B, 2 * C, SIDE, SIDE)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_gradients_reach_all_parameters(scale_shift):
    network = build(condition_dim=7, context_dim=6, scale_shift=scale_shift)
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
    together = network(x, t, pooled, context)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(network(x[order], t[order], pooled[order], context[order]), together[order])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], pooled[i : i + 1], context[i : i + 1]) for i in range(B)])
    torch.testing.assert_close(alone, together)


def test_masked_context_is_not_seen():
    network = build(context_dim=6)
    (x, t), (_, context) = inputs(), conditions()
    mask = torch.tensor([[True, True, False, False], [True, True, True, True], [False, False, False, False]])
    before = network(x, t, None, context, mask)
    changed = context + ~mask[:, :, None]
    torch.testing.assert_close(network(x, t, None, changed, mask), before)
    short = network(x[:1], t[:1], None, context[:1, :2])
    torch.testing.assert_close(before[:1], short)
    assert before.isfinite().all()


def plain_upsample(layer: Upsample, x: Tensor) -> Tensor:
    return layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def test_upsampling_is_doubling_and_a_convolution():
    torch.manual_seed(0)
    layer, x = Upsample(3).double(), torch.randn(2, 3, 4, 5).double()
    torch.testing.assert_close(layer(x), plain_upsample(layer, x))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_on_a_torus_moving_the_image_by_a_coarsest_cell_moves_the_result(patch_size):
    network = build(image_size=16, patch_size=patch_size)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
        elif isinstance(module, Upsample):
            module.forward = partial(plain_upsample, module)
    x, t = inputs(16)
    result, cell = network(x, t), 2 * patch_size
    torch.testing.assert_close(network(x.roll((cell, 3 * cell), (2, 3)), t), result.roll((cell, 3 * cell), (2, 3)))
    assert (network(x.roll(1, 2), t) - result.roll(1, 2)).abs().max() > 0.01


@pytest.mark.parametrize("scale_shift", [False, True])
def test_mixed_precision_changes_no_more_than_rounding(scale_shift):
    network = build(scale_shift=scale_shift, condition_dim=7, context_dim=6).float()
    (x, t), (pooled, context) = inputs(), conditions()
    arguments = x.float(), t.float(), pooled.float(), context.float(), torch.ones(B, M, dtype=torch.bool)
    exact = network(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(*arguments)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).square().mean() < 0.02**2 * exact.square().mean()


@pytest.mark.parametrize(("size", "mults", "patch_size"), [(28, (1, 2, 2, 2), 1), (30, (1, 2), 4), (7, (1, 1), 1)])
def test_a_side_that_cannot_be_halved_says_which_can(size, mults, patch_size):
    with pytest.raises(UserError, match=r"data\.size to a multiple of \d+") as info:
        build(image_size=size, channel_mults=mults, patch_size=patch_size)
    multiple = int(str(info.value).split("multiple of ")[1].split(",")[0])
    build(image_size=multiple * -(-size // multiple), channel_mults=mults, patch_size=patch_size)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"network\.num_heads"):
        build(num_heads=3)


def test_conditions_are_given_where_the_network_has_them():
    (x, t), (_, context) = inputs(), conditions()
    with pytest.raises(ValueError, match="`pooled` is missing"):
        build(condition_dim=7)(x, t)
    with pytest.raises(ValueError, match="`context` was given"):
        build()(x, t, None, context)
