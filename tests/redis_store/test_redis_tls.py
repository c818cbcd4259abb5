"""TLS through a proxy that ends it in front of a plain server: what works, and what each mistake is told."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from servers.proxy import Fork, Proxy
from servers.redis import RedisServer
from servers.tls import Authority
from sitq import BackendError, TaskQueue, Worker
from sitq.backends.redis import RedisBackend

Make = Callable[..., RedisBackend]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_work_goes_by_tls(server: RedisServer, make: Make, authority: Authority) -> None:
    async with Proxy(server.port, tls=authority.server()) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.path}"
        async with TaskQueue(make(url)) as queue, Worker(queue):
            assert await (await queue.enqueue(len, "abc")).result(timeout=60) == 3
            proxy.cut()
            assert await (await queue.enqueue(len, "abcd")).result(timeout=60) == 4
        assert proxy.connections >= 4  # to write, to read, to listen; after the cut again


async def test_a_client_shows_its_certificate(server: RedisServer, make: Make, authority: Authority) -> None:
    async with Proxy(server.port, tls=authority.server(asks_back=True)) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.path}"
        async with TaskQueue(make(f"{url}&ssl_certfile={authority.client}&ssl_keyfile={authority.client}")) as queue:
            await queue.enqueue(len, "abc")
        with pytest.raises(BackendError, match=r"ssl_certfile|look at the ssl_ options"):
            await make(url).connect()


async def test_a_loop_that_ended_without_a_word_leaves_nothing_open(
    server: RedisServer, make: Make, authority: Authority
) -> None:
    async with Proxy(server.port, tls=authority.server()) as proxy:
        backend = make(f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.path}")
        await asyncio.to_thread(asyncio.run, backend.connect())
        async with backend:
            pass


async def test_who_is_not_trusted_is_refused_at_once(
    server: RedisServer, make: Make, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    async with Proxy(server.port, tls=authority.server()) as behind, Fork(behind.port) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0"
        for mistake in ("", f"?ssl_ca_certs={other.path}"):
            with pytest.raises(BackendError, match=r"certificate is not trusted: .* ssl_ca_certs"):
                await make(url + mistake, retry_timeout=30.0).connect()
        with pytest.raises(BackendError, match="a file that the ssl_ options of the URL name is not there"):
            await make(f"{url}?ssl_ca_certs={tmp_path}/none.pem", retry_timeout=30.0).connect()
        assert proxy.handshakes == 2
    async with Proxy(server.port, tls=authority.server("elsewhere.example")) as proxy:
        with pytest.raises(BackendError, match="and the host as the certificate has it"):
            await make(f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.path}", retry_timeout=30.0).connect()


async def test_tls_where_there_is_none_is_told(server: RedisServer, make: Make) -> None:
    with pytest.raises(BackendError, match=r"speaks? TLS on this port"):
        await make(server.url.replace("redis://", "rediss://"), timeout=1.0).connect()
