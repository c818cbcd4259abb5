"""A throw-away PgBouncer in transaction mode, from PATH (`apt install pgbouncer`), before a server on this machine.

Few sessions for many clients, each transaction on the next of them: what leans on a session is found out.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from servers.ports import free_port
from servers.postgres import DEADLINE, die_with_parent, server_user

__all__ = ["PgBouncer"]

_SETTINGS = """
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 4
max_client_conn = 1000
server_round_robin = 1
server_login_retry = 0.2
query_wait_timeout = 20
"""


class PgBouncer:
    """A pooler on a free port, for the server whose URL is given; started at once."""

    def __init__(self, url: str) -> None:
        self.port = free_port()
        parts, user = urlsplit(url), server_user()
        self.url = parts._replace(netloc=f"{parts.username}@127.0.0.1:{self.port}").geturl()
        self._folder = Path(tempfile.mkdtemp(prefix="sitq-pgbouncer-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._user = None if user is None else user.pw_uid
        password = f" password={parts.password}" if parts.password else ""
        server = f"host={parts.hostname} port={parts.port or 5432}{password}"
        settings = _SETTINGS.format(server=server, port=self.port, folder=self._folder)
        (self._folder / "settings").write_text(settings, encoding="utf-8")
        (self._folder / "users").write_text(f'"{parts.username}" ""\n', encoding="utf-8")
        if user is not None:  # it refuses to be root
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, user.pw_uid, user.pw_gid)
        self.start()

    @property
    def log(self) -> str:
        """What it has said."""
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start it and wait until it takes connections; called by the main thread, with which it ends."""
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")  # where Debian puts it
        if program is None:
            raise RuntimeError("pgbouncer was not found on PATH: apt install pgbouncer, or the like")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, self._folder / "settings"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self._folder, start_new_session=True, user=self._user,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (one call, which takes no lock)
            )  # fmt: skip
        deadline = time.monotonic() + DEADLINE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"pgbouncer did not start:\n{self.log}")
            time.sleep(0.02)  # it says nowhere that it listens: it is asked until the deadline

    def stop(self) -> None:
        """Kill it: its clients and its sessions are lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return True
        except OSError:
            return False
