"""benchmarks/gpu/choices.py, as far as it goes without a GPU."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from .simt import ROOT


@pytest.fixture(scope="module")
def choices() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks/gpu")
        return importlib.import_module("choices")


def test_each_choice_can_be_made(choices: Any, tmp_path: Path) -> None:
    for number, choice in enumerate(choices.CHOICES):
        changed = choices.changed_sources(choice, tmp_path / str(number))
        sources = [path for path in changed.rglob("*") if path.is_file()]
        assert sources
        differ = sum(
            path.read_text() != (choices.CSRC / path.relative_to(changed)).read_text()
            for path in sources
        )
        assert (differ > 0) == (choice != choices.SHIPPED)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.parametrize("choice", ["as shipped", "second launch early"])
def test_it_compiles(choices: Any, tmp_path: Path, choice: str) -> None:
    """For Hopper; torch's own library is not needed. The others change a number."""
    assert choices.build(choice, tmp_path, "90").exists()
