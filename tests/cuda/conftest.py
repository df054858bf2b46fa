from __future__ import annotations

from pathlib import Path

import pytest

from . import simt


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels, compiled for the CPU."""
    return simt.build(tmp_path_factory.mktemp("simt"))
