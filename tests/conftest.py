"""Fixtures shared by all tests."""

import os
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
