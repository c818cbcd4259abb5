"""TLS through a proxy that ends it in front of a plain server: what works, and what each mistake is told."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from servers.proxy import Proxy
from servers.redis import RedisServer
from sitq import BackendError, TaskQueue, Worker
from sitq.backends.redis import RedisBackend

Make = Callable[..., RedisBackend]


class Authority:
    """Signs certificates; its own, and those of clients, are files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.path = str(folder / "authority.pem")
        self.client = str(folder / "client.pem")
        self._authority.cert_pem.write_to_path(self.path)
        self._authority.issue_cert("worker").private_key_and_cert_chain_pem.write_to_path(self.client)

    def server(self, host: str = "127.0.0.1", *, asks_back: bool = False) -> ssl.SSLContext:
        """Return what a server for a host needs. With `asks_back` clients show a certificate as well."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(host).configure_cert(context)
        if asks_back:
            context.verify_mode = ssl.CERT_REQUIRED
            self._authority.configure_trust(context)
        return context


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


async def test_who_is_not_trusted_is_refused_at_once(
    server: RedisServer, make: Make, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    async with Proxy(server.port, tls=authority.server()) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0"
        for mistake in ("", f"?ssl_ca_certs={other.path}"):
            with pytest.raises(BackendError, match=r"certificate is not trusted: .* ssl_ca_certs"):
                await make(url + mistake, retry_timeout=30.0).connect()
        with pytest.raises(BackendError, match="a file that the ssl_ options of the URL name is not there"):
            await make(f"{url}?ssl_ca_certs={tmp_path}/none.pem", retry_timeout=30.0).connect()
        assert proxy.connections <= 2 * 2
    async with Proxy(server.port, tls=authority.server("elsewhere.example")) as proxy:
        with pytest.raises(BackendError, match="and the host as the certificate has it"):
            await make(f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.path}", retry_timeout=30.0).connect()


async def test_tls_where_there_is_none_is_told(server: RedisServer, make: Make) -> None:
    with pytest.raises(BackendError, match=r"speaks? TLS on this port"):
        await make(server.url.replace("redis://", "rediss://"), timeout=1.0).connect()
