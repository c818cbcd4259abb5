"""Servers for the tests of the store in Redis, both kinds: started before a test counts its child processes."""

import re
from collections.abc import Callable, Iterator

import pytest

from redis_store.keys import keys_out_of_place
from servers.redis import KEYS, KINDS, RedisServer, redis_url
from sitq.backends.redis import RedisBackend


@pytest.fixture(scope="module", autouse=True, params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Return which server the tests of a module use."""
    kind: str = request.param
    redis_url(kind)
    return kind


@pytest.fixture(scope="module")
def server(kind: str) -> Iterator[RedisServer]:
    """Return a server that tests may break, as long as they mend it."""
    server = RedisServer(kind)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def make(server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Callable[..., RedisBackend]]:
    """Return what makes backends on a namespace of the test's own."""
    namespace = re.sub(r"\W", "-", request.node.name)  # a name without what means something to SCAN

    def make(url: str = server.url, **options: object) -> RedisBackend:
        settings = {"namespace": namespace, "signing_keys": KEYS, "retry_timeout": 0.0} | options
        return RedisBackend(url, **settings)  # type: ignore[arg-type]

    yield make
    assert not keys_out_of_place(server.url, namespace)
