import numpy as np
import pytest
import torch
from torch.distributions import Normal

from trilemma.errors import UserError
from trilemma.figures.latents import interpolate_latents, latent_scatter, manifold, manifold_latents


class Plain:
    """Latents that are the first numbers of an image."""

    def __init__(self, dim):
        self.dim = dim

    def latent_dim(self):
        return self.dim

    def from_latents(self, z, raw=None):
        assert raw is None or len(raw) == len(z)
        return z[:, :, None, None]

    def to_latents(self, images, raw=None):
        return images[:, : self.dim, 0, 0]


def test_latents_of_a_manifold_cut_the_prior_into_equal_parts():
    z = manifold_latents(4).view(4, 4, 2)
    shares = Normal(0.0, 1.0).cdf(z)
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875])
    torch.testing.assert_close(shares[..., 0], expected.expand(4, 4))
    torch.testing.assert_close(shares[..., 1], expected.flip(0)[:, None].expand(4, 4))


def test_a_manifold_is_decoded_row_by_row():
    assert torch.equal(manifold(Plain(2), 3, 7)[:, :, 0, 0], manifold_latents(3))


@pytest.mark.parametrize("dim", [1, 3, 32])
def test_a_manifold_of_a_latent_that_is_not_two_dimensional_is_refused(dim):
    with pytest.raises(UserError, match=f"2 latents, and this Plain has {dim}: .*vae_2d"):
        manifold(Plain(dim), 3)


def test_an_interpolation_runs_along_the_straight_line():
    first, last = torch.zeros(2, 2, 1, 1), torch.tensor([[4.0, 8.0], [-4.0, 0.0]])[:, :, None, None]
    between = interpolate_latents(Plain(2), first, last, [0.0, 0.25, 1.0], [1, 2])[..., 0, 0]
    torch.testing.assert_close(between[:, 1], torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
    torch.testing.assert_close(between[:, [0, 2]], torch.stack([first, last], 1)[..., 0, 0])


@pytest.mark.parametrize(("dim", "num_labels"), [(2, 3), (5, 30)])
def test_a_scatter_shows_points_and_does_not_change(dim, num_labels):
    z = torch.randn(60, dim, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % num_labels
    names = [str(i) for i in range(num_labels)]
    one, again, other = (np.asarray(latent_scatter(of, labels, names)) for of in (z, z.clone(), 2 * z.flip(0)))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    coloured = (one.max(-1).astype(int) - one.min(-1)) > 60
    assert coloured.sum() > 60
