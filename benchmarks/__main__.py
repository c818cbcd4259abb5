"""Measure sitq: `scripts/bench [--quick | --full] [--uvloop] [--json FILE] [measurement …]`.

Without names it measures sitq on SQLite. `postgres` and `redis` are measured only when they are named: they start a
PostgreSQL and a Valkey, or use those at SITQ_TEST_POSTGRES_URL and SITQ_TEST_REDIS_URL.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import latency, servers, shapes, speed
from benchmarks.figures import Figure, Scale
from benchmarks.speed import Files

MEASUREMENTS: dict[str, Callable[[Scale, Files], Iterator[Figure]]] = {
    "enqueue": speed.enqueue,
    "drain": speed.drain,
    "latency": latency.latency,
    "idle": latency.idle,
    "import": shapes.imports,
    "growth": shapes.growth,
    "payloads": shapes.payloads,
    "executors": shapes.executors,
    "queues": shapes.queues,
    "slots": shapes.slot_fill,
}
ON_SERVERS: dict[str, Callable[[Scale, Files], Iterator[Figure]]] = {
    "postgres": servers.postgres,
    "redis": servers.redis,
}
"""Measured when they are named."""


def main() -> None:
    """Read the arguments, measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "measurement",
        nargs="*",
        help=f"some of {', '.join(MEASUREMENTS)} (default: all of these), or {', '.join(ON_SERVERS)} (only when named)",
    )
    parser.add_argument("--quick", action="store_true", help="three pairs of fewer tasks: a look, not a measurement")
    parser.add_argument("--full", action="store_true", help="1,000,000 finished and 1,000,000 later rows in `growth`")
    parser.add_argument("--uvloop", action="store_true", help="a drain with uvloop as well")
    parser.add_argument("--json", metavar="FILE", help="write the figures to a file too (-: to standard output)")
    parser.add_argument("--folder", help="where the stores are made: a real disk (default: the temporary folder)")
    arguments = parser.parse_args()
    known = MEASUREMENTS | ON_SERVERS
    unknown = set(arguments.measurement) - set(known)
    if unknown:
        parser.error(f"no measurement {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    scale = Scale(uvloop=arguments.uvloop)
    if arguments.quick:
        scale = Scale(pairs=3, tasks=5_000, rounds=50, idle_seconds=5, deep_rows=20_000, uvloop=arguments.uvloop)
    elif arguments.full:
        scale = dataclasses.replace(scale, deep_rows=1_000_000)

    if arguments.folder:
        tempfile.tempdir = str(Path(arguments.folder).resolve())  # where servers make their folders, too
    machine = describe()
    print(*(f"{name} {value}" for name, value in machine.items()), sep=", ", file=sys.stderr)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sitq-bench-") as folder:
        files = Files(Path(folder))
        for name in arguments.measurement or MEASUREMENTS:
            figures += known[name](scale, files)
    if arguments.json:
        written = {"machine": machine, "figures": [dataclasses.asdict(figure) for figure in figures]}
        text = json.dumps(written, indent=1) + "\n"
        print(text, end="") if arguments.json == "-" else Path(arguments.json).write_text(text, encoding="utf-8")


def describe() -> dict[str, str]:
    """Say what the figures were taken on."""
    return {
        "python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "cores": str(os.cpu_count()),
    }


if __name__ == "__main__":
    main()
