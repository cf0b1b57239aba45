import copy

import pytest
import torch
from torch import nn

from trilemma.training.muon import MuonAdamW, mark_embeddings, orthogonalise


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


def test_two_steps_follow_the_definition(net):
    """Nesterov momentum, decoupled decay and a step of the size of AdamW's, in float64 (Liu et al. 2025, equation 4)."""
    net.double()
    optimizer = MuonAdamW(net.named_parameters(), lr=0.01, weight_decay=0.1)
    group = optimizer.param_groups[0]
    weight = net.layers[0].weight
    expected, momentum = weight.detach().clone(), torch.zeros_like(weight)
    for gradient in torch.randn(2, *weight.shape, dtype=torch.float64):
        momentum = 0.95 * momentum + 0.05 * gradient
        wanted = 0.05 * gradient + 0.95 * momentum
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 8**0.5 * orthogonalise(wanted[None], group)[0]
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-12, rtol=0)


def test_all_else_is_stepped_by_adamw(net):
    other = copy.deepcopy(net)
    take_steps(net, MuonAdamW(net.named_parameters(), lr=0.01, weight_decay=0.1), 1)
    take_steps(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.99)), 1)
    for name in ("token.weight", "head.weight", "head.bias", "layers.0.bias"):
        torch.testing.assert_close(net.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (5, 5)])
def test_singular_values_follow_the_quintic_and_vectors_stay(shape):
    """In float64: U S V^T becomes U f(S) V^T, f iterated on the singular values alone."""
    group = {"ns_coefficients": (3.4445, -4.775, 2.0315), "ns_steps": 5, "eps": 1e-7}
    matrices = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalise(matrices, group), u @ torch.diag_embed(s) @ v, atol=1e-10, rtol=0)


def test_a_cpu_orthogonalises_in_float32():
    group = {"ns_coefficients": (3.4445, -4.775, 2.0315), "ns_steps": 5, "eps": 1e-7}
    assert orthogonalise(torch.randn(1, 3, 4, dtype=torch.bfloat16), group).dtype == torch.float32


def test_embedding_tables_inside_layers_are_no_matrices(net):
    net.layers.append(nn.ModuleDict({"steps": nn.Embedding(10, 6), "linear": nn.Linear(6, 6)}))
    mark_embeddings(net)
    muon, adamw = MuonAdamW(net.named_parameters(), lr=0.01).param_groups
    assert muon["param_names"] == ["layers.0.weight", "layers.1.weight", "layers.2.linear.weight"]
    assert "layers.2.steps.weight" in adamw["param_names"]


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
