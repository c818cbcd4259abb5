"""Supervised workers in tests: a real `sitq worker --processes`, its application, and the processes it runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cli_kit import SitqProcess

__all__ = ["Fleet", "processes_of"]

APP = """
import asyncio, ctypes, os
from pathlib import Path
from sitq import TaskQueue

queue = TaskQueue("sqlite:///tasks.db")

def pid():
    return os.getpid()

def note(name):
    with open("log", "ab", buffering=0) as log:
        log.write(f"{name} {os.getpid()}\\n".encode())

async def hold(name):
    note(name)
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return os.getpid()

async def nap(name, seconds):
    note(name)
    await asyncio.sleep(seconds)

def segfault():
    ctypes.string_at(0)

def leave():
    os._exit(3)

kept = []
def swell(megabytes):
    kept.append(bytearray(os.urandom(2**20)) * megabytes)
    return os.getpid()
"""


class Fleet(SitqProcess):
    """`sitq worker app:queue` with these options, in a folder where `app` and its store are."""

    def __init__(self, folder: Path, *options: str, app: str = APP) -> None:
        self.folder = folder
        (folder / "app.py").write_text(app, encoding="utf-8")
        super().__init__(folder, "worker", "app:queue", *options)

    @property
    def pid(self) -> int:
        return self._process.pid

    def workers(self) -> list[int]:
        """Return the process ids of the workers that live."""
        return processes_of(self.pid)

    def kill(self, pid: int) -> None:
        """End one worker process as the kernel does when memory is short."""
        os.kill(pid, signal.SIGKILL)

    def log(self) -> list[tuple[str, int]]:
        """Return which tasks were started, and in which process."""
        path = self.folder / "log"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]


def processes_of(pid: int) -> list[int]:
    """Return the children of a process that have not ended."""
    try:
        listings = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [child for listing in listings for child in map(int, listing.split()) if _lives(child)]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
