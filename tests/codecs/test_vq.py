import copy

import pytest
import torch
from torch import nn

from trilemma.codecs.quantizer import EMAQuantizer
from trilemma.codecs.vq import VQ
from trilemma.errors import UserError
from trilemma.networks.autoencoder import ConvDecoder, ConvEncoder


def build(image_shape=(1, 12, 8), *, dim: int = 4, decoder_dim: int = 4, **quantizer) -> VQ:
    torch.manual_seed(0)
    return VQ(
        image_shape=image_shape,
        encoder=ConvEncoder(
            in_channels=image_shape[0], channels=8, out_channels=4, num_downsamples=2, num_res_blocks=1
        ),
        decoder=ConvDecoder(
            in_channels=decoder_dim, channels=8, out_channels=image_shape[0], num_upsamples=2, num_res_blocks=1
        ),
        quantizer=EMAQuantizer(**{"codebook_size": 6, "dim": dim, **quantizer}),
    )


def images(num: int = 5, shape=(1, 12, 8), seed: int = 1) -> torch.Tensor:
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(channels):
    codec = build([channels, 12, 8])
    x = images(shape=(channels, 12, 8))
    assert codec.image_shape == (channels, 12, 8)
    assert codec.code_shape == (3, 2)
    assert codec.length == 6
    assert codec.num_classes == 6
    code = codec.encode(x)
    assert code.shape == (5, 3, 2)
    assert code.dtype == torch.int64
    assert codec.latents(x).shape == codec.embed(code).shape == (5, 4, 3, 2)
    assert codec.decode(code).shape == x.shape
    assert codec.decode(code).abs().max() <= 1


def test_training_reaches_all_parameters_and_moves_the_codebook():
    codec = build().train()
    before = codec.quantizer.codebook.clone()
    output = codec(images())
    (output.reconstruction.square().mean() + output.commitment).backward()
    assert all(p.grad is not None and p.grad.any() for p in codec.parameters())
    assert not torch.equal(codec.quantizer.codebook, before)


def test_forward_in_evaluation_is_encode_then_decode():
    codec = build().eval()
    output = codec(images())
    assert torch.equal(output.code, codec.encode(images()))
    assert torch.equal(output.reconstruction.clamp(-1, 1), codec.decode(output.code))
    expected = codec.quantizer.commitment * (codec.latents(images()) - codec.embed(output.code)).square().mean()
    torch.testing.assert_close(output.commitment, expected)


@pytest.mark.parametrize("training", [True, False])
def test_encoding_changes_nothing(training):
    codec = build().train(training)
    state = copy.deepcopy(codec.state_dict())
    random_state = torch.get_rng_state()
    code = codec.encode(images())
    codec.decode(code)
    assert all(torch.equal(v, state[k]) for k, v in codec.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_state_dict_rebuilds_the_codec_bit_for_bit():
    trained = build().train()
    for seed in range(3):
        trained(images(seed=seed))
    trained.eval()
    rebuilt = build()
    rebuilt.load_state_dict(trained.state_dict())
    rebuilt.eval()
    assert torch.equal(rebuilt.encode(images()), trained.encode(images()))
    assert torch.equal(rebuilt(images()).reconstruction, trained(images()).reconstruction)


def test_a_frozen_codec_stays_as_it_is_inside_a_training_parent():
    parent = nn.ModuleList([build().freeze(), nn.Dropout()])
    parent.train()
    codec = parent[0]
    assert not any(module.training for module in codec.modules())
    assert parent[1].training
    assert not any(p.requires_grad for p in codec.parameters())
    state = copy.deepcopy(codec.state_dict())
    codec(images())
    assert all(torch.equal(v, state[k]) for k, v in codec.state_dict().items())


def test_gradient_flows_to_latents_through_a_frozen_decoder():
    codec = build().freeze()
    latents = codec.embed(codec.encode(images())).requires_grad_()
    codec.decoder(latents).sum().backward()
    assert latents.grad.any()


def test_an_image_that_cannot_be_halved_names_the_setting():
    with pytest.raises(UserError, match=r"set data\.size to a multiple of 4"):
        build((1, 14, 8))


@pytest.mark.parametrize(("parts", "name"), [({"dim": 5}, "encoder.out_channels"), ({"decoder_dim": 5}, "decoder.in")])
def test_parts_that_do_not_fit_are_refused(parts, name):
    with pytest.raises(ValueError, match=name):
        build(**parts)


def test_it_learns():
    """A few steps on four patterns bring the error well below that of the best constant."""
    torch.manual_seed(0)
    codec = build(decay=0.8).train()
    patterns = images(4).sign()
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-2)
    for _ in range(150):
        batch = patterns[torch.randint(4, (16,))]
        output = codec(batch)
        optimizer.zero_grad()
        (nn.functional.mse_loss(output.reconstruction, batch) + output.commitment).backward()
        optimizer.step()
    codec.eval()
    error = nn.functional.mse_loss(codec.decode(codec.encode(patterns)), patterns)
    assert error < 0.5 * patterns.var()


def test_a_codebook_larger_than_the_tokens_of_the_data_is_refused():
    codec = build(codebook_size=13)
    codec.check_codebook(3)
    codec.check_codebook(None)
    with pytest.raises(UserError, match="has 13 codes, more than the 12 tokens of 2 training images"):
        codec.check_codebook(2)
