"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; the test is skipped, saying so, where it is absent."""
    folder = os.environ.get("MULTIGATE_DATA")
    if not folder:
        pytest.skip("MULTIGATE_DATA is not set: it names the folder that holds census-income/ and kuairand/")
    return Path(folder)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)
