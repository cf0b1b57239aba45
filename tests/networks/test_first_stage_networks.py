import pytest
import torch

from trilemma.networks.autoencoder import ConvDecoder, ConvEncoder
from trilemma.networks.image_coder import ImageDecoder, ImageEncoder


def encoder(halvings: int) -> ConvEncoder:
    return ConvEncoder(in_channels=3, channels=16, out_channels=5, num_downsamples=halvings, num_res_blocks=1)


def decoder(doublings: int) -> ConvDecoder:
    return ConvDecoder(in_channels=5, channels=16, out_channels=3, num_upsamples=doublings, num_res_blocks=1)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_shapes_halve_and_double(n):
    images = torch.randn(2, 3, 16, 32)
    latents = encoder(n)(images)
    assert latents.shape == (2, 5, 16 >> n, 32 >> n)
    assert encoder(n).code_size(16, 32) == latents.shape[2:]
    assert decoder(n)(latents).shape == images.shape
    assert decoder(n).image_size(*latents.shape[2:]) == (16, 32)
    assert isinstance(encoder(n), ImageEncoder)
    assert isinstance(decoder(n), ImageDecoder)


@pytest.mark.parametrize("network", [encoder(2), decoder(2)])
def test_gradients_reach_all_parameters(network):
    channels = 3 if isinstance(network, ConvEncoder) else 5
    network(torch.randn(4, channels, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_a_latent_sees_its_own_part_of_the_image():
    """Distant pixels do not reach a code: the shift of one corner leaves the other corner's latents alone."""
    torch.manual_seed(0)
    network = encoder(2).double()
    images = torch.randn(1, 3, 64, 64).double()
    before = network(images)
    images[..., :4, :4] += 1
    moved = (network(images) - before).abs().amax(1)[0] > 0
    assert moved[0, 0]
    assert not moved[8:, 8:].any()


@pytest.mark.parametrize(("halvings", "channels"), [(0, 16), (2, 18)])
def test_impossible_sizes_are_refused(halvings, channels):
    with pytest.raises(ValueError, match="halving"):
        ConvEncoder(in_channels=1, channels=channels, out_channels=4, num_downsamples=halvings, num_res_blocks=0)
