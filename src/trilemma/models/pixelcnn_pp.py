"""PixelCNN++: an image pixel by pixel, each drawn from a mixture of discretised logistics.

Shapes: B images of C channels and H x W pixels, L = H W positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.codecs.pixels import Pixels
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.distributions.logistic_mixture import DiscretisedLogisticMixture, DiscretisedLogisticMixtureOutput
from trilemma.errors import UserError
from trilemma.models.autoregressive import AutoregressiveModel
from trilemma.models.base import OptimizerFactory, SchedulerFactory
from trilemma.models.pixelcnn import PixelCNNState
from trilemma.networks.pixelcnn.causal import Cache
from trilemma.networks.pixelcnn.plus_plus import PixelCNNPlusPlus as Network
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.base import Sampler
from trilemma.samplers.guidance import Guidance


class PixelCNNPlusPlus(AutoregressiveModel):
    """Learns p(pixel | those before, condition) of 8-bit images in raster order; a position is a pixel with all its channels.

    Source: Salimans et al. 2017, "PixelCNN++". Unlike the released code, samples are rounded to the levels that the likelihood is of.

    Args:
        codec: The pixels themselves.
        network: See `trilemma.networks.pixelcnn.plus_plus.PixelCNNPlusPlus`.
        condition: Embeds labels.
        sampler: Default way to draw samples.
        guidance: Default guidance.
        condition_dropout: Share of training examples whose condition is replaced by the learned null.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If the codec does anything to the pixels.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        network: Network,
        condition: ConditionEncoder,
        sampler: AutoregressiveSampler,
        guidance: Guidance,
        condition_dropout: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if not isinstance(codec, Pixels):
            raise UserError(
                f"model=pixelcnn_pp has a likelihood of 8-bit images, and codec {type(codec).__name__} gives something else: take "
                "codec=pixels, or model=pixelcnn for tokens"
            )
        self.codec = codec.freeze()
        self.network = network
        self.output = DiscretisedLogisticMixtureOutput(network.num_components)
        self.condition = condition
        self.sampler = sampler
        self.guidance = guidance
        self.condition_dropout = condition_dropout
        self.check_parts()

    @property
    def num_positions(self) -> int:
        """Number of pixels."""
        _, height, width = self.codec.code_shape
        return height * width

    def sequence(self, batch: Batch, noise: NoiseSource) -> Tensor:
        """Get the images [B, C, H, W], which `distribution` scores as they are."""
        return self.codes(batch, noise)

    def distribution(self, x: Tensor, condition: Condition) -> DiscretisedLogisticMixture:
        """Predict the distribution of every pixel given those before it, of images [B, C, H, W]."""
        return self.output(self.network(x, condition.pooled))

    def start(self, condition: Condition, context: Tensor | None = None) -> PixelCNNState:
        """See `Autoregressive`; there is no context."""
        empty = torch.zeros(len(condition), *self.codec.code_shape).to(self.codec.scale)
        return PixelCNNState(0, empty, condition.pooled, Cache())

    def step(self, token: Tensor | None, state: PixelCNNState) -> tuple[DiscretisedLogisticMixture, PixelCNNState]:
        """See `Autoregressive`; a value is a pixel [B, C, 1, 1]."""
        width = self.codec.code_shape[2]
        if token is not None:
            row, column = divmod(state.position - 1, width)
            state.grid[:, :, row, column] = token[:, :, 0, 0]
        pixel = divmod(state.position, width)
        parameters = self.network(state.grid, state.pooled, cache=state.cache, pixel=pixel)
        return self.output(parameters), state._replace(position=state.position + 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Put pixels [B, L, C, 1, 1] together to images [B, C, H, W] in [-1, 1]."""
        return self.codec.decode(codes.flatten(2).transpose(1, 2).reshape(-1, *self.codec.code_shape))

    def check_sampler(self, sampler: Sampler | None) -> None:
        """See `ImageGenerator`; there are no classes to cut off."""
        super().check_sampler(sampler)
        if isinstance(sampler, AutoregressiveSampler) and (sampler.top_k is not None or sampler.top_p < 1.0):
            raise UserError(
                "sampler.top_k and sampler.top_p cut off classes, and model=pixelcnn_pp draws from a mixture: take "
                "sampler.temperature alone"
            )

    def check_guidance(self, guidance: Guidance) -> None:
        """See `ImageGenerator`; mixtures of two branches are not combined."""
        super().check_guidance(guidance)
        if getattr(guidance, "scale", 1.0) not in (0.0, 1.0):
            raise UserError(
                f"guidance={type(guidance).__name__} combines log-probabilities of classes, and model=pixelcnn_pp draws from a mixture: "
                "take guidance.scale=1 (conditional) or 0 (unconditional)"
            )
