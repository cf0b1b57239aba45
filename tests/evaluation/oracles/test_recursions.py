"""The recursions themselves, against figures computed from the betas alone and against limits."""

import pytest
import torch

from trilemma.evaluation.oracles.recursions import (
    Ladder,
    ancestral_moments,
    chain,
    ddim_map,
    ddim_moments,
    dpm_solver_map,
    expectation,
    gaussian_x0,
    heun_map,
    karras,
    moments_of_map,
    straight,
    two_gaussians_x0,
)

MEAN, STD = 0.3, 0.5


def linspace(num_steps):
    """Improved DDPM's spacing of the linear chain, on which the published figures are."""
    every = chain(1000)
    kept = [*(999 - round(k * 999 / (num_steps - 1)) for k in range(num_steps - 1, -1, -1)), 1000]
    return Ladder([every.alpha[i] for i in kept], [every.sigma[i] for i in kept])


@pytest.mark.parametrize(
    ("num_steps", "eta_0", "small", "large"),
    [
        (1000, 0.49850, 0.49611, 0.50075),
        (100, 0.48585, 0.46795, 0.50858),
        (50, 0.47192, 0.44319, 0.51757),
        (10, 0.36161, 0.32284, 0.59877),
    ],
)
def test_published_deviations_of_the_linear_chain(num_steps, eta_0, small, large):
    ladder = linspace(num_steps)
    assert ddim_moments(ladder, MEAN, STD, 0.0)[1] == pytest.approx(eta_0, abs=1e-5)
    assert ddim_moments(ladder, MEAN, STD, 1.0)[1] == pytest.approx(small, abs=1e-5)
    for variance, expected in (("small", small), ("large", large), ("optimal", 0.49990)):
        assert ancestral_moments(ladder, MEAN, STD, variance)[1] == pytest.approx(expected, abs=1e-5)


def test_published_deviations_of_edm_and_of_a_flow():
    x0 = gaussian_x0(MEAN, STD)
    for num_steps, heun, euler in ((18, 0.52762, 0.42303), (40, 0.50488, 0.46485)):
        ladder = karras(num_steps)
        assert moments_of_map(lambda x, k=ladder: heun_map(x, k, x0, flow=False), 80.0)[1] == pytest.approx(
            heun, abs=1e-5
        )
        assert moments_of_map(lambda x, k=ladder: ddim_map(x, k, x0), 80.0)[1] == pytest.approx(euler, abs=1e-5)
    for num_steps, euler in ((4, 0.34054), (10, 0.43078), (50, 0.48540)):
        ladder = straight(num_steps)
        assert moments_of_map(lambda x, k=ladder: ddim_map(x, k, x0), 1.0)[1] == pytest.approx(euler, abs=1e-5)


def test_every_deterministic_map_tends_to_the_flow_which_is_the_law_itself():
    x0 = gaussian_x0(MEAN, STD)
    ladder = straight(2000)
    for found in (
        lambda x: ddim_map(x, ladder, x0),
        lambda x: heun_map(x, ladder, x0, flow=True),
        lambda x: dpm_solver_map(x, ladder, x0),
    ):
        assert moments_of_map(found, 1.0) == pytest.approx((MEAN, STD), abs=5e-4)


def test_shares_of_two_gaussians_tend_to_their_weights():
    x0, ladder = two_gaussians_x0(1.0, 0.3, 0.3, scale=0.0), straight(400)
    assert expectation(lambda x: (ddim_map(x, ladder, x0) > 0).double(), 1.0) == pytest.approx(0.3, abs=2e-3)
    assert expectation(lambda x: ddim_map(x, ladder, x0), 1.0) == pytest.approx(0.3 - 0.7, abs=2e-3)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_the_guided_mean_is_that_of_the_guided_density(scale):
    """x0 = (x + sigma^2 d/dx log(p^(1 - scale) p_upper^scale)) / alpha, by autograd."""
    alpha, sigma, gap, std, weight = 0.7, 0.6, 1.0, 0.3, 0.3
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
    deviation = torch.tensor((alpha * std) ** 2 + sigma**2, dtype=torch.float64).sqrt()
    upper, lower = (torch.distributions.Normal(m * alpha, deviation).log_prob(x) for m in (gap, -gap))
    mixture = torch.logaddexp(
        upper + torch.tensor(weight).double().log(), lower + torch.tensor(1 - weight).double().log()
    )
    (score,) = torch.autograd.grad(((1 - scale) * mixture + scale * upper).sum(), x)
    expected = (x.detach() + sigma**2 * score) / alpha
    found = two_gaussians_x0(gap, std, weight, scale)(x.detach(), alpha, sigma)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_expectations_under_the_start():
    assert expectation(lambda x: x**2, 2.0) == pytest.approx(4.0, rel=1e-9)
    assert expectation(lambda x: (x > 0).double(), 2.0) == pytest.approx(0.5, abs=1e-3)
