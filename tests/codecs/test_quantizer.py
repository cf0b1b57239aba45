import pytest
import torch
from torch import Tensor

from trilemma.codecs.quantizer import EMAQuantizer

K, D = 7, 3


def build(**overrides) -> EMAQuantizer:
    torch.manual_seed(0)
    return EMAQuantizer(
        **{
            "codebook_size": K,
            "dim": D,
            "commitment": 0.25,
            "kmeans_init": False,
            "dead_code_threshold": 0.0,
            **overrides,
        }
    )


def latents(num: int = 4, scale: float = 1.0, seed: int = 1) -> Tensor:
    return scale * torch.randn(num, D, 5, 2, generator=torch.Generator().manual_seed(seed))


def brute_force(z: Tensor, codebook: Tensor) -> Tensor:
    flat = z.movedim(1, -1).reshape(-1, D)
    found = [min(range(len(codebook)), key=lambda k: (v - codebook[k]).square().sum().item()) for v in flat.double()]
    return torch.tensor(found).view(z.shape[0], *z.shape[2:])


@pytest.mark.parametrize("training", [True, False])
def test_code_is_the_nearest_codebook_vector(training):
    quantizer = build().train(training)
    z = latents()
    expected = brute_force(z, quantizer.codebook.double())
    assert torch.equal(quantizer.nearest(z), expected)
    before = quantizer.codebook.clone()
    out = quantizer(z)
    assert torch.equal(out.code, expected)
    torch.testing.assert_close(out.latents, before[expected].movedim(-1, 1))
    torch.testing.assert_close(out.commitment, 0.25 * (before[expected].movedim(-1, 1) - z).square().mean())


def test_embed_inverts_nearest_at_the_codes_themselves():
    quantizer = build()
    code = torch.arange(K).view(1, K, 1)
    assert quantizer.embed(code).shape == (1, D, K, 1)
    assert torch.equal(quantizer.nearest(quantizer.embed(code)), code)


def test_one_update_equals_the_moving_average_formula():
    """N <- g N + (1 - g) n and m <- g m + (1 - g) sum z, and e = m / N (van den Oord et al. 2017, appendix A.1)."""
    decay = 0.9
    quantizer = build(decay=decay).train()
    z = latents()
    codebook = quantizer.codebook.double().clone()
    code = brute_force(z, codebook).flatten()
    flat = z.movedim(1, -1).reshape(-1, D).double()
    one_hot = torch.nn.functional.one_hot(code, K).double()
    counts = decay * torch.ones(K).double() + (1 - decay) * one_hot.sum(0)  # every count starts at one
    sums = decay * codebook + (1 - decay) * one_hot.T @ flat
    quantizer(z)
    eps = 1e-5  # Laplace smoothing of the counts, which keeps their sum
    smoothed = (counts + eps) / (counts.sum() + K * eps) * counts.sum()
    torch.testing.assert_close(quantizer.codebook.double(), sums / smoothed[:, None], rtol=0, atol=1e-6)


def test_gradient_passes_straight_through():
    quantizer = build(gradient="straight_through").train()
    z = latents().requires_grad_()
    weight = torch.randn_like(z)
    (quantizer(z).latents * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)


def test_rotation_turns_and_scales_the_gradient():
    """q = (|q| / |z|) R z, R held fixed: gradients scale by |q| / |z|, and their angle to q becomes one to z."""
    quantizer = build(gradient="rotation").train()
    z = latents().requires_grad_()
    out = quantizer(z)
    weight = torch.randn_like(z)
    q = out.latents.detach()
    (out.latents * weight).sum().backward()
    ratio = q.norm(dim=1) / z.detach().norm(dim=1)
    torch.testing.assert_close(z.grad.norm(dim=1), ratio * weight.norm(dim=1), rtol=1e-4, atol=1e-5)
    along_z = (z.grad * z.detach()).sum(1)
    torch.testing.assert_close(along_z, (weight * q).sum(1), rtol=1e-4, atol=1e-4)


def test_commitment_gradient_pulls_latents_only():
    quantizer = build(commitment=2.0).train()
    z = latents().requires_grad_()
    before = quantizer.codebook.clone()
    out = quantizer(z)
    out.commitment.backward()
    expected = 2.0 * 2 * (z.detach() - before[out.code].movedim(-1, 1)) / z.numel()
    torch.testing.assert_close(z.grad, expected)
    assert list(quantizer.parameters()) == []


def test_a_dead_code_comes_back_among_the_latents_and_is_given_time():
    quantizer = build(dead_code_threshold=0.1, decay=0.9).train()
    state = quantizer.vq._codebook
    state.embed[0, 3] = state.embed_avg[0, 3] = 1e6
    state.cluster_size[0, 3] = 0.0
    z = latents()
    even_share = 40 / K
    quantizer(z)
    revived = quantizer.codebook[3]
    assert (z.movedim(1, -1).reshape(-1, D) == revived).all(1).any()
    assert state.cluster_size[0, 3].item() == pytest.approx(even_share)
    revived = revived.clone()
    quantizer(latents(scale=0.0) - 100.0)  # nothing near it: it lives on for a while on the share it was given
    assert state.cluster_size[0, 3].item() == pytest.approx(0.9 * even_share)
    torch.testing.assert_close(quantizer.codebook[3], revived, rtol=1e-4, atol=1e-4)


def test_threshold_zero_never_replaces_a_code():
    quantizer = build(dead_code_threshold=0.0).train()
    quantizer.vq._codebook.embed[0, 3] = quantizer.vq._codebook.embed_avg[0, 3] = 1e6
    for seed in range(5):
        quantizer(latents(seed=seed))
    assert quantizer.codebook[3].min() > 1e5


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_expiry_alone_brings_all_codes_to_use(threshold):
    """All codes start at one spot far from the data, where all but one of them are dead and without expiry stay so."""
    quantizer = build(dead_code_threshold=threshold, decay=0.8).train()
    spot = 100.0 + 1e-3 * torch.randn(K, D)
    quantizer.vq._codebook.embed[0] = quantizer.vq._codebook.embed_avg[0] = spot
    for seed in range(60):
        quantizer(latents(num=8, seed=seed))
    alive = quantizer.nearest(latents(num=50)).unique().numel()
    assert alive == K if threshold > 0 else alive == 1


def test_kmeans_starts_on_the_first_training_batch_and_not_before():
    quantizer = build(kmeans_init=True)
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    random_state = torch.get_rng_state()
    quantizer.eval()(latents())
    quantizer.train().nearest(latents())
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert quantizer.codebook.unique(dim=0).shape[0] == K
    z = 100 + latents()
    quantizer(z)
    assert (quantizer.codebook > 90).all()


def test_first_batch_smaller_than_the_codebook_is_quiet(capfd):
    quantizer = build(kmeans_init=True, codebook_size=64, dead_code_threshold=0.1).train()
    quantizer(latents(num=1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kmeans_init", [True, False])
def test_state_dict_resumes_bit_for_bit(kmeans_init):
    def advance(quantizer: EMAQuantizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            quantizer(latents(seed=seed))

    straight = build(kmeans_init=kmeans_init, dead_code_threshold=0.5).train()
    advance(straight, range(6))
    stopped = build(kmeans_init=kmeans_init, dead_code_threshold=0.5).train()
    advance(stopped, range(3))
    torch.manual_seed(99)
    resumed = EMAQuantizer(codebook_size=K, dim=D, kmeans_init=kmeans_init, dead_code_threshold=0.5).train()
    resumed.load_state_dict(stopped.state_dict())
    advance(resumed, range(3, 6))
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_low_precision_latents_are_quantised_in_float32():
    quantizer = build().eval()
    z = latents().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(z)
    assert out.latents.dtype == torch.float32
    assert torch.equal(out.code, brute_force(z.float(), quantizer.codebook.double()))


@pytest.mark.parametrize(
    "wrong", [{"codebook_size": 1}, {"decay": 1.0}, {"dead_code_threshold": 1.0}, {"gradient": "rotate"}]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(**wrong)
