"""The causal transformer: what each place sees, and a cache that changes nothing, in float64."""

import pytest
import torch
from torch import nn

from trilemma.errors import UserError
from trilemma.networks.transformer.causal import CausalTransformer, KeyValueCache

B, K, M, SHAPE, L = 3, 5, 4, (2, 3), 6


def build(**options):
    torch.manual_seed(0)
    options = {"num_classes": K, "code_shape": SHAPE, "dim": 8, "depth": 2, "num_heads": 2, **options}
    network = CausalTransformer(**options).double().eval()
    for p in network.parameters():
        nn.init.normal_(p, std=0.4)
    return network


def inputs(network):
    """Tokens, and the conditions that the network was built for; captions of 4, 0 and 2 words."""
    torch.manual_seed(1)
    conditions = {}
    if network.condition_dim:
        conditions["pooled"] = torch.randn(B, network.condition_dim).double()
    if network.context_dim:
        conditions["context"] = torch.randn(B, M, network.context_dim).double()
        conditions["context_mask"] = torch.arange(M) < torch.tensor([4, 0, 2])[:, None]
    return torch.randint(K, (B, L)), conditions


NETWORKS = {
    "plain": {},
    "label": {"condition_dim": 7},
    "text": {"context_dim": 6},
    "label and text": {"condition_dim": 7, "context_dim": 6},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_token_is_predicted_from_all_before_it_and_nothing_else(name):
    """The Jacobian of every place's logits in every embedded token: zero from the diagonal on, and nowhere before it."""
    network = build(**NETWORKS[name])
    tokens, conditions = inputs(network)
    embedded = torch.randn(1, L - 1, 8, dtype=torch.float64, requires_grad=True)
    network.token.forward = lambda tokens: embedded[:, : tokens.shape[1]]
    out = network(tokens[:1], **{k: v[:1] for k, v in conditions.items()})
    rows = [torch.autograd.grad(o, embedded, retain_graph=True)[0] for o in out.square().sum((0, 2))]
    sees = torch.stack([row.abs().sum((0, 2)) for row in rows]) > 0
    assert torch.equal(sees, torch.ones(L, L).tril(-1).bool()[:, :-1])


def test_every_token_sees_the_words_that_are_there_and_no_others():
    network = build(context_dim=6)
    tokens, conditions = inputs(network)
    context = conditions["context"].requires_grad_()
    out = network(tokens, **conditions)
    for place in range(L):
        [gradient] = torch.autograd.grad(out[:, place].square().sum(), context, retain_graph=True)
        assert torch.equal(gradient.abs().sum(2) > 0, conditions["context_mask"])


def test_words_that_are_not_there_change_nothing_wherever_they_would_stand():
    network = build(context_dim=6)
    tokens, conditions = inputs(network)
    two_words = {"context": conditions["context"][2:, :2], "context_mask": torch.ones(1, 2, dtype=torch.bool)}
    unmasked = {"context": conditions["context"][2:, :2]}
    whole = network(tokens, **conditions)[2:]
    torch.testing.assert_close(network(tokens[2:], **two_words), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(network(tokens[2:], **unmasked), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pieces", [[0, 1, 1, 1, 1, 1], [3, 1, 1], [0, 3, 2], [5], [1, 4]])
def test_a_cache_gives_the_logits_of_a_whole_pass_however_the_tokens_come(name, pieces):
    network = build(**NETWORKS[name])
    tokens, conditions = inputs(network)
    whole, cache, done, found = network(tokens, **conditions), KeyValueCache(), 0, []
    for n in pieces:
        found.append(network(tokens[:, done : done + n], **conditions, cache=cache))
        done += n
    torch.testing.assert_close(torch.cat(found, 1), whole[:, : done + 1], rtol=0, atol=1e-12)


def test_only_new_tokens_are_computed():
    """One forward hook a layer: n places in the first call, one in each later one."""
    network = build(context_dim=6)
    tokens, conditions = inputs(network)
    lengths, cache = [], KeyValueCache()
    network.layers[0].register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    for i in range(-1, 3):
        network(tokens[:, max(i, 0) : i + 1], **conditions, cache=cache)
    assert lengths == [M + 1, 1, 1, 1]


def test_it_starts_with_equal_probabilities_and_every_weight_learns():
    torch.manual_seed(0)
    network = CausalTransformer(
        num_classes=K, code_shape=SHAPE, dim=8, depth=2, num_heads=2, condition_dim=7, context_dim=6
    ).double()
    tokens, conditions = inputs(network)
    assert not network(tokens, **conditions).any()
    nn.init.normal_(network.head.weight)
    network(tokens, **conditions).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_refusals():
    with pytest.raises(UserError, match=r"set network\.num_heads to a divisor"):
        build(num_heads=3)
    with pytest.raises(UserError, match="codec=vq, codec=pixels_256 or codec=pixels_2"):
        build(num_classes=None)
    with pytest.raises(ValueError, match="`pooled` is missing"):
        build(condition_dim=7)(torch.zeros(B, L, dtype=torch.int64))
    with pytest.raises(ValueError, match="`context` was given"):
        build()(torch.zeros(B, L, dtype=torch.int64), context=torch.zeros(B, M, 6).double())
