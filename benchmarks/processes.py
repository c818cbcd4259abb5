"""Worker processes of the measurements, and what the system says of them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks import raw
from sitq.backends.sqlite._work import NEXT_WORK

__all__ = ["cpu_seconds", "drained_in", "seconds_of_work", "start", "switches", "workers"]


@contextmanager
def workers(store: str, count: int = 1, concurrency: int = 10, *, uvloop: bool = False) -> Iterator[list[Worker]]:
    """Have worker processes that are connected and wait for the word."""
    arguments = [store, str(concurrency), *(["--uvloop"] if uvloop else [])]
    processes = [_spawn("benchmarks.worker", *arguments) for _ in range(count)]
    try:
        for process in processes:
            wait_for_line(process)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


Worker = subprocess.Popen[str]


def _spawn(module: str, *arguments: str) -> Worker:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def process(module: str, *arguments: str) -> Iterator[Worker]:
    """Run a module beside this one until the end of the block."""
    child = _spawn(module, *arguments)
    try:
        wait_for_line(child)
        yield child
    finally:
        child.kill()
        child.communicate()


def wait_for_line(process: Worker) -> None:
    """Wait until a process says that it is ready."""
    if process.stdout is None or not process.stdout.readline():
        raise RuntimeError("a worker process died before it was ready")


def start(processes: list[Worker]) -> None:
    """Say the word."""
    for process in processes:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()


def drained_in(path: str, processes: list[Worker]) -> float:
    """Start the workers and return the seconds until the file holds nothing that is queued or running."""
    with closing(raw.connect(path)) as connection:
        return seconds_of_work(lambda: _has_work(connection), processes)


def seconds_of_work(has_work: Callable[[], bool], processes: list[Worker], patience: float = 120.0) -> float:
    """Start the workers and return the seconds until there is no more work."""
    begin = time.perf_counter()
    start(processes)
    while has_work():
        if time.perf_counter() - begin > patience:
            raise RuntimeError(f"not drained after {patience:g} seconds")
        time.sleep(0.005)
    return time.perf_counter() - begin


def _has_work(connection: sqlite3.Connection) -> bool:
    """Say whether something runs or is due within the hour; a probe for each queue, whatever else lies there."""
    due, lease_until = connection.execute(NEXT_WORK, {"queues": None}).fetchone()
    return lease_until is not None or (due is not None and due < time.time() + 3600)


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far, to the nanosecond (Linux)."""
    times = [path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(map(int, times)) / 1e9


def switches(pid: int) -> int:
    """Return how often threads of a process have gone to sleep (Linux)."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = path.read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
    return total
