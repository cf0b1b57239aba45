"""A VQGAN of taming-transformers with random weights, against a small implementation of its own from the published layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trilemma.config.build import build
from trilemma.config.targets import CHECKPOINT
from trilemma.errors import UserError
from trilemma.first_stage.taming import codec_node, fill_codec

CHANNELS, MULTS, NUM_BLOCKS, Z, D, K, SIDE = 32, (1, 2), 2, 6, 5, 7, 16


@pytest.fixture(scope="module")
def state():
    """Random weights under taming's names, and those of a loss, which a released file has too."""
    torch.manual_seed(0)
    found = {}

    def conv(name, out, into, size):
        found[f"{name}.weight"] = torch.randn(out, into, size, size) / (into * size**2) ** 0.5
        found[f"{name}.bias"] = 0.1 * torch.randn(out)

    def norm(name, width):
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + 0.1 * torch.randn(width), 0.1 * torch.randn(width)

    def block(name, into, out):
        norm(f"{name}.norm1", into), conv(f"{name}.conv1", out, into, 3)
        norm(f"{name}.norm2", out), conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle(side, width):
        block(f"{side}.mid.block_1", width, width), block(f"{side}.mid.block_2", width, width)
        attention(f"{side}.mid.attn_1", width)

    widths = [CHANNELS * mult for mult in MULTS]
    conv("encoder.conv_in", CHANNELS, 3, 3)
    width = CHANNELS
    for i, wide in enumerate(widths):
        for j in range(NUM_BLOCKS):
            block(f"encoder.down.{i}.block.{j}", width, wide)
            width = wide
            if i == 1:
                attention(f"encoder.down.{i}.attn.{j}", wide)
    conv("encoder.down.0.downsample.conv", widths[0], widths[0], 3)
    middle("encoder", width), norm("encoder.norm_out", width), conv("encoder.conv_out", Z, width, 3)
    conv("quant_conv", D, Z, 1), conv("post_quant_conv", Z, D, 1)
    conv("decoder.conv_in", width, Z, 3), middle("decoder", width)
    for i in (1, 0):
        for j in range(NUM_BLOCKS + 1):
            block(f"decoder.up.{i}.block.{j}", width, widths[i])
            width = widths[i]
            if i == 1:
                attention(f"decoder.up.{i}.attn.{j}", width)
    conv("decoder.up.1.upsample.conv", widths[1], widths[1], 3)
    norm("decoder.norm_out", width), conv("decoder.conv_out", 3, width, 3)
    found["quantize.embedding.weight"] = torch.randn(K, D)
    found["loss.discriminator.main.0.weight"] = torch.randn(2)
    return found


class Published:
    """Encoder, quantiser and decoder as Esser et al. 2021 published them, in double precision."""

    def __init__(self, state):
        self.state = {name: tensor.double() for name, tensor in state.items()}

    def conv(self, name, x, **options):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def block(self, name, x):
        h = self.norm(f"{name}.norm1", x)
        h = self.conv(f"{name}.conv1", h * h.sigmoid(), padding=1)
        h = self.norm(f"{name}.norm2", h)
        h = self.conv(f"{name}.conv2", h * h.sigmoid(), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, name, x):
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))

    def level(self, name, x, num):
        for j in range(num):
            x = self.block(f"{name}.block.{j}", x)
            if f"{name}.attn.{j}.q.weight" in self.state:
                x = self.attention(f"{name}.attn.{j}", x)
        return x

    def middle(self, side, x):
        return self.block(
            f"{side}.mid.block_2", self.attention(f"{side}.mid.attn_1", self.block(f"{side}.mid.block_1", x))
        )

    def out(self, side, x):
        x = self.norm(f"{side}.norm_out", x)
        return self.conv(f"{side}.conv_out", x * x.sigmoid(), padding=1)

    def encode(self, x):
        x = self.level("encoder.down.0", self.conv("encoder.conv_in", x, padding=1), NUM_BLOCKS)
        x = self.conv("encoder.down.0.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        x = self.middle("encoder", self.level("encoder.down.1", x, NUM_BLOCKS))
        return self.conv("quant_conv", self.out("encoder", x))

    def code(self, x):
        book = self.state["quantize.embedding.weight"]
        return (
            torch.cdist(self.encode(x).movedim(1, -1).flatten(0, 2), book).argmin(1).view(len(x), SIDE // 2, SIDE // 2)
        )

    def decode(self, code):
        x = self.conv("post_quant_conv", self.state["quantize.embedding.weight"][code].movedim(-1, 1))
        x = self.middle("decoder", self.conv("decoder.conv_in", x, padding=1))
        x = self.level("decoder.up.1", x, NUM_BLOCKS + 1)
        x = self.conv("decoder.up.1.upsample.conv", F.interpolate(x, scale_factor=2.0, mode="nearest"), padding=1)
        return self.out("decoder", self.level("decoder.up.0", x, NUM_BLOCKS + 1))


@pytest.fixture(scope="module")
def codec(state):
    built = build(codec_node(state, SIDE), allowed=CHECKPOINT, where="codec")
    fill_codec(built, state)
    return built.double().freeze()


def images(num=3):
    return torch.rand(num, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def test_sizes_are_read_from_the_weights(state):
    node = codec_node(state, SIDE)
    for side, sizes in (
        ("encoder", {"in_channels": 3, "out_channels": D}),
        ("decoder", {"in_channels": D, "out_channels": 3}),
    ):
        said = {key: value for key, value in node[side].items() if key != "_target_"}
        assert said == sizes | {
            "image_size": SIDE,
            "channels": CHANNELS,
            "channel_mults": list(MULTS),
            "num_res_blocks": NUM_BLOCKS,
            "attention_resolutions": [SIDE // 2],
            "latent_channels": Z,
        }
    assert (node["quantizer"]["codebook_size"], node["quantizer"]["dim"]) == (K, D)


def test_latents_codes_and_images_are_those_of_the_published_model(state, codec):
    published = Published(state)
    torch.testing.assert_close(codec.latents(images()), published.encode(images()), rtol=1e-9, atol=1e-9)
    code = codec.encode(images())
    assert code.unique().numel() > 2
    assert torch.equal(code, published.code(images()))
    torch.testing.assert_close(codec.decoder(codec.embed(code)), published.decode(code), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["quantize.embedding.weight", "decoder.conv_out.weight"])
def test_another_models_state_dict_is_refused(state, name):
    with pytest.raises(UserError, match=f"has no {name}"):
        codec_node({key: tensor for key, tensor in state.items() if key != name}, SIDE)


def test_an_image_size_that_cannot_be_halved_is_refused(state):
    with pytest.raises(UserError, match="image_size=15: this VQGAN halves images 1 times"):
        codec_node(state, 15)


def test_a_missing_or_misshapen_tensor_is_refused(state, codec):
    name = "decoder.up.1.block.0.conv1.weight"
    for wrong in ({key: tensor for key, tensor in state.items() if key != name}, state | {name: state[name][:3]}):
        with pytest.raises(UserError, match=r"decoder\.layers|decoder\.\d"):
            fill_codec(codec, wrong)


def test_the_network_of_the_released_model_has_its_number_of_parameters():
    """VQGAN of factor 16 with 1,024 codes: as many weights as its published table of layers has."""
    from trilemma.networks.attention_autoencoder import AttentionDecoder, AttentionEncoder

    with torch.device("meta"):
        encoder = AttentionEncoder(in_channels=3, image_size=256)
        decoder = AttentionDecoder(in_channels=256, image_size=256)
    assert encoder.code_size(256, 256) == (16, 16)
    assert decoder.image_size(16, 16) == (256, 256)
    assert sum(isinstance(m, nn.Conv2d) for m in encoder.modules()) > 30
    assert 60e6 < sum(p.numel() for part in (encoder, decoder) for p in part.parameters()) < 80e6
