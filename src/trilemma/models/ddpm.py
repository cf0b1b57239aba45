"""DDPM and its descendants: any Gaussian process over any continuous code (pixels or latents).

Shapes: B images, codes [B, c, h, w], t and s [B], T timesteps.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from trilemma.codecs.base import Codec
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.base import Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.capabilities import Likelihood, Reconstructs, ScoresLikelihood
from trilemma.models.diffusion import Diffusion
from trilemma.processes.gaussian.bound import bits, interpolated_log_variance, step_terms
from trilemma.processes.gaussian.parameterization import Parameterization
from trilemma.processes.gaussian.process import GaussianProcess, broadcast_like
from trilemma.processes.noise import Noise, NoiseSource
from trilemma.samplers.base import Prediction
from trilemma.samplers.denoising import DenoisingSampler
from trilemma.samplers.guidance import Guidance
from trilemma.training.diagnostics import Diagnostics
from trilemma.training.loss_weights import LossWeight
from trilemma.training.timesteps import GridTimesteps, TimestepSampler, stratified_timesteps
from trilemma.training.x0_error import X0Error

Objective = Literal["simple", "hybrid", "bound"]
Variance = Literal["small", "large", "learned"]
BIN_WIDTH = 2 / 255
_LEARNS_FROM_BOUND = 1e-3


class _Terms(NamedTuple):
    error: Tensor
    """Weighted squared error of the output, mean over dimensions, [B]."""
    x0_error: Tensor
    """Squared error of x0, mean over dimensions, [B]."""
    bound: Tensor | None
    """Term of the variational bound of the step that ends at t, bits per dimension, [B]."""


class DDPM(Diffusion):
    """Learns the mean, and optionally the variance, of the clean code given a noisy one.

    Sources: Ho et al. 2020 ("simple"); Nichol and Dhariwal 2021 ("hybrid", "bound", learned variance); Karras et al. 2022
    and Lipman et al. 2023 are the same family under another schedule, parameterisation and distribution of times.

    Args:
        codec: Image <-> continuous code; frozen here, and part of the checkpoint.
        process: The corruption.
        network: (codes, t [B], pooled, context, context_mask) -> output [B, c, h, w]; with `learn_variance` [B, 2c, h, w].
        condition: Embeds labels or text.
        sampler: Default way to draw samples.
        guidance: Default guidance.
        parameterization: What the network's output means.
        times: Which noise levels are trained.
        weight: How much each of them counts.
        objective: "simple": the weighted squared error; "hybrid": with a thousandth of the variational bound, which there
            trains the variance alone; "bound": the variational bound.
        variance: Of p(xs|xt) in the variational bound: beta tilde ("small"), beta ("large") or learned between the two.
        num_timesteps: Length T of the chain whose bound is meant, where the process is continuous; else its own.
        condition_dropout: Share of training examples whose condition is replaced by the learned null.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If the parts do not fit each other.
    """

    process: GaussianProcess
    process_kind = GaussianProcess
    monitor = ("val/loss", "min")

    def __init__(
        self,
        *,
        codec: Codec,
        process: GaussianProcess,
        network: nn.Module,
        condition: ConditionEncoder,
        sampler: DenoisingSampler,
        guidance: Guidance,
        parameterization: Parameterization,
        times: TimestepSampler,
        weight: LossWeight,
        objective: Objective = "simple",
        variance: Variance = "large",
        num_timesteps: int = 1000,
        condition_dropout: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.check_process_kind(type(process))
        if codec.num_classes is not None:
            raise UserError(
                f"a Gaussian process needs continuous codes, and codec {type(codec).__name__} gives tokens: take codec=pixels, "
                "codec=kl or codec=vq_latents"
            )
        parameterization.check(process)
        self.codec = codec.freeze()
        self.process = process
        self.network = network
        self.condition = condition
        self.sampler = sampler
        self.guidance = guidance
        self.parameterization = parameterization
        self.times = times
        self.weight = weight
        self.objective = objective
        self.variance = variance
        self.num_timesteps = process.num_steps or num_timesteps
        self.condition_dropout = condition_dropout
        self.x0_error = X0Error()
        self.check_parts()
        self._check_objective()
        no_levels = codec.bound is None  # only the levels of pixels can be decided between by the last step of a bound
        lossless = not any(True for _ in codec.parameters())
        self.unsupported = frozenset(
            ({ScoresLikelihood} if no_levels else set()) | ({Reconstructs} if lossless else set())
        )

    def _check_objective(self) -> None:
        learns = bool(getattr(self.network, "learn_variance", False))
        if learns != (self.variance == "learned"):
            raise UserError(
                f"model.variance={self.variance} and network.learn_variance={str(learns).lower()} do not fit: a learned variance "
                "needs both"
            )
        if learns != (self.objective != "simple") and (learns or self.objective == "hybrid"):
            raise UserError(
                f"model.objective={self.objective} with model.variance={self.variance}: only the bound trains a variance "
                "(objective=hybrid or bound), and hybrid is for nothing else"
            )
        if isinstance(self.times, GridTimesteps) and self.times.num_steps != self.num_timesteps:
            raise UserError(
                f"model.times.num_steps={self.times.num_steps}, and the chain has {self.num_timesteps} steps: make them equal"
            )
        if self.objective != "simple" and not isinstance(self.times, GridTimesteps):
            raise UserError(
                f"model.objective={self.objective} is a sum over the steps of a chain: take model/times=chain or "
                "importance"
            )

    def on_fit_start(self) -> None:
        """Warn where the weight leaves out the time at which sampling starts: MinSNR with a terminal signal-to-noise ratio of 0."""
        last = torch.ones(1, dtype=torch.float64)
        weight = self.weight(self.process, self.parameterization, last.to(self.device))
        if weight is not None and not bool(weight > 0.0):
            rank_zero_warn(
                f"model.weight={type(self.weight).__name__} is 0 at t = 1, where the process leaves nothing of the data: the network is "
                "not trained where sampling starts; take model/weight=simple, or a process without zero_terminal_snr"
            )

    def loss(self, batch: Batch) -> Loss:
        """Compute the squared error of the output per dimension, and the bound where the objective has it."""
        noise = self.training_noise()
        x0 = self.codes(batch, noise)
        t, weight = self.times.sample(len(x0), noise, self.process)
        drop = noise.uniform((len(x0),)) < self.condition_dropout
        condition = self.condition(self.condition.raw_from(batch), num=len(x0), drop=drop)
        s = None
        if self.objective != "simple":
            assert isinstance(self.times, GridTimesteps)
            s = self.process.grid(self.times.index(t) - 1, self.num_timesteps)
        terms = self._terms(x0, t, condition, noise, s=s, detach=self.objective == "hybrid")
        self.x0_error.update(self.process, t, terms.x0_error)
        named = {"squared_error": terms.error.mean()}
        if terms.bound is None:
            each = terms.error
        else:
            bound = self.num_timesteps * terms.bound
            named["bound"] = (weight * bound).mean()
            each = bound if self.objective == "bound" else terms.error + _LEARNS_FROM_BOUND * bound
        self.times.update(t, each)
        return Loss((weight * each).mean(), named)

    def _terms(
        self,
        x0: Tensor,
        t: Tensor,
        condition: Condition,
        noise: NoiseSource,
        *,
        s: Tensor | None = None,
        detach: bool = False,
    ) -> _Terms:
        """Compute the loss terms of one network call at xt ~ q(xt|x0).

        With `s` the bound's term of the step from t to s; `detach` stops its gradient at the mean.
        """
        process = self.process
        eps = noise.normal(tuple(x0.shape), dtype=x0.dtype)
        xt = process.perturb(x0, t, eps)
        output, fraction = self._output(xt, t, condition)
        target = self.parameterization.target(process, x0, eps, t)
        plain = (output - target).square().flatten(1).mean(1)
        factor = self.weight(process, self.parameterization, t)
        to_x0 = process.sigma(t) / self.parameterization.determinant(process, t)
        bound = None
        if s is not None:
            x0_mean = self.parameterization.to_x0(process, output.detach() if detach else output, xt, t)
            log_variance = self._log_variance(fraction, s, t, xt)
            nats = step_terms(process, x0, xt, s, t, x0_mean, log_variance, bin_width=BIN_WIDTH)
            bound = bits(nats.flatten(1).mean(1))
        return _Terms(plain if factor is None else factor.to(plain) * plain, to_x0.square().to(plain) * plain, bound)

    def _grid(self, step: Tensor) -> Tensor:
        """Give the times of steps i [B] of the bound.

        Of a continuous process it begins where the noise is half the distance of two levels: the last step decides between levels, and
        below that there is nothing to decide, but every halving of the noise costs half a bit.
        """
        first = self.process.min_time
        if self.codec.bound is not None:
            first = max(first, self.process.time_of_noise(0.5 * BIN_WIDTH))
        return self.process.grid(step, self.num_timesteps, first=first)

    def _output(self, xt: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """Run the network: its output and the learned variance's interpolation fraction, each [B, c, h, w] in float32 or better."""
        scale = self.parameterization.scale_in(self.process, t)
        x = xt if scale is None else broadcast_like(scale, xt) * xt
        dtype = next(self.network.parameters()).dtype
        time = t.to(torch.promote_types(dtype, torch.float32))  # bfloat16 would move it by whole steps
        output: Tensor = self.network(x.to(dtype), time, condition.pooled, condition.tokens, condition.mask)
        output = output if output.dtype.itemsize >= 4 else output.float()
        if self.variance != "learned":
            return output, None
        output, v = output.chunk(2, dim=1)
        return output, 0.5 * (v + 1.0)

    def _log_variance(self, fraction: Tensor | None, s: Tensor, t: Tensor, like: Tensor) -> Tensor:
        if fraction is not None:
            return interpolated_log_variance(self.process, fraction, s, t)
        small, large = self.process.log_variance_range(s, t)
        return broadcast_like(small if self.variance == "small" else large, like).to(like)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Diagnostics]:
        """Log the loss at stratified times, so that the images of the set cover all of 1..T.

        Returns:
            The times and the weighted squared error at each.
        """
        noise = Noise(0, batch["index"], self.device)
        x0 = self.codes(batch, noise)
        condition = self.condition(self.condition.raw_from(batch), num=len(x0))
        step = stratified_timesteps(batch, batch_idx, self.num_timesteps)
        t, s = self._grid(step), self._grid(step - 1)
        terms = self._terms(x0, t, condition, noise, s=None if self.codec.bound is None else s)
        self.log("val/loss", terms.error.mean(), batch_size=len(x0), sync_dist=True, prog_bar=True)
        if terms.bound is not None:
            bound = self.num_timesteps * terms.bound + bits(self.process.prior_kl(x0)).flatten(1).mean(1)
            self.log("val/bits_per_dim", bound.mean(), batch_size=len(x0), sync_dist=True)
        return {"diagnostics": {"time": t, "time_loss": terms.error}}

    @torch.no_grad()
    def score_likelihood(self, batch: Batch, *, seed: int = 0) -> Likelihood:
        """Compute the variational bound in nats per image, summed over every step with one draw of xt each."""
        noise = Noise(seed, batch["index"], self.device)
        x0 = self.codes(batch, noise)
        num_dims = x0[0].numel()
        condition = self.condition(self.condition.raw_from(batch), num=len(x0))
        nats = self.process.prior_kl(x0).flatten(1).sum(1)
        for i in range(1, self.num_timesteps + 1):
            step = torch.full((len(x0),), i, device=self.device)
            terms = self._terms(x0, self._grid(step), condition, noise, s=self._grid(step - 1))
            assert terms.bound is not None
            nats = nats + terms.bound * num_dims * torch.log(torch.tensor(2.0))
        return Likelihood(nats, "bound", num_dims, "subpixel")

    def denoise(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """Predict x0 for samplers (see `Denoiser`); `xt` keeps its dtype, the network has its own."""
        output, fraction = self._output(xt, t.double(), condition)
        x0 = self.parameterization.to_x0(self.process, output.to(xt), xt, t.double())
        variance = broadcast_like(self.x0_error.variance(self.process, t), xt)
        return Prediction(x0=x0, variance_fraction=fraction, x0_variance=variance, bound=self.codec.bound)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] as codes [B, c, h, w]."""
        return self.codec.encode(images)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, c, h, w] of any float dtype to images [B, C, H, W] in [-1, 1]."""
        return self.codec.decode(codes.to(self.codec.scale.dtype))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images with the codec: the best that this model's samples can look like."""
        return self.decode(self.encode(images))
