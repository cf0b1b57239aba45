import json

import pytest
import torch
from torch import nn

from trilemma.errors import UserError
from trilemma.evaluation.cost.ledger import measure_ledger
from trilemma.samplers.guidance import Guidance


class Toy(nn.Module):
    """Samples in one call of one layer, and writes down what it was asked for."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(2, 12)
        self.asked = []

    def examples(self, num):
        return None

    def sample(self, num_images, *, condition=None, sampler=None, guidance=None, seed=0, first_index=0, on_step=None):
        self.asked.append((num_images, condition, sampler, guidance, seed))
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.generator(torch.ones(num_images, 2)).view(num_images, 3, 2, 2)


def test_the_ledger_of_a_setting_goes_through_json():
    model = Toy()
    guidance = Guidance()
    ledger = measure_ledger(model, condition=4, guidance=guidance, seed=7, batch_sizes=[1, 8], num_runs=3)
    assert {asked[1:] for asked in model.asked} == {(4, None, guidance, 7)}
    assert {asked[0] for asked in model.asked} == {1, 8}
    assert model.training
    plain = ledger.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["work"]["subnetworks"] == [
        {
            "name": "generator",
            "counted_at": "generator",
            "num_calls": 1,
            "evaluations_per_image": 1.0,
            "flops_per_image": 48.0,
            "num_parameters": 36,
        }
    ]
    assert [rate["batch_size"] for rate in plain["throughput"]["tried"]] == [1, 8]
    assert plain["latency"]["num_runs"] == 3
    assert [peak["batch_size"] for peak in plain["memory"]] in ([], [1, ledger.throughput.batch_size])


def test_what_does_not_sample_is_refused():
    with pytest.raises(UserError, match="a Linear does not sample"):
        measure_ledger(nn.Linear(1, 1))


def test_training_mode_is_restored_after_an_error():
    model = Toy()
    model.generator = None
    with pytest.raises(TypeError):
        measure_ledger(model)
    assert model.training
