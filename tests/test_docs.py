"""The documentation: tests and files that it points to exist; each feature's row has a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in PAGES.items()}
POINTERS = sorted(
    {found for text in TEXTS.values() for found in re.findall(r"\b(tests/[^\s`:]+)::(\w+)", text)}
)


@pytest.mark.parametrize(("file", "name"), POINTERS)
def test_exists(file: str, name: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^ *def {name}\(", source, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    links = set(re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", TEXTS[page]))
    missing = [link for link in links if not (PAGES[page].parent / link).exists()]
    named = set(
        re.findall(r"`((?:crrelu_ext|csrc|tests|benchmarks|examples)/[\w./]+)`", TEXTS[page])
    )
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_sections_exist(page: str) -> None:
    for file, section in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", TEXTS[page]):
        other = (PAGES[page].parent / file).resolve() if file else PAGES[page]
        titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert section in anchors


def test_our_entries_point_to_tests() -> None:
    """Unless they say that there is none."""
    lines = TEXTS["features.md"].splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("|")]
    features = [row for row in rows if len(row) == 7 and row[0].strip(" -")]
    assert features
    for feature, ours, *_ in features:
        assert "::" in ours or "not tested" in ours, feature
