"""Where the server of a namespace is: the URL names it, sentinels are asked for it, or a node of a cluster tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from sitq.backends.redis._errors import is_passing
from sitq.exceptions import ValidationError

__all__ = ["Address", "Settings", "close_sentinels", "connections_of", "normal_url"]

_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
_PORTS = {"": 6379, "cluster": 6379, "sentinel": 26379}
_SENTINEL_PATIENCE = 1.0  # seconds for one of them to answer; then the next is asked

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What a URL says: how to talk to a node, and who knows which node it is."""

    url: str  # of one node, as redis-py reads it
    nodes: tuple[Address, ...]  # sentinels or nodes of a cluster; empty where the URL names the server itself
    service: str  # what the sentinels call the primary and its replicas
    login: Mapping[str, str]  # of the sentinels


def normal_url(url: str) -> str:
    """Return a URL with a scheme that is known inside. Raises `ValidationError` for one that cannot be read."""
    scheme, separator, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    if not separator or base not in _SCHEMES or kind not in _PORTS or scheme.endswith("+"):
        raise ValidationError(
            "write redis://host:6379/0, rediss:// (TLS), valkey://, redis+sentinel://host:26379,host:26379/service or "
            f"redis+cluster://host:6379,host:6379, not {scheme + separator!r}"
        )
    url = f"{_SCHEMES[base]}{'+' * bool(kind)}{kind}://{rest}"
    _check_options(url)
    return url


def _check_options(url: str) -> None:
    """Refuse now what the driver would refuse when it connects."""
    scheme = url.partition("://")[0]
    node = _read(url).url
    try:
        pool = ConnectionPool.from_url(node)
    except ValueError as error:
        raise ValidationError(f"cannot read the {scheme}:// URL ({error})") from error
    tls = [name for name in pool.connection_kwargs if name.startswith("ssl_")]
    if tls and not scheme.startswith("rediss"):
        secure = scheme.replace("redis", "rediss", 1)
        raise ValidationError(f"{tls[0]} is about TLS, and {scheme}:// goes without: write {secure}://")
    try:
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, RedisError) as error:
        raise ValidationError(f"cannot use the options of the {scheme}:// URL ({error})") from error


@lru_cache(64)
def _read(url: str) -> _Place:
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.partition("+")
    if not kind:
        return _Place(url=url, nodes=(), service="", login={})
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    try:
        parts = [urlsplit(f"//{host}") for host in hosts.split(",")]
        nodes = tuple((part.hostname or "localhost", part.port or _PORTS[kind]) for part in parts)
        options = dict(parse_qsl(query, strict_parsing=bool(query)))
    except ValueError as error:
        raise ValidationError(f"cannot read {scheme}://{hosts} ({error})") from error
    login = {
        name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options
    }
    service, _, database = path.partition("/") if kind == "sentinel" else ("", "", path)
    if kind == "sentinel" and not service:
        raise ValidationError(
            f"{scheme}://{hosts} does not say which service of the sentinels: {scheme}://{hosts}/mymaster"
        )
    if kind == "cluster" and database not in ("", "0"):
        raise ValidationError(f"a cluster has only the database 0, not {database!r}")
    node = f"{base}://{user}{at}{parts[0].netloc or 'localhost'}/{database or 0}?{urlencode(options)}"
    return _Place(url=node, nodes=nodes, service=service, login=login)


@dataclass(slots=True, kw_only=True)
class Settings:
    """How a namespace is reached. One object for all handles: a cluster's redirection is found out once."""

    url: str
    namespace: str
    durability: str
    allowed_policy: str | None
    retry_timeout: float
    timeout: float
    replicas: int = 0
    address: Address | None = None  # of the node that has the namespace, in a cluster
    told: str = ""  # what the cluster said last, for messages
    turn: int = 0  # which node of a cluster to ask
    offset: int = 0  # microseconds; tests move the clock by it

    @property
    def prefix(self) -> str:
        """What all keys begin with: in braces, so that a cluster keeps them on one node."""
        return f"{{sitq:{self.namespace}}}"

    @property
    def where(self) -> str:
        """Where the store is, without the password."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2].split('?', 1)[0]}{self.told}"

    @property
    def has_sentinels(self) -> bool:
        """Whether the server is whoever is the primary at the moment."""
        return bool(_read(self.url).service)

    def moved(self, address: Address) -> None:
        """Go where a node of the cluster says that the namespace is."""
        self.address = address
        self.told = f" (a cluster, whose node {address[0]}:{address[1]} has the namespace)"

    def lost(self) -> None:
        """Ask anew where the namespace is: the server went away."""
        self.address = None
        self.turn += 1

    async def connection(self) -> AbstractConnection:
        """Make a connection, not open yet. What fails is not tried again by the driver, but by us."""
        place = _read(self.url)
        pool = ConnectionPool.from_url(
            place.url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=self.timeout,
            socket_connect_timeout=self.timeout, socket_keepalive=True,
        )  # fmt: skip
        options = pool.connection_kwargs
        if place.service:
            options["host"], options["port"] = await self._ask_once()
        elif self.address is not None:
            options["host"], options["port"] = self.address
        elif place.nodes:
            options["host"], options["port"] = place.nodes[self.turn % len(place.nodes)]
        return pool.connection_class(**options)

    def sentinels(self) -> list[Redis]:
        """Return the sentinels. They are reached like the server: by TLS if that is."""
        place = _read(self.url)
        known = ConnectionPool.from_url(place.url).connection_kwargs
        options: dict[str, Any] = {name: value for name, value in known.items() if name.startswith("ssl_")}
        patience = min(self.timeout, _SENTINEL_PATIENCE)
        options |= {
            **place.login, "ssl": place.url.startswith("rediss:"), "protocol": 2, "retry": Retry(NoBackoff(), 0),
            "socket_timeout": patience, "socket_connect_timeout": patience,
        }  # fmt: skip
        return [Redis(host=host, port=port, **options) for host, port in place.nodes]

    async def primary(self, sentinels: list[Redis]) -> Address:
        """Ask the sentinels, one after the other, who is the primary; who knows it is the first the next time.

        Redis-py does this too, and makes one text of all errors, which says no more whether to ask again: when all
        fail, a certificate that is not trusted or a wrong password is the reason, and it stays.
        """
        service = _read(self.url).service
        failures: list[Exception] = []
        for number, sentinel in enumerate(sentinels):
            try:
                services: Any = await sentinel.sentinel_masters()
            except (RedisError, OSError) as error:
                failures.append(error)
                continue
            told = services.get(service)
            if told and told["is_master"] and not told["is_sdown"] and not told["is_odown"]:
                sentinels[0], sentinels[number] = sentinel, sentinels[0]
                return told["ip"], told["port"]
        lasting = [error for error in failures if not is_passing(error)]
        if lasting and len(failures) == len(sentinels):
            raise lasting[0]
        raise MasterNotFoundError("; ".join(map(str, failures)) or f"none of them watches {service!r}, or it is down")

    async def _ask_once(self) -> Address:
        sentinels = self.sentinels()
        try:
            return await self.primary(sentinels)
        finally:
            close_sentinels(sentinels)


def close_sentinels(sentinels: Iterable[Redis]) -> None:
    """Close the connections to sentinels: all of them, at once, so that no error and no cancelling comes between."""
    for connection in connections_of(sentinels):
        writer, connection._writer, connection._reader = connection._writer, None, None
        if writer is not None:
            writer.transport.abort()


def connections_of(sentinels: Iterable[Redis]) -> list[AbstractConnection]:
    """Return the connections to sentinels, open or not."""
    pools: list[Any] = [sentinel.connection_pool for sentinel in sentinels]
    return [connection for pool in pools for connection in (*pool._available_connections, *pool._in_use_connections)]
