"""Files that are there whole, whatever happens while they are written."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_atomically(file: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Puts the content, or what a function writes, under that name: all of it or nothing.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    scratch = file.with_name(f".{file.name}.unfinished")
    try:
        with scratch.open("wb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, file)
        _sync_folder(file.parent)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def append_line(file: Path, content: Any) -> None:
    """Adds one line of JSON.

    What an earlier process has left without an end, killed while it wrote or on a full disk, is
    cut off first; and so is this line if it cannot be written whole.

    Raises:
        OSError: it cannot be written; all lines before are as they were.
    """
    line = json.dumps(content).encode() + b"\n"
    with file.open("ab+", buffering=0) as stream:
        stream.seek(0)
        whole = stream.read().rfind(b"\n") + 1
        stream.truncate(whole)
        try:
            written = 0
            while written < len(line):
                written += stream.write(line[written:])
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(whole)
            raise
    _sync_folder(file.parent)


def read_lines(file: Path) -> list[Any]:
    """The lines that were written whole.

    Raises:
        ValueError: one of them is not JSON.
    """
    if not file.exists():
        return []
    content = file.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is no JSON: {error}") from error
    return found


@contextmanager
def held(file: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends.

    Raises:
        RuntimeError: another process holds it.
    """
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{file.parent} is in use by another process") from None
        yield


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
