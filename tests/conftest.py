"""The axes that tests run along: device and dtype. The third, the instruction set, is chosen once
per process: test_isa.py runs the tests of the kernels again in a process for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import crrelu_ext

DEVICES = ["cpu"]
if torch.cuda.is_available() and crrelu_ext.build_info()["cuda"]:
    DEVICES.append("cuda")

try:
    import hypothesis
except ImportError:  # a machine with a GPU and no network runs tests/cuda without it
    pass
else:
    hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("reproducible")


def pytest_report_header() -> str:
    info = crrelu_ext.build_info()
    return f"crrelu_ext: {info['isa']} of {', '.join(info['isa_available'])}; CUDA {info['cuda']}"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=crrelu_ext.reference.DTYPES, ids=lambda dtype: str(dtype).split(".")[1])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
