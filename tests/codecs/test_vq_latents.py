import copy

import pytest
import torch
from test_vq import build, images

from trilemma.codecs.pixels import PixelLevels
from trilemma.codecs.vq_latents import VQLatents
from trilemma.errors import UserError


def trained() -> VQLatents:
    vq = build().train()
    for seed in range(3):
        vq(images(seed=seed))
    return VQLatents(vq).freeze()


def test_codes_are_the_standardised_latents():
    codec = trained()
    cached = codec.cache(images())
    assert torch.equal(cached, codec.codec.latents(images()))
    assert torch.equal(codec.encode(images()), cached)
    codec.standardise(cached)
    code = codec.encode(images())
    assert (codec.code_shape, codec.num_classes, codec.bound) == ((4, 3, 2), None, None)
    assert code.shape == (5, 4, 3, 2)
    torch.testing.assert_close(code.mean((0, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(code.square().mean(), torch.tensor(1.0))
    assert torch.equal(codec.from_cache(cached), code)
    # One scale for all channels: distances between latents change by one factor.
    torch.testing.assert_close(
        torch.cdist(code.flatten(1), code.flatten(1)), codec.scale * torch.cdist(cached.flatten(1), cached.flatten(1))
    )


def test_decoding_quantises_first():
    codec = trained()
    codec.standardise(codec.cache(images()))
    tokens = codec.codec.encode(images())
    expected = codec.codec.decode(tokens)
    torch.testing.assert_close(codec.decode(codec.encode(images())), expected)
    # Codes near a codebook vector are as good as the vector.
    exact = (codec.codec.embed(tokens) - codec.shift) * codec.scale
    book = codec.codec.quantizer.codebook
    gap = torch.cdist(book, book).fill_diagonal_(float("inf")).min() * codec.scale
    step = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    near = exact + 0.4 * gap * step / step.norm(dim=1, keepdim=True)
    torch.testing.assert_close(codec.decode(near), expected)
    assert codec.decode(near).abs().max() <= 1


def test_codes_in_double_precision_are_decoded():
    codec = trained()
    code = codec.encode(images())
    assert torch.equal(codec.decode(code.double()), codec.decode(code))


def test_the_codebook_is_left_alone():
    codec = trained()
    state = copy.deepcopy(codec.codec.state_dict())
    codec.decode(codec.encode(images()))
    codec.standardise(codec.cache(images()))
    assert all(torch.equal(v, state[k]) for k, v in codec.codec.state_dict().items())


def test_state_dict_rebuilds_the_codec_with_its_units():
    codec = trained()
    codec.standardise(codec.cache(images()))
    rebuilt = VQLatents(build())
    rebuilt.load_state_dict(codec.state_dict())
    assert torch.equal(rebuilt.encode(images()), codec.encode(images()))


def test_another_codec_is_refused():
    with pytest.raises(UserError, match=r"codec\.experiment=mnist/vqvae"):
        VQLatents(PixelLevels((1, 4, 4), 2))
