import copy

import pytest
import torch
from torch import nn

from trilemma.training.muon import MuonAdamW


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(5, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 6)])
        self.head = nn.Linear(6, 5)

    def forward(self, tokens):
        x = self.token(tokens)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def take_steps(net, optimizer, num):
    torch.manual_seed(1)
    for _ in range(num):
        tokens = torch.randint(5, (16,))
        nn.functional.cross_entropy(net(tokens), tokens).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_muon_takes_the_matrices_of_the_layers_and_nothing_else(net):
    muon, adamw = MuonAdamW(net.named_parameters(), lr=0.01).param_groups
    assert muon["param_names"] == ["layers.0.weight", "layers.1.weight"]
    assert set(adamw["param_names"]) == {
        "token.weight",
        "layers.0.bias",
        "layers.1.bias",
        "head.weight",
        "head.bias",
    }


def test_equals_the_two_optimisers_run_side_by_side(net):
    other = copy.deepcopy(net)
    take_steps(net, MuonAdamW(net.named_parameters(), lr=0.01, weight_decay=0.1), 5)
    matrices = [layer.weight for layer in other.layers]
    rest = [p for p in other.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    torch.manual_seed(1)
    for _ in range(5):
        tokens = torch.randint(5, (16,))
        nn.functional.cross_entropy(other(tokens), tokens).backward()
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_resumed_run_equals_the_uninterrupted_one(net):
    other = copy.deepcopy(net)
    first = MuonAdamW(net.named_parameters(), lr=0.01)
    take_steps(net, first, 3)
    saved = copy.deepcopy((net.state_dict(), first.state_dict()))
    take_steps(net, first, 3)
    second = MuonAdamW(other.named_parameters(), lr=0.5)
    other.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    take_steps(other, second, 3)
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_schedule_moves_both_groups(net):
    optimizer = MuonAdamW(net.named_parameters(), lr=0.01)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(net.state_dict())
    take_steps(net, optimizer, 2)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_network_without_layers_is_refused():
    with pytest.raises(ValueError, match="optimizer=adamw"):
        MuonAdamW(nn.Linear(3, 3).named_parameters(), lr=0.01)
