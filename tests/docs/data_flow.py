"""The way of a task from `enqueue` to its stored result, traced while it happens.

`python tests/docs/data_flow.py` puts the diagram into docs/architecture.md; a test compares it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import sitq
from sitq import MemoryBackend, TaskQueue, Worker

__all__ = ["BYSTANDERS", "PAGE", "Hop", "diagram", "page_with", "trace"]

SOURCES = Path(sitq.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
STORE = "the store"
BYSTANDERS = {
    "_report.py": "tells listeners and the log",
    "core.py": "makes the `Outcome`",
}
"""Files that see the task and do not pass it on."""

_PRODUCER = "queue.py"
_BEGIN, _END = "<!-- begin: python tests/docs/data_flow.py writes this -->", "<!-- end -->"


class Hop(NamedTuple):
    """A call from one file to another that carries the task."""

    source: str
    target: str
    method: str


def trace() -> list[Hop]:
    """Run a task and return the hops from `enqueue` to the stored result, in their order."""
    hops: dict[Hop, None] = {}

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_back is not None:
            source, target = _room(frame.f_back), _room(frame)
            method = frame.f_code.co_name
            if source and target and source != target and method != "__init__" and _has_a_task(frame):
                hops.setdefault(Hop(source, target, method))
                if method == "settle":  # the result is stored
                    sys.setprofile(None)

    asyncio.run(_one_task(profile))
    return list(hops)


async def double(x: str) -> str:
    return 2 * x


async def _one_task(profile: Any) -> None:
    async with TaskQueue(MemoryBackend()) as queue:
        sys.setprofile(profile)
        try:
            handle = await queue.enqueue(double, "x")
            await Worker(queue).run_until_empty()
        finally:
            sys.setprofile(None)
        assert await handle.result() == "xx"


def _room(frame: FrameType) -> str | None:
    """Return the file of sitq a frame belongs to; the store is one room."""
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(SOURCES):
        return None
    name = str(path.relative_to(SOURCES))
    return STORE if name.startswith("backends/") else name


def _has_a_task(frame: FrameType) -> bool:
    """Say whether a call is about a task: it is given one (or its id), or asks for some (`reserve`)."""
    code = frame.f_code
    names = code.co_varnames[1 : code.co_argcount]
    return code.co_name == "reserve" or any(_is_a_task(frame.f_locals.get(name)) for name in names)


def _is_a_task(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_is_a_task(item) for item in value)
    if isinstance(value, str):
        return len(value) == 36 and value.count("-") == 4  # an id
    return any(hasattr(value, name) for name in ("payload", "reserved", "task_id", "task")) and not callable(value)


def diagram(hops: Iterable[Hop]) -> str:
    """Draw the hops, grouped by the file they start from."""
    lines: list[str] = []
    number = 0
    for source, group in groupby(hops, key=lambda hop: hop.source):
        from_here = list(group)
        for index, hop in enumerate(from_here):
            number += 1
            fork = "─" if len(from_here) == 1 else "┬" if index == 0 else "└" if index == len(from_here) - 1 else "├"
            who = "producer" if source == _PRODUCER else "worker"
            head = f"{who:8}  {source:11} ──{fork}" if index == 0 else " " * 24 + fork
            lines.append(f"{head}─ {number} ─▶ {hop.target:16}  {hop.method}")
    return "\n".join(lines)


def page_with(drawn: str) -> str:
    """Return docs/architecture.md with this diagram."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n```text\n{drawn}\n```\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(diagram(hop for hop in trace() if hop.target not in BYSTANDERS)), encoding="utf-8")
