"""docs/features.md: the tests that it points to exist, and each row of a table has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
POINTERS = sorted(set(re.findall(r"\b(tests/[^\s`:]+)::(\w+)", PAGE)))


@pytest.mark.parametrize(("file", "name"), POINTERS)
def test_exists(file: str, name: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^ *def {name}\(", source, re.MULTILINE)


def test_our_entries_point_to_tests() -> None:
    """Unless they say that there is none."""
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("|")]
    features = [row for row in rows if len(row) == 7 and row[0].strip(" -")]
    assert features
    for feature, ours, *_ in features:
        assert "::" in ours or "not tested" in ours, feature
