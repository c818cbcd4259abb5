"""Ports for throw-away servers."""

from __future__ import annotations

import secrets
import socket

__all__ = ["free_port"]


def free_port() -> int:
    """Return a port that is free, and so is the one 10,000 above it, on which the nodes of a Redis cluster talk.

    Both are below what systems give to connections (from 32,768 on Linux): one had taken a port before its server
    started.
    """
    while True:
        port = 10_000 + secrets.randbelow(12_000)  # not `random`, which Hypothesis seeds
        try:
            for number in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
