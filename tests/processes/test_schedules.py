import numpy as np
import pytest
import torch

from trilemma.errors import UserError
from trilemma.processes.categorical.coefficients import masses
from trilemma.processes.categorical.schedules import Cosine, Linear, LogLinear, VQDiffusionPaper, VQDiffusionReleased

SCHEDULES = [VQDiffusionPaper(), VQDiffusionReleased(), Cosine(0.9), Linear(1.0), LogLinear(0.0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_schedule_starts_at_the_data_and_shares_out_one(schedule):
    assert schedule.alpha_bar(0.0) == 1
    assert schedule.gamma_bar(0.0) == 0
    t = torch.linspace(0, 1, 1001)
    alpha, gamma, lost = (x.squeeze(-1) for x in masses(schedule, t))
    assert alpha.dtype == torch.float64
    assert alpha.shape == schedule.gamma_bar(t).shape == t.shape
    torch.testing.assert_close(alpha + gamma + lost, torch.ones_like(alpha), rtol=0, atol=1e-15)
    assert (alpha.diff() <= 0).all()
    assert (gamma.diff() >= 0).all()
    assert schedule.alpha_bar(torch.tensor(0.25)).ndim == 0
    torch.testing.assert_close(schedule.alpha_bar(0.25), schedule.alpha_bar(t)[250])


def test_the_papers_end_points():
    _, gamma, lost = masses(VQDiffusionPaper(), 1.0)
    assert VQDiffusionPaper().alpha_bar(1.0) == 0
    assert float(gamma) == pytest.approx(0.9, abs=1e-15)
    assert float(lost) == pytest.approx(0.1, abs=1e-15)


@pytest.mark.parametrize("num_steps", [2, 100])
def test_the_released_grid(num_steps):
    schedule = VQDiffusionReleased(num_steps)
    t = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    np.testing.assert_allclose(schedule.alpha_bar(t), np.linspace(0.99999, 0.000009, num_steps), rtol=1e-10)
    np.testing.assert_allclose(schedule.gamma_bar(t), np.linspace(0.000009, 0.99999, num_steps), rtol=1e-10)
    # All but pure masking: what is replaced is 1e-6 at every step.
    np.testing.assert_allclose(masses(schedule, t)[2].squeeze(-1), 1e-6, rtol=1e-8)


def test_curves():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    np.testing.assert_allclose(Linear(1.0).alpha_bar(t), 1 - t)
    np.testing.assert_allclose(LogLinear(1.0, epsilon=0.01).alpha_bar(t), 1 - 0.99 * t)
    angle = (t + 0.008) / 1.008 * torch.pi / 2
    np.testing.assert_allclose(Cosine(1.0).alpha_bar(t), (angle.cos() / angle[0].cos()) ** 2, atol=1e-15)
    assert Cosine(1.0).alpha_bar(1.0) == 0
    np.testing.assert_allclose(Cosine(0.9).gamma_bar(t), 0.9 * (1 - Cosine(0.9).alpha_bar(t)))


def test_the_split_may_be_left_to_the_process():
    with pytest.raises(ValueError, match="undecided"):
        Linear().gamma_bar(0.5)
    assert Linear().split(1.0).gamma_bar(0.25) == 0.25
    assert Linear(0.5).split(1.0).gamma_bar(0.5) == 0.25
    assert LogLinear(epsilon=0.1).split(0.3).epsilon == 0.1
    assert Cosine(offset=0.1).split(0.3).offset == 0.1


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: Linear(1.5), "mask_fraction=1.5"),
        (lambda: LogLinear(epsilon=0.0), "epsilon=0"),
        (lambda: Cosine(offset=-1.0), "offset=-1"),
        (lambda: VQDiffusionReleased(1), "num_steps=1"),
    ],
)
def test_options_out_of_range_are_refused(build, name):
    with pytest.raises(UserError, match=name):
        build()
