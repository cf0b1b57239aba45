"""A classifier of noisy images, for classifier guidance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.codecs.base import Codec
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.base import Family, Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.capabilities import LabelScore
from trilemma.processes.categorical.schedules import as_float64
from trilemma.processes.gaussian.process import GaussianProcess, broadcast_like
from trilemma.processes.noise import Noise, NoiseSource
from trilemma.training.diagnostics import Diagnostics
from trilemma.training.timesteps import TimestepSampler

LOW_NOISE = 0.25
"""Times up to here are what the validation calls low noise."""

NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Times at which labelled images are scored."""

_GOLDEN = 0.5 * (5**0.5 - 1)


class NoisyClassifier(Family):
    """Learns p(label | xt) of images, or latents, at every noise level of a diffusion model's process.

    Source: Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4.

    Args:
        codec: Image <-> code, as the diffusion model's; frozen here, and part of the checkpoint.
        process: The diffusion model's process.
        network: (xt [B, c, h, w] at unit deviation, t [B] in [0, 1]) -> logits [B, num_labels].
        times: Which noise levels are trained.
        num_labels: Number of classes.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If the codec gives tokens or the data have no labels.
    """

    monitor = ("val/cross_entropy", "min")

    def __init__(
        self,
        *,
        codec: Codec,
        process: GaussianProcess,
        network: nn.Module,
        times: TimestepSampler,
        num_labels: int | None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if codec.num_classes is not None:
            raise UserError(f"a noisy classifier needs continuous codes, and codec {type(codec).__name__} gives tokens")
        if num_labels is None:
            raise UserError("a noisy classifier needs a data set with labels: put images into class sub-folders")
        self.codec = codec.freeze()
        self.process = process
        self.network = network
        self.times = times
        self.num_labels = num_labels

    def logits(self, xt: Tensor, t: Tensor) -> Tensor:
        """Compute log p(label | xt) up to a constant [B, num_labels], of xt [B, c, h, w] of any floating type at times t [B]."""
        time = as_float64(t)
        # Every process runs the network on batches of one size.
        scale = (self.process.alpha(time).square() + self.process.sigma(time).square()).rsqrt()
        dtype = next((p.dtype for p in self.network.parameters()), xt.dtype)
        logits: Tensor = self.network((broadcast_like(scale, xt) * xt).to(dtype), t.to(dtype))
        return logits

    def log_prob(self, xt: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Compute log p(label | xt) in nats [B], of xt [B, c, h, w] at times t [B] and labels [B]; differentiable in xt."""
        return self.logits(xt, t).log_softmax(1).gather(1, label[:, None])[:, 0]

    def loss(self, batch: Batch) -> Loss:
        """Compute the cross-entropy in nats, over the noise levels of `times`."""
        noise = self.training_noise()
        x0, label = self.codes(batch, noise), batch["label"]
        t, weight = self.times.sample(len(x0), noise, self.process)
        cross_entropy, right = self._score(x0, t, label, noise)
        self.times.update(t, cross_entropy)
        return Loss((weight * cross_entropy).mean(), {"accuracy": right.float().mean()})

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Diagnostics]:
        """Log cross-entropy and accuracy at stratified times, so that the images of the set cover (0, 1] evenly.

        Returns:
            The times and the cross-entropy at each, in nats.
        """
        noise = Noise(0, batch["index"], self.device)
        x0, label = self.codes(batch, noise), batch["label"]
        t = 1.0 - (batch["index"].double() * _GOLDEN) % 1.0
        cross_entropy, right = self._score(x0, t, label, noise)
        size, low = len(x0), t <= LOW_NOISE
        self.log("val/cross_entropy", cross_entropy.mean(), batch_size=size, sync_dist=True, prog_bar=True)
        self.log("val/accuracy", right.float().mean(), batch_size=size, sync_dist=True, prog_bar=True)
        # Logged without images too: all processes take part in the reduction.
        num_low = int(low.sum())
        accuracy = right[low].float().sum() / max(1, num_low)
        self.log("val/accuracy_low_noise", accuracy, batch_size=num_low, sync_dist=True)
        return {"diagnostics": {"time": t, "time_loss": cross_entropy}}

    def _score(self, x0: Tensor, t: Tensor, label: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Compute the cross-entropy in nats and whether the most likely label is right, both [B], at xt ~ q(xt | x0)."""
        logits = self.logits(self.process.sample(x0, t, noise), t)
        return F.cross_entropy(logits, label, reduction="none"), logits.argmax(1) == label

    @torch.no_grad()
    def score_labels(self, batch: Batch, *, seed: int = 0) -> dict[str, LabelScore]:
        """See `Classifies`: of noisy images, at each of `NOISE_LEVELS`."""
        scores = {}
        for level in NOISE_LEVELS:
            noise = Noise(seed, batch["index"], self.device)
            x0 = self.codes(batch, noise)
            nats, right = self._score(
                x0, torch.full((len(x0),), level, dtype=torch.float64, device=x0.device), batch["label"], noise
            )
            scores[f"t = {level}"] = LabelScore(right, nats)
        return scores

    def feature_network(self) -> None:
        """See `Classifies`: None, since the network reads noisy images."""
        return

    def reads(self) -> tuple[Codec, GaussianProcess]:
        """See `GuidesSampling`."""
        return self.codec, self.process

    def codes(self, batch: Batch, noise: NoiseSource) -> Tensor:
        """Get the batch's codes, float [B, c, h, w]: the cached ones, else encoded now."""
        if "code" in batch:
            return self.codec.from_cache(batch["code"], noise)
        with torch.no_grad():
            return self.codec.encode(batch["image"], noise)
