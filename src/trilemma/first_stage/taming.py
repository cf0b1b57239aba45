"""A VQGAN of taming-transformers, read from its state dict."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trilemma.codecs.quantizer import EMAQuantizer
from trilemma.codecs.vq import VQ
from trilemma.errors import UserError
from trilemma.networks.attention_autoencoder import Halve, NormResidual, SingleHeadAttention
from trilemma.networks.unet.layers import Upsample

_CODEBOOK = "quantize.embedding.weight"


def codec_node(state: Mapping[str, Tensor], image_size: int) -> dict[str, Any]:
    """Describe the codec whose weights a state dict of a taming `VQModel` holds; all but the images' size is in its shapes.

    Args:
        state: Its tensors by name.
        image_size: Height and width of the images that it was trained on.

    Raises:
        UserError: If it is no state dict of a `VQModel`, or images of that size cannot be halved so often.
    """
    needed = (
        "encoder.conv_in.weight",
        "encoder.conv_out.weight",
        "quant_conv.weight",
        "decoder.conv_out.weight",
        _CODEBOOK,
    )
    if missing := [name for name in needed if name not in state]:
        raise UserError(
            f"no VQModel of taming-transformers: its state dict has no {missing[0]} (a Gumbel VQGAN is not read)"
        )
    channels, in_channels = state["encoder.conv_in.weight"].shape[:2]
    num_grids = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.down."))
    grids = [f"encoder.down.{i}" for i in range(num_grids)]
    if image_size % 2 ** (num_grids - 1):
        raise UserError(f"image_size={image_size}: this VQGAN halves images {num_grids - 1} times")
    latent_channels, dim = state["encoder.conv_out.weight"].shape[0], state[_CODEBOOK].shape[1]
    network = {
        "image_size": image_size,
        "channels": channels,
        "channel_mults": [state[f"{grid}.block.0.conv1.weight"].shape[0] // channels for grid in grids],
        "num_res_blocks": sum(
            re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name) is not None for name in state
        ),
        "attention_resolutions": [
            image_size >> i for i, grid in enumerate(grids) if f"{grid}.attn.0.q.weight" in state
        ],
        "latent_channels": latent_channels,
    }
    module = "trilemma.networks.attention_autoencoder"
    return {
        "_target_": f"{VQ.__module__}.{VQ.__name__}",
        "image_shape": [in_channels, image_size, image_size],
        "encoder": {
            "_target_": f"{module}.AttentionEncoder",
            "in_channels": in_channels,
            "out_channels": dim,
            **network,
        },
        "decoder": {
            "_target_": f"{module}.AttentionDecoder",
            "in_channels": dim,
            "out_channels": in_channels,
            **network,
        },
        "quantizer": {
            "_target_": f"{EMAQuantizer.__module__}.{EMAQuantizer.__name__}",
            "codebook_size": state[_CODEBOOK].shape[0],
            "dim": dim,
            "kmeans_init": False,
        },
    }


@torch.no_grad()
def fill_codec(codec: VQ, state: Mapping[str, Tensor]) -> None:
    """Copy the weights of a taming `VQModel` into the codec that `codec_node` describes.

    Args:
        codec: Changed in place.
        state: As in `codec_node`.

    Raises:
        UserError: If a tensor is missing or of another shape.
    """
    for side, names in (("encoder", _encoder_names), ("decoder", _decoder_names)):
        layers = getattr(codec, side).layers
        own = {}
        for layer, name in zip([m for m in layers if any(True for _ in m.parameters())], names(layers), strict=True):
            own.update({id(p): tensor for p, tensor in _pairs(layer, name, state)})
        for key, p in layers.named_parameters():
            if id(p) not in own or own[id(p)].shape != p.shape:
                raise UserError(
                    f"the state dict does not fit a VQModel of its own sizes: {side}.{key} has no tensor of its shape"
                )
            p.copy_(own[id(p)])
    assert isinstance(codec.quantizer, EMAQuantizer)
    codec.quantizer.take_codebook(state[_CODEBOOK])


def _encoder_names(layers: Any) -> Iterator[str]:
    yield "encoder.conv_in"
    grid, blocks, attentions = 0, 0, 0
    grids = [i for i, layer in enumerate(layers) if isinstance(layer, Halve)]
    middle = len(layers) - 7
    for i, layer in enumerate(layers):
        if 0 < i < middle and isinstance(layer, NormResidual):
            yield f"encoder.down.{grid}.block.{blocks}"
            blocks += 1
        elif 0 < i < middle and isinstance(layer, SingleHeadAttention):
            yield f"encoder.down.{grid}.attn.{attentions}"
            attentions += 1
        elif i in grids:
            yield f"encoder.down.{grid}.downsample"
            grid, blocks, attentions = grid + 1, 0, 0
    yield from (
        "encoder.mid.block_1",
        "encoder.mid.attn_1",
        "encoder.mid.block_2",
        "encoder.norm_out",
        "encoder.conv_out",
    )
    yield "quant_conv"


def _decoder_names(layers: Any) -> Iterator[str]:
    yield from (
        "post_quant_conv",
        "decoder.conv_in",
        "decoder.mid.block_1",
        "decoder.mid.attn_1",
        "decoder.mid.block_2",
    )
    grid, blocks, attentions = sum(isinstance(layer, Upsample) for layer in layers), 0, 0
    for layer in list(layers)[5:-3]:
        if isinstance(layer, NormResidual):
            yield f"decoder.up.{grid}.block.{blocks}"
            blocks += 1
        elif isinstance(layer, SingleHeadAttention):
            yield f"decoder.up.{grid}.attn.{attentions}"
            attentions += 1
        else:
            yield f"decoder.up.{grid}.upsample"
            grid, blocks, attentions = grid - 1, 0, 0
    yield from ("decoder.norm_out", "decoder.conv_out")


def _pairs(layer: Any, name: str, state: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair a layer's parameters with taming's tensors."""
    parts = {
        NormResidual: (
            ("first_norm", "norm1"),
            ("first", "conv1"),
            ("second_norm", "norm2"),
            ("second", "conv2"),
            ("shortcut", "nin_shortcut"),
        ),
        SingleHeadAttention: (("norm", "norm"), ("out", "proj_out")),
        Halve: (("conv", "conv"),),
        Upsample: (("conv", "conv"),),
    }.get(type(layer), (("", ""),))
    for kind in ("weight", "bias"):
        for mine, theirs in parts:
            parameter = getattr(layer.get_submodule(mine), kind, None)
            tensor = state.get(".".join(filter(None, (name, theirs, kind))))
            if parameter is not None and tensor is not None:
                yield parameter, tensor
        if isinstance(layer, SingleHeadAttention) and all(f"{name}.{part}.{kind}" in state for part in "qkv"):
            yield getattr(layer.qkv, kind), torch.cat([state[f"{name}.{part}.{kind}"] for part in "qkv"])
