"""The limit in Redis: sitq's script, by one blocking connection of `redis-py` with `hiredis`.

Encoding and objects are left out; the arguments are made before the clock starts. What the server keeps on disk is up
to its own settings, as with `durability="relaxed"`.
"""

from __future__ import annotations

import os
import time
from typing import Any

import redis

from benchmarks.raw import BATCH, RESULT, tasks
from benchmarks.worker import make_store
from sitq.backends.redis._rows import micros, task_arguments, worker_record
from sitq.backends.redis._scripts import SCRIPT, SHA
from sitq.core import WorkerInfo

__all__ = ["RawRedis"]

_CREATED, _EPOCH, _NUMBER, _ID = 4, 11, 12, 20  # in a task that the script shows


class RawRedis:
    """A server, and one store after the other in it: a namespace of this process."""

    name = "Redis"

    def __init__(self, url: str) -> None:
        namespace = f"bench-{os.getpid()}"
        self._prefix = f"{{sitq:{namespace}}}"
        self._store = f"{url}{'&' if '?' in url else '?'}namespace={namespace}"
        self._client = redis.Redis.from_url(url, protocol=2)
        self._connection: Any = self._client.connection_pool.get_connection()
        self._info = self._client.info("server")
        self._client.script_load(SCRIPT)

    @property
    def version(self) -> str:
        """Which server it is."""
        info = self._info
        return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"

    def fresh(self) -> str:
        """Return the URL of a new, empty store; the one before is deleted."""
        self._delete()
        make_store(self._store)
        return self._store

    def has_work(self) -> bool:
        """Say whether something is queued or runs."""
        return bool(self._client.exists(f"{self._prefix}:ready:default", f"{self._prefix}:leases"))

    def insert(self, count: int, batch: int) -> float:
        """Store tasks, `batch` to a call; return the seconds it took."""
        values = [task_arguments(task) for task in tasks(count)]
        calls = []
        for at in range(0, count, batch):
            arguments = [value for task in values[at : at + batch] for value in task]
            calls.append(["accept", len(arguments) + 1, 0, *arguments])
        begin = time.perf_counter()
        for call in calls:
            self._run(call)
        return time.perf_counter() - begin

    def drain(self) -> tuple[int, float]:
        """Reserve and complete everything, each call ending the batch before; return how many, and the seconds."""
        worker = WorkerInfo(id=f"raw-{os.getpid()}")
        reserve = ["reserve", 7, 0, worker.id, micros(worker.lease), BATCH, worker_record(worker), "", ""]
        begin = time.perf_counter()
        done = 0
        ended: list[Any] = []
        while True:
            settled, reserved = self._run(["settle", len(ended), *ended, *reserve])
            done += sum(settled)
            if not reserved:
                return done, time.perf_counter() - begin
            ended = _ends(reserved)

    def close(self) -> None:
        """Delete the store, and disconnect."""
        self._delete()
        self._client.connection_pool.release(self._connection)
        self._client.close()

    def _delete(self) -> None:
        keys = list(self._client.scan_iter(f"{self._prefix}*", count=1000))
        for at in range(0, len(keys), 1000):
            self._client.delete(*keys[at : at + 1000])

    def _run(self, words: list[Any]) -> list[Any]:
        self._connection.send_command("EVALSHA", SHA, 1, self._prefix, self._info["run_id"], 0, *words)
        answers: list[Any] = self._connection.read_response()
        return answers


def _ends(reserved: list[Any]) -> list[Any]:
    """Return the arguments by which the store completes reserved tasks."""
    now = time.time_ns() // 1000
    words: list[Any] = []
    for row in reserved:
        header = b"[1,1,%b,%d,%d]" % (row[_CREATED], now, now)
        words += (row[_ID], row[_EPOCH], row[_NUMBER], "2", 0, "", header, RESULT)
    return words
