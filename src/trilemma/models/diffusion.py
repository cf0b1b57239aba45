"""What diffusion models share: a process, a denoiser, and a sampler that runs the reverse process."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.config.options import options_of
from trilemma.errors import UserError
from trilemma.models.generator import ImageGenerator
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import OnStep, Prediction, Sampler
from trilemma.samplers.denoising import DenoisingSampler
from trilemma.samplers.guidance import Guidance


@runtime_checkable
class ShowsTrajectory(Protocol):
    """A family whose trajectory from noise to data can be shown: continuous codes, a process that noises them, a denoiser."""

    if TYPE_CHECKING:  # attributes only: torch keeps submodules where `isinstance` does not look

        @property
        def codec(self) -> Codec:
            """Its `code_shape` is that of the states."""

        @property
        def process(self) -> Any:
            """With `alpha`, `sigma`, `sample` and `prior`."""

        @property
        def condition(self) -> ConditionEncoder:
            """Embeds labels or text."""

        @property
        def sampler(self) -> DenoisingSampler:
            """The default sampler."""

        @property
        def guidance(self) -> Guidance:
            """The default guidance."""

        @property
        def device(self) -> torch.device:
            """Where it lives."""

    def encode(self, images: Tensor) -> Tensor:
        """Encode images as codes [B, c, h, w]."""

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, c, h, w] to images."""

    def nearest_time(self, t: float) -> float:
        """Find the time nearest to t at which the network can denoise."""

    def denoise(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """Predict x0 for samplers (see `Denoiser`)."""

    def sample_codes(
        self,
        noise: NoiseSource,
        num: int,
        raw: Any = None,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        on_step: OnStep | None = None,
        x_start: Tensor | None = None,
        t_start: float = 1.0,
    ) -> Tensor:
        """Draw codes [num, c, h, w] given raw labels or strings; `x_start` at `t_start` denoises from there."""


class Diffusion(ImageGenerator):
    """A family whose samples are the end of a trajectory from noise.

    Attributes:
        process: The corruption.
        process_kind: Class of the processes that the family learns to reverse.
        sampler: Default way to draw samples.
    """

    process: Any
    process_kind: ClassVar[type[Any]]
    sampler: DenoisingSampler

    @abstractmethod
    def denoise(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """Predict x0 for samplers (see `Denoiser`)."""

    def nearest_time(self, t: float) -> float:
        """Find the time nearest to t at which the network can denoise; any time, unless a family overrides this."""
        return t

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one image's state."""
        return tuple(self.codec.code_shape)

    @classmethod
    def check_process_kind(cls, process: type[Any]) -> None:
        """Check that the family learns to reverse processes of a class.

        Raises:
            UserError: If not, with the processes that it does.
        """
        if not issubclass(process, cls.process_kind):
            fitting = options_of("process", lambda kind: issubclass(kind, cls.process_kind))
            choice = " or ".join(f"process={name}" for name in fitting)
            raise UserError(
                f"a {cls.__name__} needs a {cls.process_kind.__name__}, not {process.__name__}: choose {choice}"
            )

    @classmethod
    def check_sampler_kind(cls, sampler: type[Sampler] | None, process: type[Any] | None) -> None:
        """See `ImageGenerator`; the process must be one for the family too."""
        if sampler is None:
            raise UserError(f"a {cls.__name__} needs a sampler: choose sampler=")
        if process is not None:
            cls.check_process_kind(process)
            sampler.check_kind(process)

    def check_sampler(self, sampler: Sampler | None) -> None:
        """See `ImageGenerator`; the sampler's settings must fit the process too."""
        self.check_sampler_kind(None if sampler is None else type(sampler), None)
        assert sampler is not None
        sampler.check(self.process)

    def check_guidance(self, guidance: Guidance) -> None:
        """See `ImageGenerator`."""
        guidance.check_encoder(self.condition)

    def sample_codes(
        self,
        noise: NoiseSource,
        num: int,
        raw: Any = None,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        on_step: OnStep | None = None,
        x_start: Tensor | None = None,
        t_start: float = 1.0,
    ) -> Tensor:
        """Draw codes [num, *state_shape] given raw conditions; `x_start` at `t_start` denoises from there."""
        sampler = sampler or self.sampler
        if not isinstance(sampler, DenoisingSampler):
            self.check_sampler(sampler)
            raise TypeError(f"{type(sampler).__name__} draws from no denoiser")
        return sampler(
            self.denoise,
            self.process,
            (num, *self.state_shape),
            condition=self.condition(raw, num=num),
            guidance=guidance or self.guidance,
            noise=noise,
            on_step=on_step,
            x_start=x_start,
            t_start=t_start,
        )
