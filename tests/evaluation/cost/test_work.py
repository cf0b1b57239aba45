"""Counts of models small enough to count by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trilemma.codecs.base import Codec
from trilemma.conditions.label import LabelCondition
from trilemma.evaluation.cost.work import count_work
from trilemma.models.discrete_diffusion import DiscreteDiffusion
from trilemma.processes.categorical.closed_form import Absorbing
from trilemma.processes.categorical.schedules import Linear
from trilemma.samplers.base import Prediction
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.guidance import ClassifierFree, Guidance
from trilemma.training.loss_weights import Simple
from trilemma.training.timesteps import ImportanceTimesteps

K, L, SIDE, LABELS, WIDTH = 4, 9, 3, 5, 6
STATES = K + 1  # with the mask

NETWORK_FLOPS = 2 * L * STATES * K  # one Linear(STATES, K) on L tokens
DECODER_FLOPS = 2 * K * L * SIDE**2  # one Linear(K * L, SIDE^2)


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(STATES, K)

    def forward(self, xt, t, pooled, context, mask):
        return self.inner(F.one_hot(xt, STATES).float())


class ToyCodec(Codec):
    """`decode` is no `forward`, and there is an encoder that sampling never runs."""

    image_shape, code_shape, num_classes = (1, SIDE, SIDE), (SIDE, SIDE), K

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(SIDE**2, K * L)
        self.decoder = nn.Linear(K * L, SIDE**2)
        self.norm = nn.LayerNorm(SIDE**2)

    def encode(self, images, noise=None):
        raise NotImplementedError

    def decode(self, code):
        return self.norm(self.decoder(F.one_hot(code, K).float().flatten(1))).view(-1, 1, SIDE, SIDE)


def diffusion(**changes):
    torch.manual_seed(0)
    arguments = {
        "codec": ToyCodec(),
        "process": Absorbing(K, Linear()),
        "network": OneLayer(),
        "condition": LabelCondition(LABELS, WIDTH),
        "sampler": Ancestral(7),
        "guidance": Guidance(),
        "times": ImportanceTimesteps(100),
        "weight": Simple(),
    }
    return DiscreteDiffusion(**arguments | changes).eval()


def work_of(model, num_images=1, **setting):
    return count_work(model, lambda num: model.sample(num, condition=3, **setting), num_images=num_images)


@pytest.mark.parametrize(
    ("guidance", "evaluations"),
    [
        (Guidance(), 7),
        (ClassifierFree(2.0), 14),
        (ClassifierFree(1.0), 7),
        (ClassifierFree(0.0), 7),
        (ClassifierFree(2.0, start=0.5), 4 + 2 * 3),  # t = 3/7, 2/7, 1/7 lie below 0.5
    ],
)
@pytest.mark.parametrize("num_images", [1, 3])
def test_copies_for_guidance_are_evaluations_and_not_calls(guidance, evaluations, num_images):
    work = work_of(diffusion(), num_images, guidance=guidance)
    network = work.subnetwork("network")
    assert (network.num_calls, network.evaluations_per_image) == (7, evaluations)
    assert network.flops_per_image == evaluations * NETWORK_FLOPS
    assert network.counted_at == "network"


@pytest.mark.parametrize("num_steps", [1, 12])
def test_the_decoder_is_a_row_of_its_own_and_runs_once(num_steps):
    work = work_of(diffusion(), 2, sampler=Ancestral(num_steps))
    codec = work.subnetwork("codec")
    assert (codec.num_calls, codec.evaluations_per_image, codec.counted_at) == (1, 1, "codec.decoder")
    assert codec.flops_per_image == DECODER_FLOPS
    assert work.flops_per_image == num_steps * NETWORK_FLOPS + DECODER_FLOPS
    assert work.flops_outside_per_image == 0
    assert work.subnetwork("condition").evaluations_per_image == 1
    assert [row.name for row in work.subnetworks] == ["condition", "network", "codec"]


def test_parameters_are_those_that_sampling_reads():
    work = work_of(diffusion())
    rows = {row.name: row.num_parameters for row in work.subnetworks}
    decoder = K * L * SIDE**2 + SIDE**2 + 2 * SIDE**2  # with the norm, without the encoder
    assert rows == {"network": STATES * K + K, "condition": (LABELS + 1) * WIDTH, "codec": decoder}
    assert work.num_parameters == sum(rows.values())


class WithClassifier(Guidance):
    """A network that the model does not own."""

    def __init__(self):
        self.classifier = nn.Sequential(nn.Linear(L, 2), nn.Linear(2, 1))

    def on_prediction(self, predictions, process, xt, t):
        self.classifier(xt.float())
        return super().on_prediction(predictions, process, xt, t)


def test_a_classifier_of_the_guidance_is_counted():
    guidance = WithClassifier()
    work = work_of(diffusion(), 2, guidance=guidance)
    row = work.subnetwork("Sequential")
    assert (row.num_calls, row.evaluations_per_image, row.num_parameters) == (7, 7, 2 * L + 2 + 2 + 1)
    assert row.flops_per_image == 7 * 2 * (2 * L + 2)
    assert work.subnetwork("network").evaluations_per_image == 7
    assert work.num_parameters == work_of(diffusion()).num_parameters + row.num_parameters


class Wrapper(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.__dict__["network"] = network  # held, not owned

    def forward(self, *args):
        return self.network(*args)


class Wrapped(Guidance):
    """Runs the model's network from inside a foreign module."""

    def __init__(self, network):
        self.wrapper = Wrapper(network)

    def on_prediction(self, predictions, process, xt, t):
        log_x0 = self.wrapper(xt, torch.zeros(len(xt)), None, None, None)
        return Prediction(log_x0=log_x0, weighting=predictions[0].weighting)


def test_a_network_that_a_foreign_module_calls_is_still_counted():
    model = diffusion()
    work = work_of(model, guidance=Wrapped(model.network))
    assert work.subnetwork("network").evaluations_per_image == 14
    assert work.subnetwork("network").flops_per_image == 14 * NETWORK_FLOPS
    assert work.subnetwork("Wrapper").flops_per_image == 0


class Chain(nn.Module):
    """Several networks in a list, entered by a method, one of them holding another's weights; and work of its own."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList([Stepper(), Stepper()])
        self.steps[1].heavy = self.steps[0].heavy

    def forward(self, x):
        for stepper in self.steps:
            for _ in range(5):
                x = stepper.step(x)
        return x @ torch.ones(3, 3)


class Stepper(nn.Module):
    def __init__(self):
        super().__init__()
        self.light = nn.Linear(3, 3, bias=False)
        self.heavy = nn.Linear(3, 30, bias=False)
        self.never = nn.Linear(3, 3)

    def step(self, x):
        return self.light(self.light(x)) + self.heavy(x)[:, :3]


def test_a_network_entered_by_a_method_is_counted_at_its_heaviest_part():
    # In one list each network is a row; through `model(...)` the root counts as nothing.
    model = Chain()
    model.steps[1].heavy = nn.Linear(3, 30, bias=False)
    work = count_work(model, lambda num: model(torch.ones(num, 3)), num_images=4)
    assert [(row.name, row.counted_at) for row in work.subnetworks] == [
        ("steps.0", "steps.0.heavy"),
        ("steps.1", "steps.1.heavy"),
    ]
    for row in work.subnetworks:
        assert (row.num_calls, row.evaluations_per_image) == (5, 5)
        assert row.flops_per_image == 5 * 2 * (2 * 9 + 90)
        assert row.num_parameters == 9 + 90
    assert work.flops_outside_per_image == 2 * 9


def test_shared_weights_count_once():
    model = Chain()
    work = count_work(model, lambda num: model(torch.ones(num, 3)))
    assert work.num_parameters == 9 + 9 + 90
    assert [row.num_parameters for row in work.subnetworks] == [99, 99]


class Attention(nn.Module):
    def __init__(self, heads, width):
        super().__init__()
        self.attend = nn.MultiheadAttention(heads * width, heads, batch_first=True)

    def forward(self, x):
        return self.attend(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("training", [True, False])  # without gradients torch has a fused path in evaluation mode
@torch.no_grad()
def test_attention_is_counted_on_the_cpu(training):
    heads, width, length = 2, 8, 5
    model = Attention(heads, width).train(training)
    dim = heads * width
    work = count_work(model, lambda num: model(torch.randn(num, length, dim)), num_images=3)
    projections = 4 * 2 * length * dim * dim
    products = 2 * 2 * heads * length * length * width  # scores, then their sum over values
    assert work.flops_per_image == projections + products
    assert work.num_parameters == 4 * (dim * dim + dim)


def test_a_convolution_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2))
    work = count_work(model, lambda num: model(torch.zeros(num, 3, 6, 6)), num_images=2)
    assert work.flops_per_image == 2 * (3 * 3 * 3) * 8 * (3 * 3)


def test_nothing_is_left_behind():
    model = diffusion()
    before = model.sample(4, condition=3)
    work = work_of(model)
    assert torch.equal(model.sample(4, condition=3), before)
    with pytest.raises(TypeError):  # inside a forward
        count_work(model, lambda num: model.network(None, None, None, None, None))
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert work_of(model) == work


def test_a_compiled_network_is_counted_in_its_eager_form():
    model = diffusion()
    eager = work_of(model)
    model.network.compile(backend="eager")
    model.sample(1, condition=3)
    assert work_of(model) == eager


def test_an_unknown_subnetwork_is_named():
    with pytest.raises(KeyError, match="'encoder' did not run"):
        work_of(diffusion()).subnetwork("encoder")
