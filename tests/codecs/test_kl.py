import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from tiny_run import Stream, trainer_of
from trilemma.codecs.kl import KL, Posterior
from trilemma.errors import UserError
from trilemma.models.autoencoder_kl import AutoencoderKL
from trilemma.networks.autoencoder import ConvDecoder, ConvEncoder
from trilemma.processes.noise import TorchNoise
from trilemma.quiet import quieten
from trilemma.training.reconstruction import SquaredError


def build(image_shape=(1, 12, 8), *, channels: int = 3, moments: int = 6) -> KL:
    torch.manual_seed(0)
    return KL(
        image_shape=image_shape,
        encoder=ConvEncoder(
            in_channels=image_shape[0], channels=8, out_channels=moments, num_downsamples=2, num_res_blocks=1
        ),
        decoder=ConvDecoder(
            in_channels=channels, channels=8, out_channels=image_shape[0], num_upsamples=2, num_res_blocks=1
        ),
    )


def images(num: int = 5, shape=(1, 12, 8)) -> torch.Tensor:
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def noise(seed: int = 0) -> TorchNoise:
    return TorchNoise(torch.Generator().manual_seed(seed))


def posterior(*shape: int) -> Posterior:
    generator = torch.Generator().manual_seed(2)
    mean, log_var = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return Posterior(mean, 2 * log_var - 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(channels):
    codec = build([channels, 12, 8])
    x = images(shape=(channels, 12, 8))
    assert codec.image_shape == (channels, 12, 8)
    assert codec.code_shape == (3, 3, 2)
    assert codec.length == 18
    assert codec.num_classes is None
    assert codec.bound is None
    assert codec.encode(x).shape == (5, 3, 3, 2)
    assert codec.cache(x).shape == (5, 6, 3, 2)
    assert codec.decode(codec.encode(x)).shape == x.shape
    assert codec.decode(100 * torch.randn(5, 3, 3, 2)).abs().max() <= 1


def test_the_kl_is_that_of_two_normal_laws():
    q = posterior(4, 3, 2, 2)
    expected = kl_divergence(Normal(q.mean, q.deviation), Normal(torch.zeros_like(q.mean), 1.0))
    torch.testing.assert_close(q.kl(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(Posterior(torch.zeros(2), torch.zeros(2)).kl(), torch.zeros(2))


def test_the_kl_is_the_mean_log_ratio_of_draws():
    q = posterior(1, 2, 2, 2)
    many = Posterior(q.mean.expand(100_000, -1, -1, -1), q.log_var.expand(100_000, -1, -1, -1))
    z = many.sample(noise())
    ratio = Normal(q.mean, q.deviation).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert ((ratio.mean(0) - q.kl()[0]).abs() < 5 * error).all()


def test_encoding_gives_the_mean_or_a_draw_around_it():
    codec = build().double()
    codec.shift.copy_(torch.tensor([0.3, -0.1, 2.0])[:, None, None])
    codec.scale.fill_(1.7)
    x = images(1).double()
    q = codec.posterior(x)
    mean = codec.encode(x)
    torch.testing.assert_close(mean, 1.7 * (q.mean - codec.shift))
    draws = codec.encode(x.expand(4000, -1, -1, -1), noise())
    error = 1.7 * q.deviation / 4000**0.5
    assert ((draws.mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.std(0), 1.7 * q.deviation[0], rtol=0.07, atol=0)


def test_the_cache_gives_what_the_images_would():
    codec = build()
    cached = codec.cache(images())
    codec.standardise(cached)
    for a, b in ((None, None), (noise(7), noise(7))):
        assert torch.equal(codec.from_cache(cached, a), codec.encode(images(), b))
    assert torch.equal(codec.cache(images()), cached)  # what is kept does not depend on the units


def test_decoding_undoes_the_units():
    codec = build()
    before = codec.decode(codec.encode(images()))
    codec.standardise(codec.cache(images()))
    assert codec.scale != 1
    torch.testing.assert_close(codec.decode(codec.encode(images())), before)


def test_drawn_codes_of_the_training_set_have_mean_zero_and_mean_square_one():
    codec = build().double()
    cached = codec.cache(images(50).double())
    cached[:, 3:] *= 0.3  # a posterior narrower than that of fresh weights
    codec.standardise(cached)
    mean, deviation = codec.from_cache(cached), codec.scale * cached[:, 3:]
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(
        (mean.square() + deviation.square()).mean(), torch.tensor(1.0).double(), rtol=1e-6, atol=0
    )


def test_latents_that_say_nothing_are_refused():
    codec = build()
    with pytest.raises(UserError, match="alike or not finite"):
        codec.standardise(torch.zeros(4, 6, 3, 2))
    with pytest.raises(UserError, match="alike or not finite"):
        codec.standardise(torch.full((4, 6, 3, 2), math.nan))


def test_extreme_moments_stay_finite():
    codec = build()
    for parameter in codec.encoder.parameters():
        nn.init.constant_(parameter, 100.0)
    q = codec.posterior(images())
    assert q.deviation.isfinite().all()
    assert q.kl().isfinite().all()


def test_gradients_reach_all_parameters_through_a_draw():
    codec = build()
    output = codec(images(), noise())
    (output.reconstruction.square().mean() + output.posterior.kl().mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in codec.parameters())
    assert codec.decoder.last_layer.grad.any()


def test_state_dict_rebuilds_the_codec_with_its_units():
    codec = build()
    codec.standardise(codec.cache(images()))
    rebuilt = build()
    rebuilt.load_state_dict(codec.state_dict())
    assert torch.equal(rebuilt.encode(images(), noise()), codec.encode(images(), noise()))
    assert torch.equal(rebuilt.decode(codec.encode(images())), codec.decode(codec.encode(images())))


def test_the_last_layer_makes_the_pixels():
    decoder = build().decoder
    nn.init.zeros_(decoder.last_layer)
    made = decoder(torch.randn(2, 3, 3, 2))
    assert torch.equal(made[0], made[1])


def test_an_image_that_cannot_be_halved_names_the_setting():
    with pytest.raises(UserError, match=r"set data\.size to a multiple of 4"):
        build((1, 14, 8))


def test_an_encoder_without_variances_is_refused():
    with pytest.raises(ValueError, match=r"encoder\.out_channels=3, but the other parts need 6"):
        build(moments=3)


def test_a_decoder_that_enlarges_otherwise_is_refused():
    encoder = ConvEncoder(in_channels=1, channels=8, out_channels=4, num_downsamples=2, num_res_blocks=1)
    decoder = ConvDecoder(in_channels=2, channels=8, out_channels=1, num_upsamples=1, num_res_blocks=1)
    with pytest.raises(ValueError, match="images of 6x4 from the 3x2 latents of images of 12x8"):
        KL(image_shape=(1, 12, 8), encoder=encoder, decoder=decoder)


def test_a_module_that_codes_no_images_is_refused():
    with pytest.raises(UserError, match=r"a Linear is no encoder of images: .*autoencoder\.ConvEncoder"):
        KL(image_shape=(1, 12, 8), encoder=nn.Linear(2, 2), decoder=build().decoder)


# --- one latent vector an image -----------------------------------------------------------------------------------------

SIDE, DIM = 28, 2


class DenseEncoder(nn.Module):
    """Images of 28 x 28 to the moments of one latent vector."""

    in_channels, out_channels = 1, 2 * DIM

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SIDE * SIDE, 16), nn.Tanh(), nn.Linear(16, self.out_channels))

    def code_size(self, height, width):
        if (height, width) != (SIDE, SIDE):
            raise UserError(f"images of {height}x{width} are not {SIDE}x{SIDE}: set data.size={SIDE}")
        return 1, 1

    def forward(self, images):
        return self.layers(images.flatten(1))[:, :, None, None]


class DenseDecoder(nn.Module):
    """One latent vector to images of 28 x 28."""

    in_channels, out_channels = DIM, 1

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, SIDE * SIDE))

    def image_size(self, height, width):
        return SIDE * height, SIDE * width

    def forward(self, latents):
        return self.layers(latents.flatten(1)).view(-1, 1, SIDE, SIDE)


def dense() -> KL:
    torch.manual_seed(0)
    return KL(image_shape=(1, SIDE, SIDE), encoder=DenseEncoder(), decoder=DenseDecoder())


def test_a_latent_vector_is_a_grid_of_one_by_one():
    codec, x = dense(), images(shape=(1, SIDE, SIDE))
    assert codec.code_shape == (DIM, 1, 1)
    assert codec.length == DIM
    code = codec.encode(x, noise())
    assert code.shape == (5, DIM, 1, 1)
    assert codec.decode(code).shape == x.shape
    codec.standardise(codec.cache(x))
    torch.testing.assert_close(codec.decode(codec.encode(x)), codec.decoder(codec.posterior(x).mean).clamp(-1, 1))
    with pytest.raises(UserError, match=r"set data\.size=28"):
        KL(image_shape=(1, 32, 32), encoder=DenseEncoder(), decoder=DenseDecoder())


def test_a_family_trains_a_latent_vector(tmp_path, recwarn):
    quieten()

    def adam(named):
        return torch.optim.Adam([p for _, p in named], lr=1e-3)

    model = AutoencoderKL(codec=dense(), reconstruction=SquaredError(), kl_weight=1e-2, optimizer=adam)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer_of(tmp_path, [], max_steps=1).fit(model, Stream(1, (5, 1, SIDE, SIDE)))
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    x = images(shape=(1, SIDE, SIDE))
    assert model.reconstruct(x).shape == x.shape
