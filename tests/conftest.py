"""Fixtures shared by all tests."""

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with real data sets (mnist/, cifar10/), named by TRILEMMA_TEST_DATA; skips where there is none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TRILEMMA_TEST_DATA", default))
    if not (folder / "mnist").is_dir():
        pytest.skip("no test data: set TRILEMMA_TEST_DATA to a folder that holds mnist/ and cifar10/")
    return folder


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own():
    """What an entry point leaves behind in a process that it expects to end with it."""
    yield
    if "trilemma.distributed.signals" in sys.modules:
        sys.modules["trilemma.distributed.signals"].stop_listening()
    if "trilemma.distributed.job" in sys.modules:
        sys.modules["trilemma.distributed.job"].new_run_id.cache_clear()
        sys.modules["trilemma.distributed.job"].this_job.cache_clear()
    os.environ.pop("TRILEMMA_DECISIONS", None)
