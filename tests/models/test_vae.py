import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from trilemma.codecs.pixels import Pixels
from trilemma.conditions.none import NoCondition
from trilemma.distributions.bernoulli import BernoulliOutput
from trilemma.distributions.normal import NormalOutput
from trilemma.errors import UserError
from trilemma.models.vae import VAE
from trilemma.samplers.guidance import Guidance

D, N, VARIANCE = 2, 5, 0.3


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


def linear_gaussian(*, exact, **options):
    """p(z) = N(0, I), p(x|z) = N(Wz + b, v I) with orthogonal columns; returns the VAE and log p."""
    generator = torch.Generator().manual_seed(3)
    orthogonal, _ = torch.linalg.qr(torch.randn(N, D, generator=generator, dtype=torch.float64))
    decode = orthogonal * torch.tensor([0.8, 1.9])
    bias = torch.randn(N, generator=generator, dtype=torch.float64)
    precision = torch.eye(D, dtype=torch.float64) + decode.T @ decode / VARIANCE
    encode = torch.linalg.solve(precision, decode.T / VARIANCE)
    offset, log_var = -encode @ bias, -precision.diagonal().log()
    if not exact:
        offset, log_var = offset + 0.3, log_var + 0.5
    model = VAE(
        codec=Pixels((N, 1, 1)),
        encoder=Linear(torch.cat([encode, torch.zeros(D, N)]), torch.cat([offset, log_var])),
        decoder=Linear(decode, bias),
        output=NormalOutput(log_std=0.5 * float(torch.tensor(VARIANCE, dtype=torch.float64).log())),
        condition=NoCondition(),
        guidance=Guidance(),
        **options,
    ).double()
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(N)[:, :, None, None])
        model.head.bias.zero_()
    covariance = decode @ decode.T + VARIANCE * torch.eye(N, dtype=torch.float64)
    return model, MultivariateNormal(bias, covariance)


def batch_of(x):
    return {"image": x[:, :, None, None], "index": torch.arange(len(x))}


@pytest.mark.parametrize("num", [1, 7, 120])
def test_with_the_exact_posterior_every_importance_weight_is_the_probability(num):
    model, true = linear_gaussian(exact=True, num_likelihood_samples=num)
    x = torch.randn(4, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    score = model.score_likelihood(batch_of(x))
    torch.testing.assert_close(score.nats, -true.log_prob(x), rtol=0, atol=1e-5)
    assert (score.kind, score.num_samples) == ("bound" if num == 1 else "estimate", num)


def test_more_importance_samples_come_closer_from_below():
    model, true = linear_gaussian(exact=False)
    x = torch.randn(1, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64).repeat(4000, 1)
    bounds = []
    for num in (1, 5, 50):
        model.set_likelihood_samples(num)
        bounds.append(-float(model.score_likelihood(batch_of(x)).nats.mean()))
    assert bounds[0] < bounds[1] < bounds[2] < float(true.log_prob(x[0])) + 0.01


def test_a_bernoulli_likelihood_of_grey_images_is_refused():
    parts = {"codec": Pixels((1, 1, 1)), "condition": NoCondition(), "guidance": Guidance()}
    linear = Linear(torch.ones(2, 1), torch.zeros(2)), Linear(torch.ones(1, 1), torch.zeros(1))
    with pytest.raises(UserError, match=r"data\.binarize=dynamic"):
        VAE(encoder=linear[0], decoder=linear[1], output=BernoulliOutput(), **parts)
