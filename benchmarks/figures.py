"""A figure and how it is taken: alternating pairs, medians, and a ratio within each pair.

The machine's mood changes from minute to minute, and with it every absolute number; a ratio of two runs that follow
each other does not. So each figure stands beside its limit, and the median is of the pairs' ratios.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Figure", "Scale", "paired", "single"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much to measure."""

    pairs: int = 5
    tasks: int = 20_000
    rounds: int = 200
    idle_seconds: float = 20.0
    deep_rows: int = 100_000
    uvloop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number of sitq, the same of its limit, and their ratio; each with the least and the most."""

    name: str
    unit: str
    sitq: float
    sitq_range: tuple[float, float]
    limit: float | None = None
    limit_name: str = "raw"
    ratio: float | None = None
    ratio_range: tuple[float, float] | None = None
    wanted: str = ""

    def line(self) -> str:
        """Return it as one line of a table."""
        limit = f"{_short(self.limit)} ({self.limit_name})" if self.limit is not None else ""
        ratio = f"{self.ratio:.2f}" if self.ratio is not None else ""
        spread = f"{self.ratio_range[0]:.2f} to {self.ratio_range[1]:.2f}" if self.ratio_range else ""
        value = f"{_short(self.sitq)} {self.unit}"
        return f"{self.name:<46} {value:>18}   {limit:<30} {ratio:>6}  {spread:<14} {self.wanted}".rstrip()


def paired(
    name: str,
    unit: str,
    scale: Scale,
    ours: Callable[[], float],
    limit: Callable[[], float],
    *,
    limit_name: str = "raw",
    wanted: str = "",
) -> Figure:
    """Take a figure and its limit in turn, as often as the scale says."""
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(scale.pairs):
        theirs.append(limit())
        mine.append(ours())
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return _tell(
        Figure(
            name=name,
            unit=unit,
            sitq=statistics.median(mine),
            sitq_range=(min(mine), max(mine)),
            limit=statistics.median(theirs),
            limit_name=limit_name,
            ratio=statistics.median(ratios),
            ratio_range=(min(ratios), max(ratios)),
            wanted=wanted,
        )
    )


def single(name: str, unit: str, values: list[float], wanted: str = "") -> Figure:
    """Make a figure that stands alone, of one or several values."""
    spread = (min(values), max(values))
    return _tell(Figure(name=name, unit=unit, sitq=statistics.median(values), sitq_range=spread, wanted=wanted))


def _tell(figure: Figure) -> Figure:
    print(figure.line(), file=sys.stderr, flush=True)
    return figure


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
