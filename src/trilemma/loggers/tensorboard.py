"""TensorBoard, to watch a run on one's own machine as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from trilemma.errors import UserError
from trilemma.loggers.settings import shown


class TensorBoardLogger(LightningTensorBoardLogger):
    """Writes metrics, pictures and settings into `<save_dir>/tensorboard`; shown by `tensorboard --logdir`.

    The first row of a resumed run tells where it has gone back to: TensorBoard then drops what the process before it wrote
    of the same step and later.

    Args:
        save_dir: The run directory.

    Raises:
        UserError: If the package is not installed.
    """

    def __init__(self, save_dir: str | Path) -> None:
        try:
            # Seconds between flushes: what a killed job loses. Without hp_metric no curve of it is drawn.
            super().__init__(
                save_dir, name="tensorboard", version="", default_hp_metric=False, flush_secs=10, max_queue=100
            )
        except ModuleNotFoundError:
            raise UserError(
                "logger=tensorboard needs a package that is not installed: pip install -c constraints.txt 'trilemma[tensorboard]'"
            ) from None
        self._is_begun = False

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Write settings as one page of text: what `shown` lets through."""
        settings = shown(dict(params))
        super().log_hyperparams(settings)
        self.experiment.add_text("settings", indent(OmegaConf.to_yaml(settings), "    "))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers."""
        if not self._is_begun and step is not None:
            self._begin(step)
        super().log_metrics(metrics, step)

    def _begin(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self.experiment._get_file_writer().add_event(Event(session_log=start), step)
        self._is_begun = True

    @rank_zero_only
    def log_image(
        self, key: str, images: list[Any], step: int | None = None, *, caption: list[str] | None = None
    ) -> None:
        """Show PIL pictures: `key`, and `key/1`, `key/2` where there are more. The slider has the step: captions are left out.

        Args:
            key: The name.
            images: PIL pictures.
            step: Batches trained so far.
            caption: A text for each.
        """
        for i, image in enumerate(images):
            array = np.asarray(image.convert("RGB"))
            self.experiment.add_image(key if i == 0 else f"{key}/{i}", array, step, dataformats="HWC")
