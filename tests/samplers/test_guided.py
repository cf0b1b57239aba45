import pytest
import torch

from trilemma.conditions.base import Condition
from trilemma.processes.noise import Noise
from trilemma.samplers.base import Prediction
from trilemma.samplers.guidance import ClassifierFree, Guidance
from trilemma.samplers.guided import GuidedDenoiser

B = 3


def condition():
    null = Condition(B, pooled=torch.zeros(B, 1))
    return Condition(B, pooled=torch.arange(1.0, B + 1)[:, None], null=null)


class Branches(ClassifierFree):
    """Keeps what it is given."""

    def on_prediction(self, predictions, process, xt, t):
        self.predictions = predictions
        return super().on_prediction(predictions, process, xt, t)


@pytest.mark.parametrize("kind", ["a number an image", "one for all"])
def test_each_branch_gets_its_own_part_of_every_field(kind):
    def denoiser(xt, t, condition, noise):
        assert len(xt) == len(t) == len(condition) == 2 * B
        per_image = condition.pooled[:, :, None, None].expand(-1, 1, 2, 2)
        shared = torch.tensor(0.5) if kind == "one for all" else per_image[:, :, :1, :1]
        return Prediction(x0=per_image, variance_fraction=per_image, x0_variance=shared, bound=1.0)

    guidance = Branches(2.0)
    xt = torch.zeros(B, 1, 2, 2, dtype=torch.float64)
    guided = GuidedDenoiser(denoiser, None, condition(), guidance, Noise(0, torch.arange(B))).predict(xt, 0.3)
    null, conditional = guidance.predictions
    assert null.x0.abs().max() == 0
    for field in (conditional.x0, conditional.variance_fraction, guided.variance_fraction):
        assert field[:, 0, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert guided.x0[:, 0, 0, 0].tolist() == [2.0, 4.0, 6.0]
    assert guided.x0_variance.flatten().tolist() == ([0.5] if kind == "one for all" else [1.0, 2.0, 3.0])
    assert guided.bound == 1.0


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_denoiser_that_draws_sees_the_same_numbers_in_every_branch(draw):
    drawn = []

    def denoiser(xt, t, condition, noise):
        drawn.append(getattr(noise, draw)((len(xt), 4), torch.float64))
        return Prediction(x0=drawn[-1])

    xt = torch.zeros(B, 4)
    GuidedDenoiser(denoiser, None, condition(), ClassifierFree(2.0), Noise(7, torch.arange(B))).predict(xt, 0.5)
    GuidedDenoiser(denoiser, None, condition(), Guidance(), Noise(7, torch.arange(B))).predict(xt, 0.5)
    both, one = drawn
    assert torch.equal(both, one.repeat(2, 1))


@pytest.mark.parametrize(
    ("state", "dtype"), [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.int64, torch.float32)]
)
def test_the_time_has_the_precision_of_the_state(state, dtype):
    def denoiser(xt, t, condition, noise):
        assert t.dtype == dtype
        assert t.tolist() == torch.full((B,), 0.1, dtype=dtype).tolist()
        return Prediction(x0=xt)

    GuidedDenoiser(denoiser, None, condition(), Guidance(), Noise(0, torch.arange(B))).predict(
        torch.zeros(B, 4, dtype=state), 0.1
    )
