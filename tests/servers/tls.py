"""TLS for servers: certificates, and proxies in front of them, since those in `.servers/` are built without it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

import trustme

from servers.proxy import Fork, Proxy

__all__ = ["Authority", "Fronts"]

P = TypeVar("P", bound=Proxy)
T = TypeVar("T")


class Authority:
    """Signs certificates; its own, and those of clients, are files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        folder.mkdir(exist_ok=True)
        self.path = str(folder / "authority.pem")
        self.client = str(folder / "client.pem")
        self._authority.cert_pem.write_to_path(self.path)
        self._authority.issue_cert("worker").private_key_and_cert_chain_pem.write_to_path(self.client)

    def server(self, host: str = "127.0.0.1", *, asks_back: bool = False) -> ssl.SSLContext:
        """Return what a server for a host needs. With `asks_back` clients show a certificate as well."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.sign(context, host)
        if asks_back:
            context.verify_mode = ssl.CERT_REQUIRED
            self._authority.configure_trust(context)
        return context

    def sign(self, context: ssl.SSLContext, host: str = "127.0.0.1") -> None:
        """Give a server another certificate, for whoever connects from now on."""
        self._authority.issue_cert(host).configure_cert(context)


class Fronts:
    """Proxies that end TLS in front of servers, in a thread of their own: a test may wait for what is behind them.

    Servers that are watched are reached by those who watch them at the address that is named to clients, and here
    without TLS: those fronts are `open_to_plain`.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._contexts: dict[int, ssl.SSLContext] = {}
        self._forks: dict[int, Fork] = {}
        self._stack = AsyncExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, port: int, *, open_to_plain: bool = False) -> int:
        """Return the port of a new front of a server."""
        self._contexts[port] = self._authority.server()
        proxy = self._enter(Proxy(port, tls=self._contexts[port]))
        self._forks[port] = self._enter(Fork(proxy.port, port if open_to_plain else None))
        return self._forks[port].port

    def handshakes(self, port: int) -> int:
        """Return how often somebody began to speak TLS with a server."""
        return self._forks[port].handshakes

    def sign(self, port: int, authority: Authority) -> None:
        """Have the certificate in front of a server signed by somebody."""
        authority.sign(self._contexts[port])

    def _enter(self, proxy: P) -> P:
        self._run(self._stack.enter_async_context(proxy))
        return proxy

    async def _close(self) -> None:
        await self._stack.aclose()
        if rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(rest, timeout=5.0)
        await asyncio.sleep(0)  # or what was aborted is not closed yet

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)
