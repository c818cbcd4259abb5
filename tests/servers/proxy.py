"""A small TCP proxy that breaks connections in the ways a network does."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Self

__all__ = ["Fork", "Proxy"]


class Proxy:
    """Passes bytes to a port on this machine, on the running event loop, until it is told otherwise.

    With `tls` its clients speak TLS with it, and it speaks plainly with the port.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.connections = 0
        self._target = port
        self._tls = tls
        self._passes = asyncio.Event()
        self._passes.set()
        self._replies = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)

    def cut(self) -> None:
        """Reset all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    def hang(self) -> None:
        """Let nothing through, new connections included, and close none: as when a cable is pulled."""
        self._passes.clear()

    def deafen(self) -> None:
        """Let requests through, and no replies."""
        self._replies = False

    def mend(self) -> None:
        """Pass bytes again; what was broken stays lost."""
        self.cut()
        self._replies = True
        self._passes.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            port, first = await self._aim(reader)
            there = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            return
        there[1].write(first)
        for source, sink, is_reply in ((reader, there[1], False), (there[0], writer, True)):
            self._writers.add(sink)
            pump = asyncio.create_task(self._pump(source, sink, is_reply))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _aim(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        """Return where a connection leads, and what had to be read to know it."""
        return self._target, b""

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_reply: bool) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await self._passes.wait()
                if self._replies or not is_reply:
                    sink.write(data)
                    await sink.drain()
        self._writers.discard(sink)
        sink.transport.abort()


class Fork(Proxy):
    """Passes what begins a TLS handshake to one port, and all else to another, or nowhere. Counts the handshakes.

    A proxy with `tls` does not hear of those that fail.
    """

    def __init__(self, tls: int, plain: int | None = None) -> None:
        super().__init__(tls)
        self.handshakes = 0
        self._plain = plain

    async def _aim(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        first = await reader.read(65536)
        if first.startswith(b"\x16"):
            self.handshakes += 1
            return self._target, first
        if self._plain is None:
            raise ConnectionRefusedError("this is no TLS")
        return self._plain, first
