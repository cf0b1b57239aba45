import pytest
import torch
from torch import nn

from exact_family import exact_family
from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.conditions.base import Condition
from trilemma.errors import UserError
from trilemma.evaluation.cost.work import count_work
from trilemma.models.noisy_classifier import LOW_NOISE, NoisyClassifier
from trilemma.processes.gaussian.process import GaussianProcess, broadcast_like
from trilemma.processes.gaussian.schedules import EDM, CosineBeta
from trilemma.samplers.classifier_guidance import ClassifierGuidance
from trilemma.samplers.guidance import Guidance
from trilemma.training.timesteps import TimestepSampler, UniformTimesteps

K, SIDE = 3, 4
COSINE = GaussianProcess(CosineBeta())


class Network(nn.Module):
    """Linear in the pixels and the time; remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(SIDE * SIDE + 1, K)
        self.seen = None

    def forward(self, x, t):
        self.seen = (x.detach(), t)
        return self.linear(torch.cat([x.flatten(1), t[:, None]], 1))


class FixedTimes(TimestepSampler):
    def __init__(self, t, weight):
        super().__init__()
        self.t, self.weight, self.noted = t, weight, None

    def sample(self, num, noise, process):
        return self.t, self.weight

    def update(self, t, loss):
        self.noted = (t, loss)


def classifier(process=COSINE, **changes):
    torch.manual_seed(0)
    arguments = {
        "codec": Pixels((1, SIDE, SIDE)),
        "process": process,
        "network": Network(),
        "times": UniformTimesteps(),
        "num_labels": K,
        **changes,
    }
    return NoisyClassifier(**arguments)


def batch(num=6):
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(num, 1, SIDE, SIDE, generator=generator),
        "label": torch.arange(num) % K,
        "index": torch.arange(num),
    }


@pytest.mark.parametrize("process", [COSINE, GaussianProcess(EDM())], ids=["cosine", "edm"])
def test_the_loss_is_the_weighted_cross_entropy_of_noised_codes(process):
    t = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.9, 1.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0])
    times = FixedTimes(t, weight)
    model, data = classifier(process, times=times), batch()
    torch.manual_seed(5)
    loss = model.loss(data)
    torch.manual_seed(5)
    xt = process.perturb(data["image"], t, torch.randn(6, 1, SIDE, SIDE))
    size = (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()
    shown, time = model.network.seen
    torch.testing.assert_close(shown, (xt / broadcast_like(size, xt)).float())
    torch.testing.assert_close(time, t.float())
    nats = -model.network(shown, time).log_softmax(1)[torch.arange(6), data["label"]]
    torch.testing.assert_close(loss.total, (weight * nats).sum() / 6)
    torch.testing.assert_close(times.noted[1], nats)
    right = model.network(shown, time).argmax(1) == data["label"]
    assert float(loss.terms["accuracy"]) == pytest.approx(float(right.float().mean()))


def test_log_prob_is_normalised_and_differentiable_in_any_precision():
    model, t = classifier(), torch.full((6,), 0.3, dtype=torch.float64)
    xt = batch()["image"].double().requires_grad_()
    total = sum(model.log_prob(xt, t, torch.full((6,), label)).exp() for label in range(K))
    torch.testing.assert_close(total, torch.ones(6))
    (gradient,) = torch.autograd.grad(model.log_prob(xt, t, batch()["label"]).sum(), xt)
    assert gradient.dtype == torch.float64
    # The network is linear: grad log p(y | x) = w_y - sum of p w, in closed form.
    weight = model.network.linear.weight[:, :-1]
    p = model.logits(xt, t).softmax(1)
    closed = (weight[batch()["label"]] - p @ weight).view(6, 1, SIDE, SIDE).double()
    torch.testing.assert_close(gradient, closed.detach(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_validation_sees_every_noise_level_and_does_not_depend_on_the_batches():
    model, data = classifier(), batch(60)
    logged = []
    model.log = lambda name, value, *, batch_size, **options: logged.append(
        (name, float(value) * batch_size, batch_size)
    )

    def run(size):
        logged.clear()
        found = [
            model.validation_step({k: v[i : i + size] for k, v in data.items()}, n)["diagnostics"]
            for n, i in enumerate(range(0, 60, size))
        ]
        totals = {}
        for name, value, num in logged:
            before = totals.get(name, (0.0, 0))
            totals[name] = (before[0] + value, before[1] + num)
        return {k: value / num for k, (value, num) in totals.items()}, torch.cat([d["time"] for d in found]), found

    whole, times, [diagnostics] = run(60)
    parts, _, _ = run(7)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert whole["val/cross_entropy"] == pytest.approx(float(diagnostics["time_loss"].mean()), rel=1e-5)
    # No twentieth of (0, 1] without an image.
    assert len(torch.unique((times * 20).ceil())) == 20
    assert {"val/accuracy", "val/accuracy_low_noise", model.monitor[0]} <= whole.keys()


def test_the_low_noise_accuracy_is_of_low_noise_alone():
    class Clock(nn.Module):
        """Right where the noise is low, wrong elsewhere."""

        def forward(self, x, t):
            label = torch.arange(len(x)) % K
            return nn.functional.one_hot(torch.where(t <= LOW_NOISE, label, (label + 1) % K), K).double()

    model = classifier(network=Clock())
    logged = {}
    model.log = lambda name, value, **options: logged.update({name: float(value)})
    model.validation_step(batch(60), 0)
    assert logged["val/accuracy_low_noise"] == 1.0
    assert logged["val/accuracy"] == pytest.approx(0.25, abs=0.03)


def test_cached_codes_are_taken():
    model, data = classifier(), batch()
    noise = None
    assert torch.equal(model.codes({"code": data["image"] * 2}, noise), data["image"] * 2)
    assert torch.equal(model.codes(data, noise), data["image"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"codec": PixelLevels((1, 4, 4), 4)}, "continuous codes"), ({"num_labels": None}, "data set with labels")],
)
def test_what_cannot_be_classified_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        classifier(**changes)


def test_the_ledger_counts_the_backward_pass_of_one_evaluation():
    """A linear layer's gradient in its input costs what its output costs; its weights get none."""
    model = classifier().eval().requires_grad_(False)
    guidance = ClassifierGuidance(model, 2.0)
    condition = Condition(5, label=torch.zeros(5, dtype=torch.int64))

    def draw(num):
        return guidance.gradient(torch.randn(num, 1, SIDE, SIDE), 0.5, condition)

    with torch.no_grad():
        work = count_work(nn.Linear(1, 1), draw, num_images=5)
    [row] = work.subnetworks
    assert (row.name, row.num_calls, row.evaluations_per_image) == ("ClassifierGradient", 1, 1.0)
    assert row.flops_per_image == 2 * (2 * K * (SIDE * SIDE + 1))
    assert row.num_parameters == K * (SIDE * SIDE + 1) + K
    assert work.flops_outside_per_image == 0


def test_an_unconditional_model_takes_labels_where_the_guidance_reads_them():
    model, guidance = exact_family(), ClassifierGuidance(classifier(), 2.0)
    plain = model.sample(3)
    for other in (None, Guidance()):
        with pytest.raises(UserError, match="unconditional"):
            model.sample(3, condition=1, guidance=other)
    steered = model.sample(3, condition=[0, 1, 2], guidance=guidance, batch_size=2)
    assert steered.shape == plain.shape
    assert not torch.equal(steered, plain)
    assert not torch.equal(steered, model.sample(3, condition=0, guidance=guidance))
    with pytest.raises(UserError, match="labels are 0 to 2"):
        model.sample(3, condition=7, guidance=guidance)
    with pytest.raises(UserError, match=r"needs condition\.label"):
        model.sample(3, guidance=guidance)
