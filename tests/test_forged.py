"""Somebody who can write to a network store, and lacks the key: nothing they put there is ever decoded.

Tasks are enqueued and run as always; then their bytes are changed where they lie, with the server's own commands.
"""

import asyncio
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from servers.postgres import KEYS, fresh_postgres, postgres_url
from servers.redis import fresh_redis, redis_url
from sitq import CloudpickleSerializer, SerializationError, SignedSerializer, TaskFailedError, TaskQueue, Worker
from sitq.serialization import MAGIC, Serializer
from stores import SERVERS

REFUSALS = (
    "the signature does not fit", "which is not known here", "no payload of sitq", "where 's' was expected",
    "a payload of version", "neither a function nor a payload",
)  # fmt: skip
ROTATED = {"new": b"the secret that comes next", **KEYS}
HEAD = len(MAGIC) + 2 + len("tests") + 32  # up to the end of the signature


def echo(value: Any) -> Any:
    return value


NAME = f"{echo.__module__}:echo"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


class Postgres:
    """Bytes of tasks, as SQL sees them."""

    columns: Mapping[str, str] = {"call": "payload", "result": "result", "name": "name"}

    def __init__(self) -> None:
        self.make = fresh_postgres()
        self._table = f"{self.make()._settings.schema}.sitq_tasks"

    def read(self, task_id: str, what: str) -> bytes:
        query = f"SELECT {self.columns[what]} FROM {self._table} WHERE id = %s"
        with psycopg.connect(postgres_url()) as connection:
            row = connection.execute(query.encode(), [task_id]).fetchone()
        assert row is not None
        return bytes(row[0])

    def write(self, what: str, values: Mapping[str, bytes]) -> None:
        column = self.columns[what]
        change = f"UPDATE {self._table} SET {column} = %s WHERE id = %s"
        with psycopg.connect(postgres_url()) as connection, connection.cursor() as cursor:
            changes = [(data.decode() if what == "name" else data, key) for key, data in values.items()]
            cursor.executemany(change.encode(), changes)


class Redis:
    """Bytes of tasks, as commands see them."""

    fields: Mapping[str, str] = {"call": "y", "result": "v", "name": "m"}

    def __init__(self) -> None:
        self.make = fresh_redis("valkey")
        self._prefix = f"{{sitq:{self.make.keywords['namespace']}}}:task:"

    def read(self, task_id: str, what: str) -> bytes:
        with redis.Redis.from_url(redis_url("valkey")) as client:
            found: Any = client.hget(self._prefix + task_id, self.fields[what])
        assert isinstance(found, bytes)
        return found

    def write(self, what: str, values: Mapping[str, bytes]) -> None:
        with redis.Redis.from_url(redis_url("valkey")) as client:
            for task_id, data in values.items():
                assert client.hset(self._prefix + task_id, self.fields[what], data) == 0  # it was there


@pytest.fixture(scope="module", autouse=True)
def servers() -> None:
    """Start them before the first test counts its child processes."""
    for start in SERVERS.values():
        start()


@pytest.fixture(params=[Postgres, Redis])
def store(request: pytest.FixtureRequest) -> Postgres | Redis:
    made: Postgres | Redis = request.param()
    return made


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return what is unpickled from now on."""
    seen: list[bytes] = []
    loads = pickle.loads

    def spy(data: bytes, *args: Any, **kwargs: Any) -> Any:
        seen.append(bytes(data))
        return loads(data, *args, **kwargs)

    monkeypatch.setattr(pickle, "loads", spy)
    return seen


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Bomb]:
    """Return what must not be unpickled."""
    folder = tmp_path / "exploded"
    yield Bomb(folder)
    assert not folder.exists(), "a forged payload was unpickled"


def encode_call(serializer: Serializer, task_id: str, value: Any) -> bytes:
    return serializer.encode_call(task_id, NAME, echo, (value,), {})


def encode_result(serializer: Serializer, task_id: str, value: Any) -> bytes:
    return serializer.encode_result(task_id, value)


Encode = Callable[[Serializer, str, Any], bytes]
Forgery = Callable[[str, bytes, bytes], bytes]  # from a task's id, its bytes and another task's


def forgeries(encode: Encode, other_purpose: Encode, bomb: Bomb) -> dict[str, Forgery]:
    """Return what a writer without the key can think of."""
    pickled = CloudpickleSerializer()
    stranger = SignedSerializer(keys={"tests": b"the secret of a stranger"})
    unknown = SignedSerializer(keys={"stranger": b"the secret of a stranger"})
    genuine = SignedSerializer(keys=KEYS)
    found: dict[str, Forgery] = {
        "not signed": lambda key, _own, _other: encode(pickled, key, bomb),
        "signed with another secret": lambda key, _own, _other: encode(stranger, key, bomb),
        "signed with another key": lambda key, _own, _other: encode(unknown, key, bomb),
        "own signature before a bomb": lambda key, own, _other: own[:HEAD] + encode(pickled, key, bomb),
        "own signature before another body": lambda _key, own, other: own[:HEAD] + other[HEAD:],
        "another signature before the own body": lambda _key, own, other: other[:HEAD] + own[HEAD:],
        "moved from another id": lambda _key, _own, other: other,
        "genuine, of the other purpose": lambda key, _own, _other: other_purpose(genuine, key, 1),
        "a bomb behind": lambda key, own, _other: own + encode(pickled, key, bomb),
        "one byte more": lambda _key, own, _other: own + b".",
        "the signature of nothing": lambda _key, own, _other: own[:HEAD],
        "a signature of zeros": lambda key, own, _other: own[: HEAD - 32] + bytes(32) + encode(pickled, key, bomb),
        "no key id": lambda key, own, _other: MAGIC + b"s\0" + own[HEAD - 32 : HEAD] + encode(pickled, key, bomb),
        "another version": lambda _key, own, _other: MAGIC[:-1] + b"\x02" + own[len(MAGIC) :],
        "no envelope": lambda key, _own, _other: pickle.dumps(bomb),
    }
    for length in range(1, 150):
        found[f"cut to {length} bytes"] = lambda _key, own, _other, length=length: own[: min(length, len(own) - 1)]  # type: ignore[misc]
    return found


async def test_forged_calls_never_run(store: Postgres | Redis, loaded: list[bytes], bomb: Bomb) -> None:
    """Each of them ends its task as failed, says why, and takes nothing else with it."""
    made = forgeries(encode_call, encode_result, bomb)
    async with TaskQueue(store.make()) as queue:
        handles = dict(zip(made, await queue.enqueue_many(echo, [(text,) for text in made]), strict=True))
        other, honest = await queue.enqueue_many(echo, [("other",), ("honest",)])
        renamed = await queue.enqueue(echo, "renamed")
        others = store.read(other, "call")
        own = {name: store.read(handle, "call") for name, handle in handles.items()}
        store.write("call", {handle: made[name](handle, own[name], others) for name, handle in handles.items()})
        store.write("name", {renamed: b"os:system"})
        assert not loaded
        await Worker(queue).run_until_empty()
        assert len(loaded) == 2, "only those that were left alone are decoded"
        assert sorted([await other.result(60), await honest.result(60)]) == ["honest", "other"]
        for name, handle in {**handles, "renamed": renamed}.items():
            result = await queue.get_result(handle)
            assert result is not None, name
            assert (result.status, result.reason) == ("failed", "undecodable"), name
            assert any(text in (result.error or "") for text in REFUSALS), f"{name}: {result.error}"


async def test_forged_results_never_decode(store: Postgres | Redis, loaded: list[bytes], bomb: Bomb) -> None:
    """Whoever asks for the value gets an error, by every way there is."""
    made = forgeries(encode_result, encode_call, bomb)
    async with TaskQueue(store.make()) as queue:
        handles = dict(zip(made, await queue.enqueue_many(echo, [(text,) for text in made]), strict=True))
        other = await queue.enqueue(echo, "other")
        await Worker(queue).run_until_empty()
        others = store.read(other, "result")
        own = {name: store.read(handle, "result") for name, handle in handles.items()}
        store.write("result", {handle: made[name](handle, own[name], others) for name, handle in handles.items()})
        loaded.clear()
        for name, handle in handles.items():
            for ask in (handle.result(60), queue.get_result(handle), queue.get_result(handle, timeout=60)):
                with pytest.raises(SerializationError) as caught:
                    await ask
                assert any(text in str(caught.value) for text in REFUSALS), f"{name}: {caught.value}"
        assert not loaded
        for handle in handles.values():  # the store's own method leaves alone what is not in its format
            await asyncio.gather(queue.backend.get_result(handle), return_exceptions=True)
        assert not loaded
        assert await other.result(60) == "other"


async def test_a_result_in_the_place_of_a_call(store: Postgres | Redis, loaded: list[bytes], bomb: Bomb) -> None:
    """What a task was made to return, genuine signature and all, cannot be run by putting it back in the queue."""
    async with TaskQueue(store.make()) as queue:
        handle = await queue.enqueue(echo, (NAME, ("chosen by a writer",), {}))
        await Worker(queue).run_until_empty()
        store.write("call", {handle: store.read(handle, "result")})
        await queue.backend.requeue_tasks([handle])
        loaded.clear()
        await Worker(queue).run_until_empty()
        result = await queue.get_result(handle)
        assert not loaded
        assert result is not None
        assert (result.status, result.reason) == ("failed", "undecodable")


async def test_a_child_process_looks_as_well(store: Postgres | Redis, bomb: Bomb) -> None:
    async with TaskQueue(store.make()) as queue:
        handles = await queue.options(executor="process").enqueue_many(echo, [(1,), (2,)])
        forged = CloudpickleSerializer().encode_call(handles[0], NAME, echo, (bomb,), {})
        own = store.read(handles[1], "call")
        store.write("call", {handles[0]: forged, handles[1]: own[:HEAD] + forged})
        await Worker(queue).run_until_empty()
        for handle in handles:
            result = await queue.get_result(handle)
            assert result is not None
            assert result.status == "failed"
            assert any(text in (result.error or "") for text in REFUSALS), result.error


async def test_the_check_can_fail(store: Postgres | Redis, tmp_path: Path, loaded: list[bytes]) -> None:
    """With the key the bomb goes off: the tests above would see it."""
    async with TaskQueue(store.make()) as queue:
        handle = await queue.enqueue(echo, "own")
        genuine = encode_call(SignedSerializer(keys=KEYS), handle, Bomb(tmp_path / "exploded"))
        store.write("call", {handle: genuine})
        await Worker(queue).run_until_empty()
    assert loaded
    assert (tmp_path / "exploded").exists()


async def test_keys_rotate(store: Postgres | Redis) -> None:
    """Old tasks and results count as long as the old key is among the keys; then they are refused by its name."""
    make = store.make
    async with (
        TaskQueue(make()) as before,
        TaskQueue(make(signing_keys=ROTATED)) as between,
        TaskQueue(make(signing_keys={"new": ROTATED["new"]})) as after,
    ):
        done = await before.enqueue(echo, "done")
        await Worker(before).run_until_empty()
        waiting = await before.enqueue(echo, "waiting")
        await Worker(between).run_until_empty()
        assert await value_of(between, done) == "done"
        assert await value_of(between, waiting) == "waiting"
        with pytest.raises(SerializationError, match="signed with the key 'new', which is not known here"):
            await before.get_result(waiting)
        newest, late = await between.enqueue(echo, "newest"), await before.enqueue(echo, "late")
        await Worker(after).run_until_empty()
        assert await value_of(after, waiting) == "waiting"
        assert await value_of(after, newest) == "newest"
        with pytest.raises(TaskFailedError, match="signed with the key 'tests', which is not known here"):
            await late.result(60)
        with pytest.raises(SerializationError, match="signed with the key 'tests', which is not known here"):
            await after.get_result(done)


async def value_of(queue: TaskQueue, task_id: str) -> Any:
    result = await queue.get_result(task_id)
    assert result is not None
    assert result.status == "success"
    return result.value
