"""Autoregressive sampling, one position after the other."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from trilemma.conditions.base import Condition
from trilemma.distributions.base import Distribution, check_temperature
from trilemma.distributions.categorical import Categorical
from trilemma.errors import UserError
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import OnStep, Prediction, Sampler
from trilemma.samplers.guidance import Guidance


@runtime_checkable
class Autoregressive(Protocol):
    """A model of a sequence: p(x_i | x_1, ..., x_{i-1}, condition), one position at a time, for a batch.

    Computations on earlier positions are cached in the model's state (rows of a convolution, keys and values), which `step`
    may change in place. Networks are called as modules, so that forward hooks count their calls.
    """

    def start(self, condition: Condition, context: Tensor | None = None) -> Any:
        """Build the state before the first position.

        Args:
            condition: Condition of the B sequences; its length is B.
            context: What the sequences go on from, where the model knows such a thing.
        """

    def step(self, token: Tensor | None, state: Any) -> tuple[Distribution, Any]:
        """Feed the value of a position and predict the distribution of the next one.

        Args:
            token: Value of the position before, [B, ...]; None at the first.
            state: What `start` or the last `step` gave.

        Returns:
            The distribution of the next position's value [B, ...], and the new state.
        """


class AutoregressiveSampler(Sampler):
    """Draws every position from the model's distribution, with temperature, top-k and top-p.

    Sources: Fan et al. 2018, section 5.4 (top-k); Holtzman et al. 2020, section 3.1 (top-p).

    Args:
        temperature: Below 1 sharpens, above 1 flattens; 1 leaves the distribution as it is.
        top_k: Number of classes that are kept; None keeps all.
        top_p: Keep the smallest set of classes that holds so much probability, in (0, 1]; 1 keeps all.

    Raises:
        UserError: If an option is out of its range.
    """

    draws_from = Autoregressive

    def __init__(self, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> None:
        check_temperature(temperature)
        if top_k is not None and top_k < 1:
            raise UserError(f"sampler.top_k={top_k}: at least one class must be left; 1 takes the likeliest")
        if not 0.0 < top_p <= 1.0:
            raise UserError(f"sampler.top_p={top_p}: must lie in (0, 1]; 1 keeps every class")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    @torch.no_grad()
    def __call__(
        self,
        model: Autoregressive,
        num_positions: int,
        *,
        condition: Condition,
        guidance: Guidance,
        noise: NoiseSource,
        on_step: OnStep | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Draw sequences.

        A guidance gets the share of remaining positions as its time, 1 at the first and 1 / L at the last. All branches
        that it uses at any position run as one batch at every position, since each needs a state of its own.

        Args:
            model: The model.
            num_positions: Length L of a sequence.
            condition: Condition of the samples; guidance uses its `null` twin.
            guidance: How branches of the condition are combined.
            noise: Source of all randomness.
            on_step: Called after each position as on_step(step, s, values so far [B, step + 1, ...], prediction).
            context: See `Autoregressive.start`; the same for all branches.

        Returns:
            Values [B, L, ...].

        Raises:
            UserError: If branches of a guidance are to be combined, or classes cut off, where the distribution is not categorical.
        """
        plans = [guidance.branches(condition, 1.0 - i / num_positions) for i in range(num_positions)]
        branches = list({id(branch): branch for plan in plans for branch in plan}.values())
        place = {id(branch): number for number, branch in enumerate(branches)}
        num = len(branches)
        if context is not None:
            context = context.repeat(num, *[1] * (context.ndim - 1))
        state = model.start(branches[0] if num == 1 else Condition.cat(branches), context)
        token: Tensor | None = None
        values: list[Tensor] = []
        for i, plan in enumerate(plans):
            repeated = token if token is None or num == 1 else token.repeat(num, *[1] * (token.ndim - 1))
            distribution, state = model.step(repeated, state)
            if num > 1:
                chosen = [place[id(branch)] for branch in plan]
                distribution = _combined(distribution, num, chosen, guidance, 1.0 - i / num_positions)
            token = self.sharpened(distribution).sample(noise)
            values.append(token)
            if on_step is not None:
                logits = distribution.logits if isinstance(distribution, Categorical) else None
                on_step(i, 1.0 - (i + 1) / num_positions, torch.stack(values, 1), Prediction(log_x0=logits))
        return torch.stack(values, 1)

    def sharpened(self, distribution: Distribution) -> Distribution:
        """Sharpen the model's distribution by temperature, top-k and top-p.

        Raises:
            UserError: If classes are to be cut off where there are none, or the distribution knows no temperature.
        """
        if isinstance(distribution, Categorical):
            return distribution.sharpened(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        if self.top_k is not None or self.top_p < 1.0:
            raise UserError(
                f"sampler.top_k={self.top_k} sampler.top_p={self.top_p:g} cut off classes, and this model draws from a "
                f"{type(distribution).__name__}: take sampler.temperature alone"
            )
        return distribution if self.temperature == 1.0 else distribution.tempered(self.temperature)


def _combined(distribution: Distribution, num: int, chosen: list[int], guidance: Guidance, t: float) -> Categorical:
    """Combine some of `num` stacked branches [num * B, ..., K] as the guidance does."""
    if not isinstance(distribution, Categorical):
        raise UserError(
            f"guidance={type(guidance).__name__} combines log-probabilities of classes, and this model draws from a "
            f"{type(distribution).__name__}: take guidance.scale=1"
        )
    parts = distribution.logits.chunk(num)
    predictions = [Prediction(log_x0=parts[number].log_softmax(-1)) for number in chosen]
    log_x0 = guidance.on_prediction(predictions, None, parts[0], t).log_x0
    assert log_x0 is not None
    return Categorical(log_x0)
