import pytest
import torch

from trilemma.conditions.base import Condition
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.errors import UserError
from trilemma.samplers.base import Prediction
from trilemma.samplers.guidance import ClassifierFree, Guidance


def prediction(seed):
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Prediction(log_x0=logits.log_softmax(-1), weighting="joint")


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_the_guided_distribution_is_proportional_to_the_weighted_product(scale):
    null, conditional = prediction(0), prediction(1)
    guided = ClassifierFree(scale).on_prediction([null, conditional], None, torch.zeros(2, 3), 0.5)
    product = null.log_x0.exp() ** (1 - scale) * conditional.log_x0.exp() ** scale
    torch.testing.assert_close(guided.log_x0.softmax(-1), product / product.sum(-1, keepdim=True))
    assert guided.weighting == "joint"


def test_gaussian_predictions_are_extrapolated():
    null, conditional = (
        Prediction(
            x0=torch.full((2, 1), v), variance_fraction=torch.full((2, 1), v), bound=v, x0_variance=torch.tensor(v)
        )
        for v in (1.0, 3.0)
    )
    guided = ClassifierFree(2.0).on_prediction([null, conditional], None, torch.zeros(2, 1), 0.5)
    assert guided.x0.tolist() == [[5.0], [5.0]]
    assert guided.variance_fraction.tolist() == [[3.0], [3.0]]
    assert (guided.bound, float(guided.x0_variance)) == (3.0, 3.0)
    with pytest.raises(ValueError, match="both"):
        ClassifierFree(2.0).on_prediction([null, prediction(0)], None, torch.zeros(2, 1), 0.5)


def test_the_null_is_not_run_against_itself():
    nothing = LabelCondition(3, 4)(None, num=2)
    assert nothing.is_null
    assert ClassifierFree(2.0).branches(nothing, 0.5) == [nothing]
    asked = LabelCondition(3, 4)([0, 1], num=2)
    assert not asked.is_null
    assert asked.null.is_null
    assert len(ClassifierFree(2.0).branches(asked, 0.5)) == 2
    assert nothing.to("cpu").is_null


def test_branches():
    null = Condition(2, pooled=torch.zeros(2, 3))
    condition = Condition(2, pooled=torch.ones(2, 3), null=null)
    assert Guidance().branches(condition, 0.5) == [condition]
    assert ClassifierFree(1.0).branches(condition, 0.5) == [condition]
    assert ClassifierFree(0.0).branches(condition, 0.5) == [null]
    interval = ClassifierFree(3.0, start=0.75, stop=0.25)
    assert [len(interval.branches(condition, t)) for t in (1.0, 0.75, 0.5, 0.25, 0.2)] == [1, 2, 2, 2, 1]


def test_a_model_without_a_null_condition_cannot_be_guided():
    plain = Condition(2)
    assert ClassifierFree(1.0).branches(plain, 0.5) == [plain]
    for scale in (0.0, 2.0):
        with pytest.raises(UserError, match="unconditional checkpoint"):
            ClassifierFree(scale).branches(plain, 0.5)


def test_an_encoder_without_a_null_is_refused_unless_the_scale_needs_none():
    for encoder in (LabelCondition(3, 4), NoCondition()):
        ClassifierFree(1.0).check_encoder(encoder)
        Guidance().check_encoder(encoder)
    ClassifierFree(2.0).check_encoder(LabelCondition(3, 4))
    for scale in (0.0, 2.0):
        with pytest.raises(UserError, match=rf"guidance\.scale={scale:g} .*condition=none.*guidance\.scale=1"):
            ClassifierFree(scale).check_encoder(NoCondition())


@pytest.mark.parametrize("options", [{"scale": float("nan")}, {"scale": 2.0, "start": 0.2, "stop": 0.5}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=r"guidance\."):
        ClassifierFree(**options)
