import pytest
import torch
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.unet.encoder import UNetEncoder
from trilemma.networks.unet.unet import UNet

B, C, SIDE, K = 3, 2, 8, 5
OPTIONS = {"channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), "num_heads": 2}


def build(**overrides) -> UNetEncoder:
    torch.manual_seed(0)
    network = UNetEncoder(**{"in_channels": C, "image_size": SIDE, "num_classes": K, **OPTIONS, **overrides}).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def inputs(side: int = SIDE) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, C, side, side).double(), torch.rand(B, dtype=torch.float64)


@pytest.mark.parametrize(("side", "patch_size"), [(8, 1), (28, 1), (28, 2), (32, 2)])
def test_an_image_and_a_time_make_logits(side, patch_size):
    assert build(image_size=side, patch_size=patch_size)(*inputs(side)).shape == (B, K)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_gradients_reach_all_parameters(scale_shift):
    network = build(scale_shift=scale_shift)
    network(*inputs()).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_gradient_with_respect_to_the_image_is_right():
    """The score that guidance adds: against finite differences, at every pixel of one image."""
    network = build()
    x, t = inputs()

    def log_prob(x: Tensor) -> Tensor:
        return network(x, t[:1]).log_softmax(-1)[:, 0]

    assert torch.autograd.gradcheck(log_prob, x[:1].clone().requires_grad_())


def test_every_pixel_and_the_time_matter():
    network = build()
    x, t = inputs()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, t)[:, 0].sum(), x)
    assert (gradient.abs() > 1e-9).all()
    assert ((network(x, (t + 0.1) % 1) - network(x, t)).abs() > 1e-6).all()


def test_images_of_a_batch_do_not_see_each_other():
    network = build()
    x, t = inputs()
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(B)])
    torch.testing.assert_close(alone, network(x, t))


def test_the_way_down_is_that_of_the_unet():
    encoder = build()
    network = UNet(in_channels=C, out_channels=C, image_size=SIDE, scale_shift=True, **OPTIONS)
    for part in ("descent", "middle", "time"):
        ours, theirs = getattr(encoder, part).state_dict(), getattr(network, part).state_dict()
        assert {name: p.shape for name, p in ours.items()} == {name: p.shape for name, p in theirs.items()}


def test_logits_are_never_in_less_than_float32():
    x, t = inputs()
    assert build().bfloat16()(x.bfloat16(), t).dtype == torch.float32


def test_a_side_that_cannot_be_halved_says_which_can():
    with pytest.raises(UserError, match=r"multiple of 4"):
        build(image_size=30, channel_mults=(1, 2, 2))
