"""What the live server really gives: durability, eviction, memory. Refuses what breaks the promise."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from redis.exceptions import ResponseError

from sitq.backends.redis._link import Line
from sitq.backends.redis._settings import Settings
from sitq.core import Finding, Verdict
from sitq.exceptions import BackendError, ValidationError

__all__ = ["DURABILITIES", "Server", "check", "diagnose", "read_server"]

DURABILITIES = ("relaxed", "full", "strict")  # each keeps what the one before it keeps
_OLDEST = (6, 2)

logger = logging.getLogger("sitq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a server says of itself. `fsync` and `maxmemory` are None where it does not say (CONFIG is forbidden)."""

    name: str
    version: tuple[int, ...]
    role: str
    appendonly: bool
    fsync: str | None
    policy: str
    maxmemory: int
    used: int
    replicas: int
    can_wait: bool
    """WAITAOF is there (Redis 7.2, Valkey)."""

    @property
    def survives(self) -> str:
        """What a crash of the server leaves, in words."""
        if not self.appendonly:
            return "snapshots only (appendonly no): a crash of the server loses what came since the last one"
        if self.fsync == "always":
            return "appendfsync always: what was acknowledged is on the server's disk"
        if self.fsync == "everysec":
            return "appendfsync everysec: a power cut may lose the last second; a killed server loses nothing"
        if self.fsync == "no":
            return "appendfsync no: a power cut may lose half a minute; a killed server loses nothing"
        return "an append-only file; how often it is synced, the server does not tell (CONFIG is forbidden)"


async def read_server(line: Line) -> Server:
    """Ask the server what it is and how it is set up."""
    info = _parse(await line.command("INFO"))
    is_valkey = info.get("server_name") == "valkey"
    version = info["valkey_version"] if is_valkey else info["redis_version"]
    return Server(
        name="Valkey" if is_valkey else "Redis",
        version=tuple(int(part) for part in version.split(".")[:3]),
        role=info.get("role", "master"),
        appendonly=info.get("aof_enabled") == "1",
        fsync=await _config(line, "appendfsync"),
        policy=info.get("maxmemory_policy", "noeviction"),
        maxmemory=int(info.get("maxmemory", 0)),
        used=int(info.get("used_memory", 0)),
        replicas=int(info.get("connected_slaves", 0)),
        can_wait=await _has_command(line, "WAITAOF"),
    )


def _parse(text: bytes) -> Mapping[str, str]:
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value for name, _, value in lines}


async def _config(line: Line, name: str) -> str | None:
    try:
        answer = await line.command("CONFIG", "GET", name)
    except ResponseError:  # forbidden, or renamed by whoever runs the server
        return None
    return answer[1].decode() if answer else None


async def _has_command(line: Line, name: str) -> bool:
    try:
        return bool((await line.command("COMMAND", "INFO", name))[0])
    except ResponseError:
        return False


def check(server: Server, settings: Settings) -> bool:
    """Refuse a server that cannot keep what was asked for; say whether batches must wait for its disk."""
    where = settings.where
    if server.name == "Redis" and server.version < _OLDEST:
        raise BackendError(f"{where} is {_title(server)}: sitq needs Redis 6.2 or newer, or Valkey")
    if _evicts(server) and settings.allowed_policy != server.policy:
        raise ValidationError(
            f"{where} evicts keys when its memory is full (maxmemory-policy {server.policy}), and tasks with them: set "
            f'maxmemory-policy to noeviction, or accept the loss by allow_eviction="{server.policy}"'
        )
    logger.info("%s: %s, %s", where, _title(server), server.survives)
    if settings.durability == "relaxed":
        return False
    level = settings.durability
    if not server.appendonly:
        raise ValidationError(
            f'{where} has appendonly no, so durability="{level}" cannot be kept: CONFIG SET appendonly yes'
        )
    if server.fsync == "always":
        return False  # every reply comes after the sync
    if not server.can_wait:
        has = server.fsync or "something it does not tell"
        raise ValidationError(
            f'{where} is {_title(server)}, which has no WAITAOF, so durability="{level}" needs appendfsync always '
            f"(it has {has}): set it, or use Valkey"
        )
    return True


def _title(server: Server) -> str:
    return f"{server.name} {'.'.join(map(str, server.version))}"


def _evicts(server: Server) -> bool:
    return server.policy != "noeviction" and server.maxmemory > 0


def diagnose(server: Server, settings: Settings) -> list[Finding]:
    """Say what to think of a server."""
    return [
        Finding(name="store", value=f"{settings.where}, namespace {settings.namespace}"),
        _durability(server, settings),
        Finding(name=server.name, value=".".join(map(str, server.version))),
        *_memory(server),
        Finding(name="role", value=server.role, verdict=Verdict.OK if server.role == "master" else Verdict.BAD,
                advice="" if server.role == "master" else "it takes no writes: give the address of the primary"),
        _replicas(server, settings),
        Finding(name="wake-up", value="by the server (pub/sub)"),
        Finding(name="clock", value="leases and due times use the server's clock"),
    ]  # fmt: skip


def _durability(server: Server, settings: Settings) -> Finding:
    level = settings.durability
    if level == "relaxed":
        safe = server.appendonly and server.fsync == "always"
        return Finding(
            name="durability", value=f"relaxed: {server.survives}", verdict=Verdict.OK if safe else Verdict.WARN,
            advice="" if safe else 'set appendonly yes, and durability="full" or appendfsync always',
        )  # fmt: skip
    what = "a task is" if level == "full" else "tasks and what became of them are"
    how = "every write" if server.fsync == "always" else "WAITAOF"
    return Finding(name="durability", value=f"{level}: {what} on the server's disk before anybody is told ({how})")


def _replicas(server: Server, settings: Settings) -> Finding:
    wanted, there = settings.replicas, server.replicas
    told = f", of which {wanted} have a task before anybody is told" if wanted else ""
    return Finding(
        name="replicas", value=f"{there}{told}",
        number=float(there), verdict=Verdict.BAD if there < wanted else Verdict.OK,
        advice=f"nothing can be enqueued with replicas={wanted}: bring them back" if there < wanted else "",
    )  # fmt: skip


def _memory(server: Server) -> Iterator[Finding]:
    limit = f" of {server.maxmemory / 2**20:,.0f} MiB" if server.maxmemory else ", without a limit"
    full = bool(server.maxmemory) and server.used > 0.8 * server.maxmemory
    yield Finding(
        name="memory", value=f"{server.used / 2**20:,.1f} MiB{limit}", number=float(server.used),
        verdict=Verdict.WARN if full else Verdict.OK,
        advice="it takes no new tasks when it is full: raise maxmemory, shorten retention" if full else "",
    )  # fmt: skip
    evicts = server.policy != "noeviction"
    yield Finding(
        name="eviction", value=server.policy,
        verdict=Verdict.BAD if _evicts(server) else Verdict.WARN if evicts else Verdict.OK,
        advice="tasks are lost when memory is full: CONFIG SET maxmemory-policy noeviction" if evicts else "",
    )  # fmt: skip
