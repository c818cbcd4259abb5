"""TLS behind sentinels and in a cluster: whoever is named is reached by it too. Proxies end it in front of all."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.cluster import Cluster
from servers.redis import KEYS
from servers.sentinel import SERVICE, Watched
from servers.tls import Authority, Fronts
from sitq import BackendError, TaskQueue, ValidationError, Worker
from sitq.backends.redis import RedisBackend

NOT_TRUSTED = r"certificate is not trusted: .* ssl_ca_certs"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "trusted")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


@pytest.fixture
def fronts(authority: Authority) -> Iterator[Fronts]:
    with Fronts(authority) as fronts:
        yield fronts


@pytest.fixture
def watched(kind: str, fronts: Fronts) -> Iterator[Watched]:
    with Watched(kind, down_after=1.0, fronts=fronts) as watched:
        yield watched


@pytest.fixture
def cluster(kind: str, fronts: Fronts) -> Iterator[Cluster]:
    with Cluster(kind, fronts=fronts) as cluster:
        yield cluster


def _backend(url: str, authority: Authority, namespace: str = "tls", **options: float) -> RedisBackend:
    url += f"{'&' if '?' in url else '?'}ssl_ca_certs={authority.path}"
    return RedisBackend(url, namespace=namespace, signing_keys=KEYS, **options)  # type: ignore[arg-type]


async def test_a_failover_is_followed(watched: Watched, fronts: Fronts, authority: Authority) -> None:
    async with TaskQueue(_backend(watched.url, authority)) as queue, Worker(queue):
        assert await (await queue.enqueue(len, "abc")).result(timeout=60) == 3
        dead = await asyncio.to_thread(watched.fail)
        assert await (await queue.enqueue(len, "abcd")).result(timeout=60) == 4
        (replica,) = (server for server in watched.servers if server is not dead)
        assert fronts.handshakes(replica.port) >= 3  # to write, to reserve, to read


async def test_whom_sentinels_name_and_they_themselves_are_to_be_trusted(
    watched: Watched, fronts: Fronts, authority: Authority, stranger: Authority
) -> None:
    with pytest.raises(BackendError, match=NOT_TRUSTED):
        await _backend(watched.url, stranger).connect()
    with pytest.raises(BackendError, match="user or password are wrong"):
        await _backend(watched.url.replace("of-the-sentinels", "wrong"), authority).connect()
    assert [fronts.handshakes(sentinel.port) for sentinel in watched.sentinels] == [2, 2, 2]  # nothing is repeated
    assert not any(fronts.handshakes(server.port) for server in watched.servers)
    plain = f"rediss+sentinel://127.0.0.1:{watched.sentinels[0].port}/{SERVICE}"
    with pytest.raises(BackendError, match="whether they speak TLS"):
        await _backend(plain, authority, timeout=0.5, retry_timeout=0.0).connect()
    for server in watched.servers:
        fronts.sign(server.port, stranger)
    with pytest.raises(BackendError, match=NOT_TRUSTED):
        await _backend(watched.url, authority).connect()
    assert sum(fronts.handshakes(server.port) for server in watched.servers) == 1
    fronts.sign(watched.sentinels[0].port, stranger)  # the other two know it as well
    for server in watched.servers:
        fronts.sign(server.port, authority)
    with pytest.raises(BackendError, match="no sentinel names a primary"):  # and may soon
        await _backend(watched.url.replace(f"/{SERVICE}", "/other"), authority, retry_timeout=0.0).connect()
    async with TaskQueue(_backend(watched.url, authority)) as queue:
        assert (await queue.enqueue(len, "abc")).created


async def test_a_namespace_is_found_and_followed(cluster: Cluster, fronts: Fronts, authority: Authority) -> None:
    backends = [_backend(cluster.url, authority, f"tls-{number}") for number in range(6)]
    by_owner = {cluster.owner(backend._settings.prefix): backend for backend in backends}
    assert len(by_owner) > 1
    for backend in by_owner.values():
        async with TaskQueue(backend) as queue, Worker(queue):
            assert await (await queue.enqueue(len, "abc")).result(timeout=60) == 3
    moving = by_owner[cluster.nodes[0]]
    async with TaskQueue(moving) as queue:
        first = await queue.enqueue(len, "abc")
        there = await asyncio.to_thread(cluster.move, moving._settings.prefix)
        before = {node: fronts.handshakes(node.port) for node in cluster.nodes}
        second = await queue.enqueue(len, "abcd")
        asked = [node for node in cluster.nodes if fronts.handshakes(node.port) > before[node]]
        assert asked == [there]  # at once, as its MOVED says
        assert (await Worker(queue).run_until_empty()).completed == 2
        assert [await handle.result(timeout=60) for handle in (first, second)] == [3, 4]


async def test_nodes_of_a_cluster_are_to_be_trusted(
    cluster: Cluster, fronts: Fronts, authority: Authority, stranger: Authority
) -> None:
    backend = _backend(cluster.url, stranger)
    with pytest.raises(BackendError, match=NOT_TRUSTED):
        await backend.connect()
    assert sum(fronts.handshakes(node.port) for node in cluster.nodes) == 1  # nothing is repeated
    owner, other = cluster.owner(backend._settings.prefix), cluster.others(backend._settings.prefix)[0]
    fronts.sign(owner.port, stranger)
    with pytest.raises(BackendError, match=f"whose node 127.0.0.1:{owner.front} has the namespace.*{NOT_TRUSTED}"):
        await _backend(f"rediss+cluster://127.0.0.1:{other.front}", authority).connect()


@pytest.mark.parametrize("place", ["://host/0", "+sentinel://host/shop", "+cluster://host/"])
def test_options_that_say_nothing_are_refused_before_anybody_connects(place: str) -> None:
    with pytest.raises(ValidationError, match=r"ssl_ca_certs is about TLS, and .* goes without: write rediss"):
        RedisBackend(f"redis{place}?ssl_ca_certs=file")
    for mistake in ("ssl_nonsense=1", "socket_timeout=long", "ssl_cert_reqs=maybe"):
        with pytest.raises(ValidationError, match=r"cannot (use the options of|read) the rediss.* URL"):
            RedisBackend(f"rediss{place}?{mistake}")
