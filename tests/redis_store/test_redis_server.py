"""What a server does to those who use it: it restarts, forgets scripts, is full, is a replica, is not as asked."""

from collections.abc import Callable

import pytest
import redis

from redis_store.keys import keys_out_of_place
from servers.redis import RedisServer
from sitq import BackendError, TaskQueue, ValidationError, Worker
from sitq.backends.redis import RedisBackend
from sitq.backends.redis._errors import word_of
from sitq.core import Outcome, ReservedTask, WorkerInfo

Make = Callable[..., RedisBackend]
WORKER = WorkerInfo(id="w", lease=3600.0)


async def reserve_one(backend: RedisBackend) -> ReservedTask:
    (task,) = await backend.reserve(WORKER, 1)
    return task


async def test_a_server_that_lost_its_last_moments_repeats_no_fence(server: RedisServer, make: Make) -> None:
    async with make() as backend, TaskQueue(backend) as queue:
        task_id = await queue.enqueue(len, "abc")
        first = await reserve_one(backend)
        await backend.settle([Outcome.released(first.id, first.fence)])
        with redis.Redis.from_url(server.url) as client:
            client.save()
        lost = await reserve_one(backend)
        server.stop()
        server.start()  # from the snapshot: it has not heard of the reservation
        again = await reserve_one(backend)
        assert (lost.id, again.id, again.attempt) == (task_id, task_id, 1)
        assert (again.fence or 0) > (lost.fence or 0)
        assert await backend.settle([Outcome.released(lost.id, lost.fence)]) == [False]
        assert await backend.settle([Outcome.released(again.id, again.fence)]) == [True]


async def test_forgotten_scripts_are_sent_again(server: RedisServer, make: Make) -> None:
    async with make() as backend, TaskQueue(backend) as queue:
        with redis.Redis.from_url(server.url) as client:
            client.script_flush()
        assert await backend.get_task(await queue.enqueue(len, "abc")) is not None


async def test_a_full_server_takes_nothing_new_and_lets_workers_finish(server: RedisServer, make: Make) -> None:
    async with make() as backend, TaskQueue(backend) as queue:
        handle = await queue.enqueue(len, "abc")
        task = await reserve_one(backend)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", "1")
            try:
                with pytest.raises(BackendError, match="maxmemory"):
                    await queue.enqueue(len, "abc")
                assert await backend.settle([Outcome.released(task.id, task.fence)]) == [True]
            finally:
                client.config_set("maxmemory", "0")
        await Worker(queue).run_until_empty()
        assert await handle.result(timeout=60) == 3


async def test_a_replica_is_waited_for_or_named(server: RedisServer, make: Make) -> None:
    async with make() as backend, TaskQueue(backend) as queue:
        with redis.Redis.from_url(server.url) as client:
            client.replicaof("127.0.0.1", "1")
            try:
                with pytest.raises(BackendError, match="it is a replica"):
                    await queue.enqueue(len, "abc")
            finally:
                client.replicaof("NO", "ONE")
        assert (await queue.enqueue(len, "abc")).created


async def test_an_evicting_server_is_refused_unless_allowed_by_name(server: RedisServer, make: Make) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "1gb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(ValidationError, match="allkeys-lru"):
                await make().connect()
            with pytest.raises(ValidationError, match="allkeys-lru"):
                await make(allow_eviction="volatile-lru").connect()
            async with make(allow_eviction="allkeys-lru") as backend:
                findings = {finding.name: finding for finding in await backend.diagnose()}
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "0")
    assert (findings["eviction"].value, findings["eviction"].verdict) == ("allkeys-lru", "bad")


@pytest.mark.parametrize("durability", ["full", "strict"])
async def test_durability_is_what_the_server_can_give(server: RedisServer, make: Make, durability: str) -> None:
    with pytest.raises(ValidationError, match="appendonly"):
        await make(durability=durability).connect()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("appendonly", "yes")
        try:
            if server.kind == "redis":  # 6.2 has no WAITAOF
                with pytest.raises(ValidationError, match="WAITAOF"):
                    await make(durability=durability).connect()
                client.config_set("appendfsync", "always")
            async with make(durability=durability) as backend, TaskQueue(backend) as queue:
                handle = await queue.enqueue(len, "abc")
                await Worker(queue).run_until_empty()
                assert await handle.result(timeout=60) == 3
                findings = {finding.name: finding for finding in await backend.diagnose()}
        finally:
            client.config_set("appendonly", "no")
            client.config_set("appendfsync", "everysec")
    assert findings["durability"].value.startswith(f"{durability}: ")


async def test_the_permissions_of_the_page_are_enough(server: RedisServer, make: Make) -> None:
    rules = "resetchannels ~{sitq:* &{sitq:* +@read +@write +@scripting +@pubsub +@connection -@dangerous +info +time"
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", *rules.split())
        url = server.url.replace("://", "://worker:secret@")
        try:
            async with TaskQueue(make(url)) as queue, Worker(queue):
                assert await (await queue.enqueue(len, "abc")).result(timeout=60) == 3
                assert "secret" not in repr(await queue.backend.diagnose())
                client.execute_command("ACL", "SETUSER", "worker", "-evalsha")
                with pytest.raises(BackendError, match="permissions"):
                    await queue.enqueue(len, "abc")
                client.execute_command("ACL", "SETUSER", "worker", "+evalsha")
            with pytest.raises(BackendError, match="password"):
                await make(url.replace("secret", "wrong")).connect()
        finally:
            client.execute_command("ACL", "DELUSER", "worker")


async def test_nothing_is_left_when_all_has_ended(server: RedisServer, make: Make) -> None:
    backend = make()
    async with TaskQueue(backend) as queue:
        await queue.enqueue_many(len, [("abc",)] * 20)
        await queue.options(unique="key", unique_for=60).enqueue(len, "abc")
        await queue.options(queue="other", expires=0.001).enqueue(len, "abc")
        late = await queue.options(delay=0.01).enqueue(len, "abc")
        async with Worker(queue):
            assert await late.result(timeout=60) == 3
        await Worker(queue).run_until_empty()
        backend._settings.offset = 30 * 86_400 * 1_000_000  # all retentions have passed
        while await backend.purge():
            pass
    with redis.Redis.from_url(server.url) as client:
        prefix = backend._settings.prefix
        left = {key.decode().removeprefix(prefix) for key in client.scan_iter(f"{prefix}*")}
    assert left <= {"", ":queues", ":waiting"}, left


async def test_the_key_check_would_notice(server: RedisServer, make: Make) -> None:
    async with make() as backend, TaskQueue(backend) as queue:
        await queue.enqueue(len, "abc")
        prefix, namespace = backend._settings.prefix, backend._settings.namespace
        with redis.Redis.from_url(server.url) as client:
            client.set(f"{prefix}:stranger", "1")
            client.zadd(f"{prefix}:done", {"nobody": 1})
            assert len(keys_out_of_place(server.url, namespace)) == 2
            client.delete(f"{prefix}:stranger", f"{prefix}:done")


def test_errors_are_known_by_their_word() -> None:
    assert word_of(redis.ResponseError("@user_script: 42: -MISCONF Redis is configured to save")) == "MISCONF"
    assert word_of(redis.ResponseError("NOREPLICAS Not enough good replicas to write.")) == "NOREPLICAS"
    assert word_of(redis.ResponseError("unknown command 'FOO'")) == ""
