"""PixelCNN: an image, or the tokens of one, a position at a time, by a convolutional network of those before.

Shapes: B images, L positions of a grid h x w of C channels, K classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.codecs.base import Codec, unflatten
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.distributions.categorical import Categorical, class_logits
from trilemma.errors import UserError
from trilemma.models.autoregressive import AutoregressiveModel
from trilemma.models.base import OptimizerFactory, SchedulerFactory
from trilemma.networks.pixelcnn.causal import Cache
from trilemma.networks.pixelcnn.gated import GatedPixelCNN
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.guidance import Guidance


class PixelCNNState(NamedTuple):
    """What is kept between two positions.

    Attributes:
        position: Number of the one that comes next.
        grid: Values so far, [B, C, h, w], zeros where none is known.
        pooled: The condition.
        cache: What the network keeps.
    """

    position: int
    grid: Tensor
    pooled: Tensor | None
    cache: Cache


class PixelCNN(AutoregressiveModel):
    """Learns p(x_i | x_1, ..., x_{i-1}, condition) of tokens in raster order, the channels of a pixel one after the other.

    On the levels of pixels this is the gated PixelCNN, with an exact likelihood; on the tokens of a VQ-VAE its prior.

    Sources: van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders"; van den Oord et al. 2017, "Neural discrete
    representation learning", section 3.3.

    Args:
        codec: Image <-> tokens; frozen here, and part of the checkpoint.
        network: See `GatedPixelCNN`.
        condition: Embeds labels.
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
        network: GatedPixelCNN,
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
        self.num_classes = network.num_classes
        self.codec = codec.freeze()
        self.network = network
        self.condition = condition
        self.sampler = sampler
        self.guidance = guidance
        self.condition_dropout = condition_dropout
        self.check_parts()

    def distribution(self, x: Tensor, condition: Condition) -> Categorical:
        """See `AutoregressiveModel`; tokens int64 [B, L]."""
        return self._categorical(self.network(self._grid(x), condition.pooled))

    def start(self, condition: Condition, context: Tensor | None = None) -> PixelCNNState:
        """See `Autoregressive`; there is no context."""
        empty = torch.zeros(len(condition), self.num_positions, dtype=torch.int64, device=self.device)
        return PixelCNNState(0, self._grid(empty), condition.pooled, Cache())

    def step(self, token: Tensor | None, state: PixelCNNState) -> tuple[Categorical, PixelCNNState]:
        """See `Autoregressive`; tokens int64 [B]."""
        if token is not None:
            channel, row, column = self._place(state.position - 1)
            state.grid[:, channel, row, column] = token
        channel, row, column = self._place(state.position)
        parameters = self.network(state.grid, state.pooled, cache=state.cache, pixel=(row, column))
        logits = self._categorical(parameters).logits[:, channel]
        return Categorical(logits), state._replace(position=state.position + 1)

    def _categorical(self, parameters: Tensor) -> Categorical:
        """Convert the network's output [B, C K, h, w] to logits [B, L, K]."""
        return Categorical(class_logits(parameters, self.num_classes).permute(0, 2, 3, 1, 4).flatten(1, 3))

    def _grid(self, x: Tensor) -> Tensor:
        """Reshape tokens [B, L] to [B, C, h, w]."""
        height, width = self.codec.code_shape[:2]
        return unflatten(x, (height, width, self.num_positions // (height * width))).permute(0, 3, 1, 2)

    def _place(self, position: int) -> tuple[int, int, int]:
        """Find the channel, row and column of a position."""
        pixel, channel = divmod(position, math.prod(self.codec.code_shape[2:]))
        return channel, *divmod(pixel, self.codec.code_shape[1])
