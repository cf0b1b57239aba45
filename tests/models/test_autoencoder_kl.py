import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from trilemma.callbacks.monitors.latents import ActiveLatents
from trilemma.codecs.kl import KL
from trilemma.errors import UserError
from trilemma.models.autoencoder_kl import AutoencoderKL
from trilemma.models.capabilities import Reconstructs
from trilemma.networks.autoencoder import ConvDecoder, ConvEncoder
from trilemma.processes.noise import NoiseSource, TorchNoise
from trilemma.training.reconstruction import AbsoluteError, SquaredError


def model_of(*, kl_weight=0.01, reconstruction=None, seed=0, **changes) -> AutoencoderKL:
    torch.manual_seed(seed)
    codec = KL(
        image_shape=(1, 8, 8),
        encoder=ConvEncoder(in_channels=1, channels=8, out_channels=4, num_downsamples=2, num_res_blocks=1),
        decoder=ConvDecoder(in_channels=2, channels=8, out_channels=1, num_upsamples=2, num_res_blocks=1),
    )
    return AutoencoderKL(codec=codec, reconstruction=reconstruction or SquaredError(), kl_weight=kl_weight, **changes)


def images(num: int = 6) -> torch.Tensor:
    return torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Linear(nn.Module):
    """A pixelwise affine map that looks like an encoder or a decoder."""

    def __init__(self, weight, bias):
        super().__init__()
        self.out_channels, self.in_channels = weight.shape
        self.weight, self.bias = weight, bias

    def code_size(self, height, width):
        return height, width

    image_size = code_size

    def forward(self, x):
        return torch.einsum("oi,bihw->bohw", self.weight, x) + self.bias[:, None, None]


class SigmaPoints(NoiseSource):
    """2d points of mean 0 and covariance 1, one an image: the mean of a quadratic over them is exact."""

    device = torch.device("cpu")

    def __init__(self, dim):
        half = math.sqrt(dim) * torch.eye(dim, dtype=torch.float64)
        self.points = torch.cat([half, -half])

    def uniform(self, shape, dtype=torch.float32):
        raise NotImplementedError

    def normal(self, shape, dtype=torch.float32):
        return self.points.view(shape)


@pytest.mark.parametrize("exact", [True, False])
def test_the_loss_is_the_evidence_lower_bound_of_a_linear_gaussian_model(exact):
    """p(z) = N(0, I), p(x|z) = N(Wz + b, v I): the bound lies below log p(x) by the KL from the posterior taken to the true one."""
    num_pixels, dim, variance = 5, 2, 0.3
    generator = torch.Generator().manual_seed(3)
    orthogonal, _ = torch.linalg.qr(torch.randn(num_pixels, dim, generator=generator, dtype=torch.float64))
    decode = orthogonal * torch.tensor([0.8, 1.9])  # orthogonal columns: the posterior is diagonal
    bias, x = torch.randn(2, num_pixels, generator=generator, dtype=torch.float64)
    precision = torch.eye(dim, dtype=torch.float64) + decode.T @ decode / variance
    encode = torch.linalg.solve(precision, decode.T / variance)
    offset, log_var = -encode @ bias, -precision.diagonal().log()
    if not exact:
        offset, log_var = offset + 0.3, log_var + 0.5
    codec = KL(
        image_shape=(num_pixels, 1, 1),
        encoder=Linear(torch.cat([encode, torch.zeros(dim, num_pixels)]), torch.cat([offset, log_var])),
        decoder=Linear(decode, bias),
    )
    model = AutoencoderKL(codec=codec, reconstruction=SquaredError(), kl_weight=2 * variance)
    points = SigmaPoints(dim)
    batch = x.view(1, -1, 1, 1).expand(2 * dim, -1, -1, -1)
    model.training_noise = lambda: points
    bound = model.loss({"image": batch}).total * num_pixels / (2 * variance)
    bound = bound + num_pixels / 2 * math.log(2 * math.pi * variance)
    covariance = decode @ decode.T + variance * torch.eye(num_pixels, dtype=torch.float64)
    evidence = -MultivariateNormal(bias, covariance).log_prob(x)
    truth = MultivariateNormal(encode @ (x - bias), torch.linalg.inv(precision))
    taken = MultivariateNormal(encode @ x + offset, log_var.exp().diag())
    gap = torch.distributions.kl_divergence(taken, truth)
    torch.testing.assert_close(bound, evidence + gap, rtol=1e-9, atol=0)
    assert gap > 0.1 or exact


def test_the_loss_is_the_weighted_sum_a_subpixel():
    model = model_of(kl_weight=0.3)
    torch.manual_seed(5)
    loss = model.loss({"image": images()})
    torch.manual_seed(5)
    output = model.codec(images(), TorchNoise())
    squares = (output.reconstruction - images()).square().sum((1, 2, 3))
    kl = output.posterior.kl().sum((1, 2, 3))
    torch.testing.assert_close(loss.total, (squares + 0.3 * kl).mean() / 64)
    torch.testing.assert_close(loss.terms["reconstruction"], squares.mean() / 64)
    torch.testing.assert_close(loss.terms["kl"], kl.mean())


def test_reconstruction_losses_are_sums_over_an_image():
    a, b = images().double(), images().flip(0).double()
    torch.testing.assert_close(
        SquaredError()(a, b), torch.stack([torch.dist(x, y) ** 2 for x, y in zip(a, b, strict=True)])
    )
    torch.testing.assert_close(
        AbsoluteError()(a, b), torch.stack([torch.dist(x, y, p=1) for x, y in zip(a, b, strict=True)])
    )


@torch.no_grad()
def test_validation_tells_the_kl_of_each_latent(monkeypatch):
    model = model_of().eval()
    logged = {}
    monkeypatch.setattr(model, "log", lambda name, value, **_: logged.update({name: float(value)}))
    outputs = model.validation_step({"image": images()}, 0)
    kl = outputs["diagnostics"]["latent_kl"]
    assert kl.shape == (6, 8)
    torch.testing.assert_close(kl, model.codec.posterior(images()).kl().flatten(1))
    assert logged["val/kl"] == pytest.approx(float(kl.sum(1).mean()))
    monitor = ActiveLatents()
    monitor.on_validation_batch_end(None, model, outputs)
    assert monitor._sums is not None


def test_reconstructions_are_of_the_mean_and_leave_the_mode_alone():
    model = model_of().train()
    assert isinstance(model, Reconstructs)
    expected = model.codec.decoder(model.codec.posterior(images()).mean).clamp(-1, 1)
    torch.testing.assert_close(model.reconstruct(images()), expected)
    assert model.training


@pytest.mark.parametrize("kl_weight", [-1.0, math.nan])
def test_a_weight_that_makes_no_sense_is_refused(kl_weight):
    with pytest.raises(UserError, match=r"model\.kl_weight"):
        model_of(kl_weight=kl_weight)


def test_the_weight_trades_reconstruction_for_a_smooth_code():
    """After some steps on a few patterns a larger weight leaves a smaller KL and a larger error."""
    patterns = images(4).sign()
    found = []
    for kl_weight in (1e-4, 10.0):
        model = model_of(kl_weight=kl_weight)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(120):
            loss = model.loss({"image": patterns.repeat(4, 1, 1, 1)})
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
        error = (model.reconstruct(patterns) - patterns).square().mean()
        found.append((float(error), float(loss.terms["kl"].detach())))
    (sharp, much), (blurred, little) = found
    assert sharp < 0.2 < 0.5 < blurred  # the patterns have variance 1
    assert little < 0.5 * much
