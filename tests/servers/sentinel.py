"""A primary, a replica, and three sentinels that watch them, all on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

import redis

from servers.redis import RedisServer, binary_of
from servers.tls import Fronts

__all__ = ["SERVICE", "Watched"]

SERVICE = "shop"
PASSWORD = "a secret of the servers"
_PATIENCE = 60.0
_CONFIGURATION = """
port {port}
bind 127.0.0.1
dir {folder}
requirepass {own}
sentinel sentinel-pass {own}
sentinel monitor {service} 127.0.0.1 {primary} 2
sentinel auth-pass {service} "{password}"
sentinel down-after-milliseconds {service} {down_after}
sentinel failover-timeout {service} 3000
"""


class _Sentinel(RedisServer):
    PASSWORD = "of-the-sentinels"

    def __init__(self, kind: str, primary: int, down_after: float) -> None:
        super().__init__(kind)
        self._file = self.folder / "sentinel.conf"
        self._file.write_text(
            _CONFIGURATION.format(
                port=self.port, folder=self.folder, service=SERVICE, primary=primary, password=PASSWORD,
                own=self.PASSWORD, down_after=round(down_after * 1000),
            )
        )  # fmt: skip

    def command(self) -> list[str]:
        return [str(binary_of(self.kind)), str(self._file), "--sentinel"]


class Watched:
    """Servers of which one is the primary; `fail` and `hand_over` make it another one.

    A server that does not answer for `down_after` seconds is dead. Where nothing is to fail that is long: on a busy
    machine nothing answers for a second now and then. With `fronts` all are reached by TLS.
    """

    def __init__(self, kind: str, *settings: str, down_after: float = 60.0, fronts: Fronts | None = None) -> None:
        secrets = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
        # A replica is sent what is new at once, not what is on the primary's disk every second; nothing to wait for.
        self.servers = [RedisServer(kind, *secrets, "--repl-diskless-sync-delay", "0", *settings) for _ in range(2)]
        if fronts is not None:
            for server in self.servers:
                server.front = fronts.add(server.port, open_to_plain=True)
                server.settings += ("--replica-announce-port", str(server.front))
        self.sentinels = [_Sentinel(kind, self.servers[0].named_port, down_after) for _ in range(3)]
        if fronts is not None:
            for sentinel in self.sentinels:
                sentinel.front = fronts.add(sentinel.port)
        self._scheme = "rediss" if fronts else "redis"

    def __enter__(self) -> Self:
        try:
            self.servers[0].start()
            self.servers[1].start("--replicaof", "127.0.0.1", str(self.servers[0].named_port))
            self._until(
                lambda: self._has_replica(self.servers[0])
            )  # or it is not found before the sentinels look again, in ten seconds
            for sentinel in self.sentinels:
                sentinel.start()
            self.settle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for server in (*self.sentinels, *self.servers):
            server.remove()

    @property
    def url(self) -> str:
        """Where sentinels are that know the primary; the first of the addresses is nobody's."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (1, *(sentinel.named_port for sentinel in self.sentinels)))
        secret = PASSWORD.replace(" ", "%20")
        return f"{self._scheme}+sentinel://:{secret}@{hosts}/{SERVICE}?sentinel_password={_Sentinel.PASSWORD}"

    @property
    def primary(self) -> RedisServer:
        """Who is the primary, as a sentinel has it."""
        with self._ask(self.sentinels[0]) as sentinel:
            port = int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
        return next(server for server in self.servers if server.named_port == port)

    def fail(self) -> RedisServer:
        """Kill the primary, and wait until the replica is one. Returns who died."""
        dead = self.primary
        dead.stop()
        self._until(lambda: self.primary is not dead)
        return dead

    def bring_back(self, dead: RedisServer) -> None:
        """Start one that died, as the replica; in a thread that lasts, like all that starts a server."""
        dead.launch("--replicaof", "127.0.0.1", str(self.primary.named_port))

    def hand_over(self) -> None:
        """Have the sentinels make the replica the primary while both are well."""
        before = self.primary
        with self._ask(self.sentinels[0]) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
        self._until(lambda: self.primary is not before)
        self.settle()

    def settle(self) -> None:
        """Wait until the replica has all, and every sentinel knows it and the others."""
        self._until(self._is_settled)

    def _has_replica(self, primary: RedisServer) -> bool:
        with self._ask(primary) as client:
            return any(b"state=online" in line for line in _lines(client, "replication"))

    def _is_settled(self) -> bool:
        if not self._has_replica(self.primary):
            return False
        for one in self.sentinels:
            with self._ask(one) as sentinel:
                (line,) = [line for line in _lines(sentinel, "sentinel") if line.startswith(b"master0")]
                (replica,) = sentinel.execute_command("SENTINEL", "REPLICAS", SERVICE) or [[]]
                words = dict(zip(replica[::2], replica[1::2], strict=True))
            if b"status=ok" not in line or b"sentinels=3" not in line or words.get(b"flags") != b"slave":
                return False
            if words[b"master-port"] != str(self.primary.named_port).encode():
                return False
        return True

    def _until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                if is_so():
                    return
            except (redis.RedisError, ValueError):
                pass
            if time.monotonic() > deadline:
                said = "\n".join(server.log[-2000:] for server in (*self.sentinels, *self.servers))
                raise TimeoutError(f"the sentinels did not agree:\n{said}")
            time.sleep(0.05)

    def _ask(self, server: RedisServer) -> redis.Redis:
        password = _Sentinel.PASSWORD if isinstance(server, _Sentinel) else PASSWORD
        client = redis.Redis(port=server.port, password=password, socket_timeout=5.0, protocol=2)
        client.response_callbacks.clear()  # what is said, as it is said
        return client


def _lines(client: redis.Redis, section: str) -> list[bytes]:
    text: bytes = client.execute_command("INFO", section)  # type: ignore[no-untyped-call]
    return text.splitlines()
