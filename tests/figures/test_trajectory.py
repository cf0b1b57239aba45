import pytest
import torch

from exact_family import MEANS, STD, exact_family
from trilemma.capabilities import supports
from trilemma.conditions.none import NoCondition
from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.figures.trajectory import (
    even_times,
    forward_states,
    images_of,
    nearest_points,
    noise_then_denoise,
    own_condition,
    predictions_of,
    reverse_trajectory,
    states_of,
)
from trilemma.models.classifier import Classifier
from trilemma.models.diffusion import ShowsTrajectory
from trilemma.processes.gaussian.schedules import EDM, CosineBeta
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM

IMAGES = torch.linspace(-1, 1, 3 * 16).view(3, 1, 4, 4)


def test_who_shows_a_trajectory():
    assert supports(exact_family(), ShowsTrajectory)
    assert not issubclass(Classifier, ShowsTrajectory)


def test_one_noise_grows():
    model = exact_family()
    states = forward_states(model, IMAGES, [0.0, 0.25, 0.5], seed=3)
    assert torch.equal(states[:, 0], IMAGES)
    # On the straight path (xt - (1 - t) x0) / t is the noise, wherever nothing was clipped.
    noise = [(states[:, i] - (1 - t) * IMAGES) / t for i, t in ((1, 0.25), (2, 0.5))]
    inside = (states.abs() < 1).all(dim=1)
    assert inside.double().mean() > 0.5
    torch.testing.assert_close(noise[0][inside], noise[1][inside], rtol=0, atol=1e-5)


def test_rows_do_not_depend_on_the_batch():
    model = exact_family()
    whole, part = (forward_states(model, images, [0.5]) for images in (IMAGES, IMAGES[:1]))
    assert torch.equal(whole[:1], part)


def test_wide_states_are_shrunk_to_the_width_of_data():
    model = exact_family(schedule=EDM(sigma_max=80.0))
    codes = torch.full((1, 1, 4, 4), 40.0, dtype=torch.float64)
    assert images_of(model, codes, 1.0).allclose(torch.tensor(0.5), atol=1e-3)
    assert torch.equal(images_of(model, codes), torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("schedule", [CosineBeta(100), EDM(), None], ids=["chain", "edm", "straight"])
@pytest.mark.parametrize("sampler", [DDIM(10), GaussianAncestral(10)], ids=["ddim", "ddpm"])
def test_the_trajectory_ends_in_the_sample_of_its_seed(schedule, sampler):
    model = exact_family(schedule=schedule, sampler=sampler, labels=True)
    points = reverse_trajectory(model, 3, [0, 1, 2], times=even_times(11), seed=5)
    assert torch.equal(states_of(model, points)[:, -1], model.sample(3, condition=[0, 1, 2], seed=5))
    assert [point.time for point in points] == pytest.approx(even_times(11)[::-1])


def test_predictions_belong_to_their_states():
    model = exact_family()
    points = reverse_trajectory(model, 2, times=even_times(5), seed=1)
    assert len(points) == 5
    for point in points[:-1]:
        t = torch.full((2,), point.time, dtype=torch.float64)
        again = model.denoise(point.state, t, model.condition(None, num=2), None).x0.clamp(-1, 1)
        torch.testing.assert_close(point.predicted, again, rtol=0, atol=1e-12)
    assert torch.equal(points[-1].predicted, points[-1].state)
    assert torch.equal(predictions_of(model, points)[:, -1], states_of(model, points)[:, -1])


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_short_trajectory_has_fewer_points(num_steps):
    model = exact_family(sampler=DDIM(num_steps))
    points = reverse_trajectory(model, 1, times=even_times(31))
    assert len(points) == num_steps + 1
    assert points[0].time == 1
    assert points[-1].time == 0


def test_nearest_points():
    model = exact_family(sampler=DDIM(4))
    points = reverse_trajectory(model, 1, times=even_times(31))
    assert [point.time for point in nearest_points(points, even_times(11))] == [1, 0.75, 0.5, 0.25, 0]
    assert [point.time for point in nearest_points(points, [0.3])] == [0.25]


def test_noise_then_denoise_forgets_with_strength():
    """DDIM from strength t gives mean + r (x0 - mean + noise), where r falls: images come back at low strength only."""
    model = exact_family(labels=True, sampler=DDIM(50))
    images = (torch.tensor(MEANS).view(3, 1, 1, 1) + STD * torch.linspace(-2, 2, 16).view(4, 4)).float()
    correlation = {}
    for strength in (0.02, 0.2, 1.0):
        found = noise_then_denoise(model, images, strength, [0, 1, 2])
        assert found.flatten(1).mean(1).tolist() == pytest.approx(MEANS, abs=0.15)
        left, right = (part.flatten(1) - part.flatten(1).mean(1, keepdim=True) for part in (images, found))
        correlation[strength] = float(torch.nn.functional.cosine_similarity(left, right).mean())
    assert correlation[0.02] > 0.95
    assert correlation[0.02] > correlation[0.2] > correlation[1.0]
    assert abs(correlation[1.0]) < 0.5


def test_the_labels_steer():
    model = exact_family(labels=True)
    found = noise_then_denoise(model, torch.zeros(2, 1, 4, 4), 0.9, [0, 2])
    assert found.flatten(1).mean(1).tolist() == pytest.approx([MEANS[0], MEANS[2]], abs=0.1)


@pytest.mark.parametrize(("strength", "calls"), [(0.2, 20), (0.207, 20), (0.001, 1), (1.0, 100)])
def test_the_way_back_takes_its_share_of_the_chain(strength, calls):
    model = exact_family(schedule=CosineBeta(100), sampler=GaussianAncestral(100))
    seen = []
    model.network.register_forward_hook(lambda module, args, output: seen.append(float(args[1][0])))
    noise_then_denoise(model, IMAGES, strength)
    assert len(seen) == calls
    assert max(seen) == pytest.approx(max(strength, 0.01), abs=0.01)
    assert model.sampler.num_steps == 100


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.5, float("nan")])
def test_refuses_a_strength_out_of_range(strength):
    with pytest.raises(ValueError, match="strength"):
        noise_then_denoise(exact_family(), IMAGES, strength)


def test_the_images_own_condition():
    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([2, 0, 1]), ["a", "b", "c"], torch.arange(3))
    encoder = exact_family(labels=True).condition
    assert own_condition(encoder, split, 2) == [2, 0]
    assert own_condition(NoCondition(), split, 2) is None
    bare = Split(split.images, None, split.captions, split.index)
    with pytest.raises(UserError, match="condition=label needs a data set with labels"):
        own_condition(encoder, bare, 2)
