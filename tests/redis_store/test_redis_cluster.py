"""A cluster: a namespace is on one node, which is found from any other, and waited for when it dies.

`SITQ_REDIS_CLUSTER_KILLS` says how often it does; `scripts/slow cluster` does it twenty times.
"""

import asyncio
import os
from collections.abc import Iterator

import pytest
import redis

from redis_store.ledger import Ledger
from servers.cluster import Cluster, ask
from servers.redis import KEYS
from sitq import BackendError, TaskQueue, ValidationError, Worker
from sitq.backends.redis import RedisBackend

KILLS = int(os.environ.get("SITQ_REDIS_CLUSTER_KILLS", "1"))


@pytest.fixture(scope="module")
def cluster(kind: str) -> Iterator[Cluster]:
    with Cluster(kind, "--appendonly", "yes", "--appendfsync", "always") as cluster:
        yield cluster


async def test_namespaces_are_found_from_every_node(cluster: Cluster) -> None:
    urls = [cluster.url, *(node.url for node in cluster.nodes)]
    owners = set()
    for number, url in enumerate(urls * 3):
        backend = RedisBackend(url, namespace=f"shop-{number}", signing_keys=KEYS)
        owners.add(cluster.owner(backend._settings.prefix).port)
        async with TaskQueue(backend) as queue, Worker(queue):
            assert await (await queue.enqueue(len, "abc")).result(timeout=60) == 3
    assert len(owners) > 1


async def test_all_keys_of_a_namespace_are_in_one_slot(cluster: Cluster) -> None:
    backend = RedisBackend(cluster.url, namespace="one-slot", signing_keys=KEYS)
    async with TaskQueue(backend) as queue:
        await queue.options(unique="key", queue="other").enqueue(len, "abc")
        await queue.options(delay=60.0).enqueue(len, "abc")
    prefix = backend._settings.prefix
    owner = cluster.owner(prefix)
    slots = {ask(owner, "CLUSTER", "KEYSLOT", key) for key in ask(owner, "KEYS", f"{prefix}*")}
    assert slots == {ask(owner, "CLUSTER", "KEYSLOT", prefix)}


async def test_the_node_of_a_namespace_dies_and_comes_back(cluster: Cluster) -> None:
    prefix = "{sitq:cluster-ledger}"
    ledger = Ledger(cluster.owner(prefix), "cluster-ledger")

    async def kill(ledger: Ledger) -> None:
        await ledger.kill()
        await asyncio.to_thread(cluster.settle)

    await ledger.work(cluster.url, [kill] * KILLS)


async def test_where_the_cluster_sends_is_named_when_nobody_is_there(cluster: Cluster) -> None:
    backend = RedisBackend("redis://127.0.0.1:1/0", namespace="gone", signing_keys=KEYS, retry_timeout=0.0)
    prefix = backend._settings.prefix
    owner, wrong = cluster.owner(prefix), cluster.others(prefix)[0]
    backend._settings.url = wrong.url
    owner.stop()
    try:
        with pytest.raises(BackendError) as caught:
            await backend.connect()
        text = str(caught.value)  # the others may have noticed already
        sent_there = f"a cluster, whose node 127.0.0.1:{owner.port} has the namespace" in text and "reached" in text
        assert sent_there or "the cluster has no node for this namespace at the moment" in text
    finally:
        owner.start()
        await asyncio.to_thread(cluster.settle)


async def test_what_a_driver_is_told_by_the_wrong_node(cluster: Cluster) -> None:
    """This is what sitq follows."""
    prefix = "{sitq:moved}"
    owner, wrong = cluster.owner(prefix), cluster.others(prefix)[0]
    with pytest.raises(redis.exceptions.MovedError) as caught:
        ask(wrong, "GET", prefix)
    assert caught.value.port == owner.port


def test_mistakes_are_told() -> None:
    with pytest.raises(ValidationError, match="only the database 0"):
        RedisBackend("redis+cluster://host/1")
    with pytest.raises(ValidationError, match=r"redis\+cluster://host"):
        RedisBackend("redis+clusters://host")
