"""An autoregressive model of tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from trilemma.toys.causal_gru import CausalGRU

from trilemma.codecs.base import Codec
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.distributions.categorical import Categorical
from trilemma.errors import UserError
from trilemma.models.autoregressive import AutoregressiveModel
from trilemma.models.base import OptimizerFactory, SchedulerFactory
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.guidance import Guidance


class _State(NamedTuple):
    """What is kept between two positions: how many there were, the condition, the network's memory of them."""

    position: int
    condition: Condition
    memory: Tensor | None


class PixelCNNLike(AutoregressiveModel):
    """Learns p(x_i | x_1, ..., x_{i-1}, condition) with a network that remembers.

    Args:
        codec: Image <-> tokens; frozen here, and part of the checkpoint.
        network: See `CausalGRU`.
        condition: Embeds labels.
        sampler: Default way to draw samples.
        guidance: Default guidance.
        condition_dropout: Share of training examples whose condition is replaced by the learned null.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If the codec gives no tokens.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        network: CausalGRU,
        condition: ConditionEncoder,
        sampler: AutoregressiveSampler,
        guidance: Guidance,
        condition_dropout: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if codec.num_classes is None:
            raise UserError(
                f"model=toy_pixelcnn needs tokens, and codec {type(codec).__name__} gives continuous values"
            )
        self.codec = codec.freeze()
        self.network = network
        self.condition = condition
        self.sampler = sampler
        self.guidance = guidance
        self.condition_dropout = condition_dropout
        self.begin = codec.num_classes
        self.check_parts()

    def distribution(self, x: Tensor, condition: Condition) -> Categorical:
        """See `AutoregressiveModel`."""
        before = torch.cat([torch.full_like(x[:, :1], self.begin), x[:, :-1]], 1)
        logits, _ = self.network(before, 0, condition.pooled)
        return Categorical(logits)

    def start(self, condition: Condition, context: Tensor | None = None) -> _State:
        """See `Autoregressive`."""
        return _State(0, condition, None)

    def step(self, token: Tensor | None, state: _State) -> tuple[Categorical, _State]:
        """See `Autoregressive`."""
        if token is None:
            token = torch.full((len(state.condition),), self.begin, device=self.device)
        logits, memory = self.network(token[:, None], state.position, state.condition.pooled, state.memory)
        return Categorical(logits[:, 0]), _State(state.position + 1, state.condition, memory)
