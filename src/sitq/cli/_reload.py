"""`sitq worker --reload`: start the worker again when a Python file of the current folder changes. For development."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["changed", "python_files", "run_reloading", "worker_command"]

_LOOK_EVERY = 0.5
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})

Stamps = dict[Path, int]


def python_files(folder: Path) -> Stamps:
    """Return the Python files under a folder and when they were written; hidden and installed ones do not count."""
    return {path: stamp for path in _walk(folder) if (stamp := _stamp(path)) is not None}


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        yield from (Path(parent, name) for name in names if name.endswith(".py"))


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # gone between the two looks
        return None


def changed(before: Stamps, now: Stamps) -> list[Path]:
    """Return the files that are new, gone or written again."""
    return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))


def worker_command(arguments: Sequence[str]) -> list[str]:
    """Return the command that runs the same worker without watching its files."""
    return [sys.executable, "-m", "sitq", *(argument for argument in arguments if argument != "--reload")]


def run_reloading(command: Sequence[str], folder: Path) -> int:
    """Keep `command` running until SIGTERM or SIGINT; return its exit code.

    A worker that ended by itself, over a syntax error for example, is started again after the next change.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}
    child = _Child(command)
    for number in signals:
        signal.signal(number, child.pass_on)
    try:
        child.start()
        stamps = python_files(folder)
        while not child.stopping:
            time.sleep(_LOOK_EVERY)  # this process does nothing else, and a signal ends the sleep
            now = python_files(folder)
            files, stamps = changed(stamps, now), now
            if files and not child.stopping:
                _say(f"{files[0].relative_to(folder)} changed: starting again")
                child.replace()
            child.report_end()
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Child:
    """The worker's process. It has a session of its own, so that a Ctrl+C reaches it once, through here."""

    def __init__(self, command: Sequence[str]) -> None:
        self.stopping = False
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._reported = False

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, start_new_session=True)  # noqa: S603 (our own command)
        self._reported = False
        if self.stopping:  # the signal came while there was no process to tell
            self._process.terminate()

    def pass_on(self, _number: int, _frame: object) -> None:
        """Tell the worker to stop; a second time: fast."""
        self.stopping = True
        if self._process is not None:
            self._process.terminate()

    def replace(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        if not self.stopping:
            self.start()

    def report_end(self) -> None:
        """Say once that the worker has ended by itself."""
        code = None if self._process is None else self._process.poll()
        if code is not None and not self._reported and not self.stopping:
            self._reported = True
            _say(f"the worker ended with {code}; it starts again when a file changes")

    def wait(self) -> int:
        return 0 if self._process is None else self._process.wait()


def _say(message: str) -> None:
    print(f"sitq: {message}", file=sys.stderr, flush=True)
