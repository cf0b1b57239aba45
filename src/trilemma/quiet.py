"""Silence for messages that ask nothing of the user, each named here."""

from __future__ import annotations

import logging
import re
import warnings

_TALKATIVE = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
)

_INFO = re.compile(
    "|".join(
        (
            r"💡 Tip",  # advertisements
            r"^(GPU|TPU|HPU|IPU) available",
            r"^`Trainer\.fit` stopped",
            r"^(Restoring|Restored) (all )?states",  # train.py says what it resumes from
            r"^Loaded model weights",
            r"Detected KeyboardInterrupt",
            r"^Using .*(precision|bfloat16|16bit).*",
            r"^LOCAL_RANK: ",
            r"^Initializing distributed: ",
            r"^-+\ndistributed_backend=",
            r"^-+\ndistributed_backend=",
            r"^Initializing distributed: ",
        )
    )
)

_WARNINGS = (
    r"The '\w+' does not have many workers",
    r"The `srun` command is available on your system but is not used",
    r"Checkpoint directory .* exists and is not empty",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # a frozen first stage is meant to be
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"Grad strides do not match bucket view strides",  # of a convolution with one channel, where the two are the same
    r"FSDP2-wrapped module \(\w+\) returned a view tensor",  # no caller of a network changes its result in place
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
)


class _Unasked(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or not _INFO.search(record.getMessage().strip())


def quieten() -> None:
    """Silence Lightning's hints and tips; warnings and errors that are not listed here stay as they are."""
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _Unasked) for existing in logger.filters):
            logger.addFilter(_Unasked())
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
