"""Other processes on the same store: to start them, send them signals, and end them. What they do is in `roles`."""

from __future__ import annotations

import base64
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable

from sitq.backends.base import Backend

__all__ = ["Child"]


class Child:
    """A process with a role on the store that `make_backend` opens."""

    def __init__(self, role: str, make_backend: Callable[[], Backend], *arguments: object) -> None:
        factory = base64.b64encode(_pickled(make_backend)).decode()
        command = [sys.executable, "-m", "sitq.conformance.roles", role, factory, *map(str, arguments)]
        path = os.pathsep.join(dict.fromkeys(filter(None, sys.path)))
        self._process = subprocess.Popen(  # noqa: S603 (our own module)
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def output(self) -> str:
        """Wait for the end and return what the child printed. Raises `RuntimeError` with its errors if it failed."""
        out, err = self._process.communicate(timeout=120)
        if self._process.returncode != 0:
            raise RuntimeError(f"a child process of the suite failed:\n{err}")
        return out

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def kill(self) -> str:
        """End the child with SIGKILL, wherever it is, and wait for it; return what it wrote to stderr."""
        self._process.kill()
        _, err = self._process.communicate()
        return err

    def alive(self) -> bool:
        """Say whether it still runs."""
        return self._process.poll() is None


def _pickled(make_backend: Callable[[], Backend]) -> bytes:
    try:
        return pickle.dumps(make_backend)
    except Exception as error:
        raise TypeError(
            "a suite with `persistent = True` opens the store in other processes, so `make_backend` must give what can "
            "be pickled: a class, a module's function, or functools.partial of one"
        ) from error
