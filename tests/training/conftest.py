"""Small models train fastest on one thread; a second one waits for the first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("sklearn", reason="the extra `training` is not installed")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
