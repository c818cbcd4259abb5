"""From a URL to a backend: the built-in schemes, and those that packages add by the entry point group `sitq.backends`.

An entry point is named after its scheme and leads to a callable that takes the URL, or to a class with `from_url`.
"""

from __future__ import annotations

import importlib
from typing import Any

from sitq.backends.base import Backend
from sitq.exceptions import ValidationError

__all__ = ["backend_from_url"]

_BUILT_IN = {
    "memory": "sitq.backends.memory:MemoryBackend",
    "postgres": "sitq.backends.postgres:PostgresBackend",
    "postgresql": "sitq.backends.postgres:PostgresBackend",
    "redis": "sitq.backends.redis:RedisBackend",
    "redis+cluster": "sitq.backends.redis:RedisBackend",
    "redis+sentinel": "sitq.backends.redis:RedisBackend",
    "rediss": "sitq.backends.redis:RedisBackend",
    "rediss+cluster": "sitq.backends.redis:RedisBackend",
    "rediss+sentinel": "sitq.backends.redis:RedisBackend",
    "sqlite": "sitq.backends.sqlite:SQLiteBackend",
    "valkey": "sitq.backends.redis:RedisBackend",
    "valkeys": "sitq.backends.redis:RedisBackend",
}


def backend_from_url(url: str) -> Backend:
    """Make the backend a URL names; nothing is opened. Raises `ValidationError` for an unknown scheme."""
    from urllib.parse import urlsplit  # 2 ms of import, for those who use URLs

    scheme = urlsplit(url).scheme
    if not scheme:
        raise ValidationError(f"{url!r} is no URL of a store: write for example sqlite:///{url}")
    make = _load(scheme)
    backend = getattr(make, "from_url", make)(url)
    if not isinstance(backend, Backend):
        raise ValidationError(f"the entry point for {scheme}:// gave {type(backend).__name__}, which is no Backend")
    return backend


def _load(scheme: str) -> Any:
    target = _BUILT_IN.get(scheme)
    if target is not None:
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)
    from importlib.metadata import entry_points  # 10 ms of import, for those whose store is not built in

    added = entry_points(group="sitq.backends")
    for entry_point in added:
        if entry_point.name == scheme:
            return entry_point.load()
    known = sorted({*_BUILT_IN, *added.names})
    raise ValidationError(
        f"no backend for {scheme}://: install one, or use {', '.join(f'{name}://' for name in known)}"
    )
