"""Watch for posterior collapse: latents that carry no information on the image."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from trilemma.callbacks.monitors.base import Monitor
from trilemma.errors import UserError
from trilemma.training.diagnostics import diagnostics_of


class ActiveLatents(Monitor):
    """Logs `val/active_latents` and `val/latent_kl`, and warns, or stops, where few latents are active.

    A latent is active if KL(q(z|x) || p(z)), averaged over the validation set, exceeds a threshold (in the spirit of
    Burda et al. 2016, section 4.2, who threshold the variance of the posterior mean). `val/latent_kl` is the sum over
    latents in nats an image. Families whose `validation_step` gives no `Diagnostics.latent_kl` are skipped.

    Args:
        min_share: Least share of active latents, in [0, 1].
        min_nats: KL above which a latent is active.
        stop: See `Monitor`.
    """

    def __init__(self, min_share: float = 0.1, *, min_nats: float = 0.01, stop: bool = False) -> None:
        super().__init__(stop=stop)
        if not 0.0 <= min_share <= 1.0 or not min_nats >= 0.0:
            raise UserError(
                f"min_share={min_share} must lie in [0, 1] and min_nats={min_nats} be at least 0 in the monitor of latents"
            )
        self.min_share = min_share
        self.min_nats = min_nats
        self._sums: Tensor | None = None  # float64 [d + 1]: KL of each latent, number of images
        self._share: float | None = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the sums."""
        self._sums = self._share = None

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Add the latents of a batch."""
        seen = diagnostics_of(outputs)
        if "latent_kl" not in seen:
            return
        kl = seen["latent_kl"]
        kl = kl.float() if kl.device.type == "mps" else kl.double()  # MPS has no float64
        batch = torch.cat([kl.sum(0), kl.new_tensor([len(kl)])])
        self._sums = batch if self._sums is None else self._sums + batch

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the statistics of the whole set, over all processes."""
        if self._sums is None:
            return
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        kl = sums[:-1] / sums[-1]
        self._share = float((kl > self.min_nats).double().mean())
        pl_module.log_dict({"val/active_latents": self._share, "val/latent_kl": float(kl.sum())}, sync_dist=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the share of active latents."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or self._share is None:
            return
        few = self._share < self.min_share
        problem = f"{self._share:.1%} of the latents have a KL above {self.min_nats:g} nats, below {self.min_share:.0%}"
        self.judge(trainer, problem if few else None)
