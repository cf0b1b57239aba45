"""Autoregressive transformers: the tokens of an image one after the other, by a causal transformer of those before.

Shapes: B images, L tokens, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.distributions.categorical import Categorical
from trilemma.errors import UserError
from trilemma.models.autoregressive import AutoregressiveModel
from trilemma.models.base import OptimizerFactory, SchedulerFactory
from trilemma.networks.transformer.causal import CausalTransformer, KeyValueCache
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.guidance import Guidance


class ARTransformerState(NamedTuple):
    """What is kept between two positions.

    Attributes:
        condition: The condition.
        known: Tokens that the first step reads, [B, n].
        cache: Keys and values so far.
    """

    condition: Condition
    known: Tensor
    cache: KeyValueCache


class ARTransformer(AutoregressiveModel):
    """Learns p(x_i | x_1, ..., x_{i-1}, condition) of tokens in the network's order: that of the raster, or block by block.

    A class is the first token, a caption is a prefix. Sampling reads the prefix in one go and keeps keys and values. On the tokens of a
    codec this is the second stage of taming transformers and of DALL-E; on the levels of pixels, with local attention, the Image
    Transformer, whose likelihood is exact.

    Sources: Esser et al. 2021, "Taming transformers for high-resolution image synthesis", equation 11; Ramesh et al. 2021 (DALL-E);
    Parmar et al. 2018, "Image Transformer".

    Args:
        codec: Image <-> tokens; frozen here, and part of the checkpoint.
        network: See `CausalTransformer`.
        condition: Embeds labels or text.
        sampler: Default way to draw samples.
        guidance: Default guidance.
        condition_dropout: Share of training examples whose condition is replaced by the learned null.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If the codec has other classes than the network.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        network: CausalTransformer,
        condition: ConditionEncoder,
        sampler: AutoregressiveSampler,
        guidance: Guidance,
        condition_dropout: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if codec.num_classes != network.num_classes:
            raise UserError(f"the codec has {codec.num_classes} classes and the network {network.num_classes}")
        self.codec = codec.freeze()
        self.network = network
        self.condition = condition
        self.sampler = sampler
        self.guidance = guidance
        self.condition_dropout = condition_dropout
        self.check_parts()

    def sequence(self, batch: Batch, noise: NoiseSource) -> Tensor:
        """See `AutoregressiveModel`; tokens int64 [B, L] in the network's order."""
        tokens = super().sequence(batch, noise)
        return tokens if self.network.order is None else tokens[:, self.network.order]

    def decode(self, codes: Tensor) -> Tensor:
        """Decode tokens int64 [B, L] in the network's order to images [B, C, H, W] in [-1, 1]."""
        return super().decode(codes if self.network.order is None else codes[:, self.network.order.argsort()])

    def distribution(self, x: Tensor, condition: Condition) -> Categorical:
        """See `AutoregressiveModel`; tokens int64 [B, L]."""
        return Categorical(self.network(x, condition.pooled, condition.tokens, condition.mask))

    def start(self, condition: Condition, context: Tensor | None = None) -> ARTransformerState:
        """See `Autoregressive`; a context, int64 [B, n], are the first n tokens, known already."""
        known = context
        if known is None:
            known = torch.empty(len(condition), 0, dtype=torch.int64, device=self.device)
        return ARTransformerState(condition, known, KeyValueCache())

    def step(self, token: Tensor | None, state: ARTransformerState) -> tuple[Categorical, ARTransformerState]:
        """See `Autoregressive`; tokens int64 [B]."""
        condition, known, cache = state
        new = known if token is None else token[:, None]
        logits = self.network(new, condition.pooled, condition.tokens, condition.mask, cache=cache)
        return Categorical(logits[:, -1]), state
