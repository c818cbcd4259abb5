"""One statement for many rows, where `executemany` would run one for each.

SQLite lets other threads run at every step of a statement, and then its thread asks for the GIL again. Beside tasks
that make system calls, each time may be a switch of threads and back: 47 µs a drained task with `executemany`, 38 so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

__all__ = ["chunks", "flat", "placeholders"]

_SIZES = (100, 25, 5, 1)  # few, so that the statements stay prepared; one of 250 rows costs no less a row


def chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Cut rows into pieces of few sizes."""
    start = 0
    for size in _SIZES:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


def placeholders(width: int, count: int) -> str:
    """Return what stands after VALUES for `count` rows of `width` columns."""
    row = f"({', '.join('?' * width)})"
    return ", ".join([row] * count)


def flat(rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return the values for `placeholders`."""
    return list(chain.from_iterable(rows))
