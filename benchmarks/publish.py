"""Result files appear whole or not at all."""

import errno
import os
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into ``folder`` when the block ends without an exception.

    It lies inside ``folder``, so that moving a file is one rename.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as scratch:
        yield Path(scratch)
        for file in Path(scratch).iterdir():
            os.replace(file, folder / file.name)


def writable_file(text: str) -> Path:
    """An argument's file, before there is anything to write to it.

    Raises:
        ArgumentTypeError: it cannot be written.
    """
    file = Path(text)
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            if file.exists() and not file.is_file():
                raise OSError(errno.EINVAL, "Not a file")
    except OSError as error:
        raise ArgumentTypeError(
            f"{text}: {error.strerror}; a file to write, in a folder that exists, is needed"
        ) from None
    return file
