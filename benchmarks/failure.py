"""What could not be measured: it is left out and named, and the rest is kept."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """A case, and one line of the error that it ended with."""

    case: str
    error: str

    @classmethod
    def of(cls, case: object, error: Exception) -> Failure:
        text = "".join(traceback.format_exception_only(error)).strip()
        return cls(str(case), text.partition("\n")[0])


def by_error(failures: Iterable[Failure]) -> Iterator[str]:
    """A line for each error, with all cases that ended with it: a missing compiler ends many."""
    cases: dict[str, list[str]] = {}
    for failure in failures:
        cases.setdefault(failure.error, []).append(failure.case)
    for error, ended in cases.items():
        yield f"{'; '.join(ended)}: {error}"
