"""The networks of a denoising GAN: what each of their inputs does."""

from itertools import pairwise

import pytest
import torch

from trilemma.networks.discriminator import MinibatchDeviation, TimeDiscriminator
from trilemma.networks.unet.latent_unet import LatentMapping, LatentUNet
from trilemma.networks.unet.unet import UNet


def discriminator(**options):
    torch.manual_seed(0)
    return TimeDiscriminator(
        **{"in_channels": 1, "image_size": 12, "channels": [8, 8, 8], "patch_size": 2, "embedding_dim": 8, **options}
    )


def inputs(num=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xs, xt = torch.randn(2, num, 1, 12, 12, generator=generator)
    return xs, xt, torch.full((num,), 0.5)


def test_minibatch_deviation_is_the_mean_standard_deviation_of_a_group():
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    out = MinibatchDeviation(4)(x)  # groups of gcd(4, 6) = 2: images 2i and 2i + 1
    assert torch.equal(out[:, :3], x)
    for i in range(6):
        pair = torch.stack([x[i], x[i ^ 1]])
        expected = pair.std(0, unbiased=False).mean()
        torch.testing.assert_close(out[i, 3], expected.expand(2, 2), atol=1e-6, rtol=1e-6)


def test_equal_images_have_no_deviation():
    out = MinibatchDeviation(4)(torch.ones(4, 2, 3, 3, dtype=torch.float64))
    assert out[:, 2].abs().max() < 1e-3


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_the_score_depends_on_both_states_and_the_time(changed):
    net, given = discriminator(group_size=1), list(inputs())
    before = net(*given)
    given[changed] = given[changed] * 0.5
    assert before.shape == (4,)
    assert ((net(*given) - before).abs() > 1e-6).all()


def test_a_group_of_one_scores_each_pair_alone():
    net, (xs, xt, t) = discriminator(group_size=1), inputs()
    torch.testing.assert_close(net(xs, xt, t)[:2], net(xs[:2], xt[:2], t[:2]), atol=1e-5, rtol=1e-5)


def test_the_score_depends_on_the_condition_where_there_is_one():
    net, given = discriminator(condition_dim=3, group_size=1), inputs()
    conditions = torch.eye(3)
    scores = [net(*given, one.expand(4, 3)) for one in conditions]
    assert all(((a - b).abs() > 1e-6).all() for a, b in pairwise(scores))
    with pytest.raises(ValueError, match="`pooled` is missing"):
        net(*given)
    with pytest.raises(ValueError, match="`pooled` was given"):
        discriminator()(*given, torch.zeros(4, 3))


def test_it_has_a_second_derivative():
    """What a gradient penalty needs."""
    net, (xs, xt, t) = discriminator(), inputs()
    xs.requires_grad_()
    (gradient,) = torch.autograd.grad(net(xs, xt, t).sum(), xs, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in net.named_parameters() if name.endswith("first.weight"))


def test_the_size_of_a_signal_is_kept():
    """No normalisation does it: neither vanishing nor exploding from the stem to the last block."""
    net = discriminator(channels=[32] * 4, image_size=64, patch_size=1)
    seen = []
    net.stem.register_forward_hook(lambda _, __, out: seen.append(out.square().mean()))
    net.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out.square().mean()))
    net(*torch.randn(2, 4, 1, 64, 64), torch.ones(4))
    assert 0.05 < seen[1] / seen[0] < 20


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"image_size": 11}, "cut into patches"), ({"channels": [8]}, "at least one"), ({"channels": [8] * 5}, "6 x 6")],
)
def test_sizes_that_do_not_fit(options, reason):
    with pytest.raises(ValueError, match=reason):
        discriminator(**options)


# --- the generator ------------------------------------------------------------------------------------------------------


def generator():
    torch.manual_seed(0)
    unet = UNet(
        in_channels=1,
        out_channels=1,
        image_size=8,
        channels=8,
        channel_mults=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        scale_shift=True,
        condition_dim=6,
    )
    net = LatentUNet(unet=unet, mapping=LatentMapping(latent_dim=5, hidden_dim=7, out_dim=6))
    for p in net.parameters():  # a fresh U-Net gives zero
        torch.nn.init.normal_(p, std=0.3)
    return net


def test_the_latent_decides_and_its_length_does_not():
    net, x, t = generator(), torch.randn(2, 1, 8, 8), torch.ones(2)
    z = torch.randn(2, 5)
    out = net(x, t, z)
    assert out.shape == x.shape
    assert not torch.allclose(net(x, t, z.flip(0)), out, atol=1e-3)
    torch.testing.assert_close(net(x, t, 3 * z), out)


def test_a_condition_is_added_to_the_mapped_latent():
    net, x, t, z = generator(), torch.randn(2, 1, 8, 8), torch.ones(2), torch.randn(2, 5)
    pooled = torch.randn(2, 6)
    torch.testing.assert_close(net(x, t, z, pooled), net.unet(x, t, net.mapping(z) + pooled))


def test_a_typical_latent_is_left_as_it_is():
    mapping = LatentMapping(latent_dim=4, hidden_dim=3, out_dim=2, num_layers=1)
    z = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    torch.testing.assert_close(mapping(z), mapping.layers(z))
