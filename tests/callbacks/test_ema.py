import pytest
import torch
from torch import nn

from tiny_run import Stream, Tiny, TwoOptimizers, fit, trainer_of
from trilemma.callbacks.ema import EMA, ema_swapped, ema_weights
from trilemma.checkpoints.read import newest_valid, read_checkpoint
from trilemma.errors import UserError
from trilemma.quiet import quieten


@pytest.fixture(autouse=True)
def _quiet(recwarn):
    quieten()


class Holder(Tiny):
    """One float64 weight, so that averages can be computed by hand."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False, dtype=torch.float64)


def run(ema, weights):
    """Feed a sequence of weights, the first one being where training starts."""
    module = Holder()
    with torch.no_grad():
        module.net.weight.fill_(weights[0])
        ema.on_fit_start(None, module)
        for weight in weights[1:]:
            module.net.weight.fill_(weight)
            ema.on_train_batch_end(None, module)
    return module


def test_closed_form_without_warmup():
    """avg_n = d^n w_0 + (1 - d) sum_i d^(n-i) w_i."""
    weights, decays = [3.0, -1.0, 4.0, 1.5, 9.0], [0.9, 0.6]
    ema = EMA(decays, warmup=False)
    run(ema, weights)
    for d in decays:
        n = len(weights) - 1
        expected = d**n * weights[0] + (1 - d) * sum(d ** (n - i) * weights[i] for i in range(1, n + 1))
        assert ema.average(d)["net.weight"].item() == pytest.approx(expected, rel=1e-14)


def test_closed_form_with_warmup():
    """With d_n = (1 + n) / (10 + n), constant after the start, the start weighs prod d_n = n! 9! / (n + 9)!."""
    ema = EMA([0.9999])
    run(ema, [1.0] + [0.0] * 7)
    expected = 1.0
    for n in range(7):
        expected *= (1 + n) / (10 + n)
    assert ema.average()["net.weight"].item() == pytest.approx(expected, rel=1e-12)
    assert ema.num_updates == 7


def test_warmup_ends_at_the_decay():
    ema = EMA([0.2])
    run(ema, [1.0] + [0.0] * 4)  # (1 + n) / (10 + n) = 0.1, 0.1818, then 0.25 is above 0.2
    assert ema.average()["net.weight"].item() == pytest.approx(0.1 * (2 / 11) * 0.2 * 0.2, rel=1e-12)


def test_only_trainable_parameters():
    ema = EMA()
    module = Tiny()
    ema.on_fit_start(None, module)
    assert set(ema.average()) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}


class Normalised(Tiny):
    """With batch normalisation of what is trained and of what is not."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.frozen = nn.BatchNorm1d(4).requires_grad_(False)


def test_running_statistics_are_averaged_with_the_weights_they_belong_to():
    """Else an average would be normalised by what the last weights give."""
    ema, module = EMA([0.5], warmup=False), Normalised()
    ema.on_fit_start(None, module)
    assert set(ema.average()) == {f"net.{name}" for name in module.net.state_dict() if "num_batches" not in name}
    with torch.no_grad():
        module.net[1].running_mean.fill_(4.0)
        module.net[1].running_var.fill_(3.0)
        module.frozen.running_mean.fill_(5.0)
    ema.on_train_batch_end(None, module)
    with ema.swapped(module):
        assert module.net[1].running_mean.tolist() == [2.0] * 4
        assert module.net[1].running_var.tolist() == [2.0] * 4
        assert module.frozen.running_mean.tolist() == [5.0] * 4
        checkpoint = {"state_dict": dict(module.state_dict())}
        ema.on_save_checkpoint(None, module, checkpoint)
        assert checkpoint["state_dict"]["net.1.running_mean"].tolist() == [4.0] * 4, "the last weights' own"
    assert module.net[1].running_mean.tolist() == [4.0] * 4
    restored = EMA([0.5], warmup=False)
    restored.load_state_dict(ema.state_dict())
    restored.on_fit_start(None, module)
    assert restored.average()["net.1.running_var"].tolist() == [2.0] * 4


def test_low_precision_weights_have_float32_averages():
    ema = EMA([0.999], warmup=False)
    module = Tiny().to(torch.bfloat16)
    ema.on_fit_start(None, module)
    before = ema.average()["net.0.weight"].clone()
    with torch.no_grad():
        module.net[0].weight.add_(1.0)
    ema.on_train_batch_end(None, module)
    moved = ema.average()["net.0.weight"] - before
    assert moved.dtype == torch.float32
    # bfloat16 has no number between w and w + 0.001 for most w
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), atol=1e-5, rtol=0.02)


def test_swap_is_reversible_bit_for_bit():
    torch.manual_seed(0)
    ema, module = EMA([0.5], warmup=False), Tiny()
    ema.on_fit_start(None, module)
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.add_(torch.randn_like(parameter))
    ema.on_train_batch_end(None, module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    addresses = [p.data_ptr() for p in module.parameters()]
    with ema.swapped(module):
        assert torch.equal(module.net[0].weight, ema.average()["net.0.weight"])
        assert not torch.equal(module.net[0].weight, before["net.0.weight"])
        with ema.swapped(module):  # changes nothing inside
            assert torch.equal(module.net[0].weight, ema.average()["net.0.weight"])
        assert torch.equal(module.net[0].weight, ema.average()["net.0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert addresses == [p.data_ptr() for p in module.parameters()]
    with pytest.raises(ZeroDivisionError), ema.swapped(module):
        _ = 1 / 0
    assert torch.equal(module.net[0].weight, before["net.0.weight"])


def test_counts_batches_not_optimizer_steps(tmp_path):
    ema = EMA([0.5])
    trainer = trainer_of(tmp_path, [ema], enable_checkpointing=False)
    trainer.fit(TwoOptimizers(), Stream(6))
    assert trainer.global_step == 12
    assert ema.num_updates == 6


def test_validates_the_average_and_saves_the_weights(tmp_path):
    """What is validated is the average; what is saved as state_dict is not, even when saved in validation."""
    seen = {}

    class Spy(Tiny):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            seen["validated"] = self.net[0].weight.detach().clone()
            self.trainer.save_checkpoint(tmp_path / "within.ckpt", weights_only=False)

    trainer = fit(tmp_path, max_steps=5, every=5, model=Spy())
    within, after = read_checkpoint(tmp_path / "within.ckpt"), read_checkpoint(newest_valid(tmp_path / "checkpoints"))
    average = ema_weights(after)
    assert torch.equal(seen["validated"], average["net.0.weight"])
    assert torch.equal(trainer.lightning_module.net[0].weight, after["state_dict"]["net.0.weight"])
    for name, value in after["state_dict"].items():
        assert torch.equal(within["state_dict"][name], value), name
    assert not torch.equal(average["net.0.weight"], after["state_dict"]["net.0.weight"])


def test_weights_of_a_checkpoint():
    checkpoint = {"callbacks": {"EMA": {"decays": [0.9, 0.5], "averages": [{"w": 1}, {"w": 2}]}}}
    assert ema_weights(checkpoint) == {"w": 1}
    assert ema_weights(checkpoint, 0.5) == {"w": 2}
    assert ema_weights({"callbacks": {}}) is None
    with pytest.raises(UserError, match=r"decay 0\.7"):
        ema_weights(checkpoint, 0.7)


def test_no_ema_no_swap(tmp_path):
    module = Tiny()
    before = module.net[0].weight.clone()
    with ema_swapped(trainer_of(tmp_path, [], enable_checkpointing=False), module):
        assert torch.equal(module.net[0].weight, before)


@pytest.mark.parametrize("decays", [[], [1.0], [-0.1], [0.9, 0.9]])
def test_refuses_bad_decays(decays):
    with pytest.raises(UserError, match="decays"):
        EMA(decays)


def test_refuses_to_resume_with_other_decays():
    with pytest.raises(UserError, match="resume with the same decays"):
        EMA([0.99]).load_state_dict({"decays": [0.9], "num_updates": 1, "averages": [{}]})
