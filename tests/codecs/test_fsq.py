import pytest
import torch
import vector_quantize_pytorch
from test_vq import images
from torch import Tensor

from trilemma.codecs.fsq import FSQ
from trilemma.codecs.vq import VQ
from trilemma.codecs.vq_latents import VQLatents
from trilemma.networks.autoencoder import ConvDecoder, ConvEncoder

LEVELS = [(8, 6, 5), (5, 5, 5), (3,), (4, 3, 7, 8)]


def latents(levels, num: int = 6, dtype=torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2.0 * torch.randn(num, len(levels), 5, 4, generator=generator, dtype=dtype)


def codec(levels=(5, 4, 3)) -> VQ:
    torch.manual_seed(0)
    widths = {"channels": 8, "num_res_blocks": 1}
    encoder = ConvEncoder(in_channels=1, out_channels=len(levels), num_downsamples=2, **widths)
    with torch.no_grad():
        encoder.layers[-1].weight.mul_(50.0)  # else all latents are near zero, and of one code
    return VQ(
        image_shape=(1, 12, 8),
        encoder=encoder,
        decoder=ConvDecoder(in_channels=len(levels), out_channels=1, num_upsamples=2, **widths),
        quantizer=FSQ(levels),
    )


@pytest.mark.parametrize("levels", LEVELS)
def test_index_and_code_are_a_bijection(levels):
    quantizer = FSQ(levels)
    index = torch.arange(quantizer.codebook_size).view(1, -1, 1)
    code = quantizer.embed(index)
    assert code.flatten(2)[0].unique(dim=1).shape[1] == quantizer.codebook_size
    assert code.abs().max() <= 1
    # What the tanh makes of a latent is undone, so that each code is reached.
    half = (quantizer.num_levels - 1) * 1.001 / 2
    offset = (quantizer.num_levels % 2 == 0) / 2
    reaching = ((code * (quantizer.num_levels // 2) + offset) / half).double()
    latent = torch.atanh(reaching) - torch.atanh(offset / half)
    assert torch.equal(quantizer.nearest(latent), index)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("training", [True, False])
def test_values_indices_and_gradients_are_those_of_vector_quantize_pytorch(levels, training):
    reference = vector_quantize_pytorch.FSQ(list(levels), channel_first=True)
    quantizer = FSQ(levels).train(training)
    assert (quantizer.dim, quantizer.codebook_size) == (len(levels), reference.codebook_size)
    torch.testing.assert_close(quantizer.codebook, reference.implicit_codebook, check_dtype=False)
    mine, theirs = latents(levels).requires_grad_(), latents(levels).requires_grad_()
    values, indices = reference(theirs)
    found = quantizer(mine)
    assert torch.equal(found.code, indices.long())
    assert torch.equal(quantizer.nearest(mine), found.code)
    torch.testing.assert_close(found.latents, values)
    torch.testing.assert_close(quantizer.embed(found.code), values.detach())
    assert found.commitment == 0
    weight = torch.randn_like(values)
    (found.latents * weight).sum().backward()
    (values * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_a_latent_of_zero_is_the_code_of_zero():
    """Zeros are what an encoder gives at first: they must not lie on the border of two codes."""
    quantizer = FSQ((8, 5))
    for sign in (1.0, -1.0):
        code = quantizer.nearest(torch.full((1, 2, 1, 1), sign * 1e-4))
        assert not quantizer.embed(code).any()


def test_low_precision_latents_are_quantised_in_float32():
    quantizer = FSQ((8, 8))
    z = latents((8, 8)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(z)
    assert found.latents.dtype == torch.float32
    assert torch.equal(found.code, quantizer.nearest(z.float()))


def test_it_is_a_codec_without_anything_to_learn_between_encoder_and_decoder():
    built = codec().train()
    assert (built.code_shape, built.num_classes) == ((3, 2), 60)
    output = built(images())
    assert output.code.unique().numel() > 1
    output.reconstruction.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in built.parameters())
    assert torch.equal(output.code, built.encode(images()))
    assert torch.equal(output.reconstruction.clamp(-1, 1), built.decode(output.code))
    rebuilt = codec()
    rebuilt.load_state_dict(built.state_dict())
    assert torch.equal(rebuilt.encode(images()), built.encode(images()))
    assert not any("quantizer" in key for key in built.state_dict())


def test_latents_before_the_quantiser_are_a_codec_too():
    built = codec().freeze()
    before = VQLatents(built)
    assert before.code_shape == (3, 3, 2)
    torch.testing.assert_close(before.decode(before.encode(images())), built.decode(built.encode(images())))


@pytest.mark.parametrize("levels", [(), (5, 2), (0,)])
def test_wrong_levels_are_refused(levels):
    with pytest.raises(ValueError, match="levels="):
        FSQ(levels)
