"""What the store promises beyond the suite: durability by statement, batches, poolers, odd text, event loops."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from sitq import TaskQueue, Worker
from sitq.backends.postgres import PostgresBackend, _reserve
from sitq.core import NewTask, Outcome, Result, Task, TaskOptions, WorkerInfo

Make = Callable[..., PostgresBackend]
Sql = Callable[..., list[Any]]

WORKER = WorkerInfo(id="w", lease=3600.0)
WATCH = """
CREATE TABLE {s}.seen (what text, level text);
GRANT ALL ON {s}.seen TO PUBLIC;
CREATE FUNCTION {s}.see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {s}.seen VALUES (TG_OP, current_setting('synchronous_commit')); RETURN NULL;
END $$;
CREATE TRIGGER see AFTER INSERT OR UPDATE ON {s}.sitq_tasks FOR EACH STATEMENT EXECUTE FUNCTION {s}.see();
"""


def new(task_id: str, **options: Any) -> NewTask:
    return NewTask(task=Task(id=task_id, payload=b"x", options=TaskOptions(**options)))


def double(number: int) -> int:
    return number * 2


async def work(backend: PostgresBackend) -> None:
    """Take a task from its enqueue to its end."""
    await backend.enqueue_tasks([new("a")])
    (task,) = await backend.reserve(WORKER, 1)
    await backend.settle([Outcome.completed("a", task.fence, Result(task_id="a"))])


@pytest.mark.parametrize(
    ("durability", "accepting", "working"), [("full", "on", "off"), ("strict", "on", "on"), ("relaxed", "off", "off")]
)
async def test_durability(make_backend: Make, sql: Sql, durability: str, accepting: str, working: str) -> None:
    """What a commit waits for is decided for each statement, not for the session."""
    async with make_backend(durability=durability) as backend:
        await backend.reserve(WORKER, 1)
        sql(WATCH)
        await work(backend)
    assert {level for _, level in sql("SELECT * FROM {s}.seen WHERE what = 'INSERT'")} == {accepting}
    assert {level for _, level in sql("SELECT * FROM {s}.seen WHERE what = 'UPDATE'")} == {working}


async def test_many_callers_share_a_commit(backend: PostgresBackend, sql: Sql) -> None:
    """A hundred enqueues at the same moment are one statement, and so are their settles."""
    await backend.reserve(WORKER, 1)
    sql(WATCH)
    await asyncio.gather(*(backend.enqueue_tasks([new(f"task-{n}")]) for n in range(100)))
    assert sql("SELECT count(*) FROM {s}.seen WHERE what = 'INSERT'") == [(1,)]
    tasks = await backend.reserve(WORKER, 100)
    sql("DELETE FROM {s}.seen")
    results = [Outcome.completed(task.id, task.fence, Result(task_id=task.id)) for task in tasks]
    assert await asyncio.gather(*(backend.settle([outcome]) for outcome in results)) == [[True]] * 100
    assert sql("SELECT count(*) FROM {s}.seen") == [(1,)]


async def test_keys_that_meet_in_other_orders(backend: PostgresBackend) -> None:
    """Batches that want the same keys in opposite orders block each other: the server ends one, which comes again."""
    batches = [[new(f"{n}-{key}", unique=key) for key in ("abc" if n % 2 else "cba")] for n in range(8)]
    clones = [backend.clone() for _ in batches]
    answers = await asyncio.gather(*(c.enqueue_tasks(b) for c, b in zip(clones, batches, strict=True)))
    await asyncio.gather(*(clone.close() for clone in clones))
    for key in range(3):
        ids = {batch[key if n % 2 else 2 - key].id for n, batch in enumerate(answers)}
        assert len(ids) == 1
    assert len(await backend.reserve(WORKER, 10)) == 3


async def test_text_that_postgresql_cannot_hold(backend: PostgresBackend) -> None:
    """NUL and half surrogate pairs in an error do not keep a task from ending."""
    await backend.enqueue_tasks([new("a")])
    (task,) = await backend.reserve(WORKER, 1)
    result = Result(task_id="a", status="failed", error="ü \0 \ud800", traceback="\0", reason="error")
    assert await backend.settle([Outcome.failed("a", task.fence, result)]) == [True]
    stored = await backend.get_result("a")
    assert stored is not None
    assert (stored.error, stored.traceback) == ("ü \\x00 \\ud800", "\\x00")


async def test_a_bad_id_is_its_callers_alone(backend: PostgresBackend) -> None:
    good, bad = await asyncio.gather(
        backend.enqueue_tasks([new("a")]), backend.enqueue_tasks([new("b\0")]), return_exceptions=True
    )
    assert not isinstance(good, BaseException)
    assert good[0].created
    assert "cannot store this" in str(bad)


@pytest.mark.parametrize("options", [{"statement_cache_size": 0}, {"listen": False}, {"pool_size": 1}], ids=str)
async def test_other_ways_to_connect(make_backend: Make, options: dict[str, Any]) -> None:
    """As through a pooler, without listening, on one connection: slower, never wrong."""
    async with TaskQueue(make_backend(**options)) as queue, Worker(queue, poll_interval=0.05):
        handles = [await queue.options(unique=f"k{n}").enqueue(double, n) for n in range(5)]
        assert [await handle.result(60) for handle in handles] == [0, 2, 4, 6, 8]


async def test_closed_means_closed(make_backend: Make) -> None:
    """A closed backend opens again by itself; its clones are their own."""
    backend = make_backend()
    await backend.connect()
    await backend.close()
    await backend.close()
    await work(backend)
    stored = await backend.get_task("a")
    assert stored is not None
    assert stored.status == "completed"
    await backend.close()


def test_event_loops_that_were_not_closed(make_backend: Make) -> None:
    """A backend outlives its event loops, and leaves no socket of theirs behind."""
    backend = make_backend()

    async def enqueue(number: int) -> bool:
        (answer,) = await backend.enqueue_tasks([new(str(number))])
        await asyncio.sleep(0.02)  # the connections are idle when the loop ends
        return answer.created

    assert [asyncio.run(enqueue(number)) for number in range(3)] == [True] * 3
    asyncio.run(_close(backend))


async def _close(backend: PostgresBackend) -> None:
    await backend.connect()
    await backend.close()


class TestMarks:
    async def test_a_slow_look_is_not_taken_each_time(self, backend: PostgresBackend, sql: Sql) -> None:
        """After a look that took long the next ones start where it ended, and find what comes after."""
        marks = _reserve.Marks()
        await backend.enqueue_tasks([new(str(n)) for n in range(60)])
        (store,) = backend._stores.values()
        first = await store.run(lambda tx: _reserve.reserve(tx, WORKER, 20, marks))
        assert marks.lanes(0.0) == []  # it was quick
        marks.note(first, 0.1, now=1000.0)
        assert marks.lanes(1001.9) == [["default"], [0], [first[-1][7]]]
        assert marks.lanes(1002.1) == []
        marks._until = math.inf
        await backend.enqueue_tasks([new("urgent", priority=9), new("old", priority=0)])
        second = await store.run(lambda tx: _reserve.reserve(tx, WORKER, 20, marks))
        assert [row[0] for row in second] == [str(n) for n in range(20, 40)]
        third = await store.run(lambda tx: _reserve.reserve(tx, WORKER, 40, marks))
        assert {row[0] for row in third} == {*map(str, range(40, 60)), "old"}
        last = await store.run(lambda tx: _reserve.reserve(tx, WORKER, 40, marks))  # they ran dry: a full look
        assert [row[0] for row in last] == ["urgent"]

    def test_few_tasks_are_looked_for_from_the_start(self) -> None:
        """Unless eight full looks in a row were slow: then it is not the machine that was busy for a moment."""
        marks = _reserve.Marks()
        row: list[Any] = [None] * 21
        row[3], row[4], row[7] = "default", 0, 1.0
        for _ in range(7):
            marks.note([row], 0.03, now=1000.0)
        assert marks.lanes(1001.0, limit=10)
        assert not marks.lanes(1001.0, limit=9)
        marks.note([row], 0.012, now=1000.0)
        assert marks.lanes(1001.1, limit=1)
        assert not marks.lanes(1001.3, limit=1)
        marks.note([row], 0.001, now=1000.0)
        assert not marks.lanes(1000.0, limit=100)

    async def test_nothing_after_the_marks_is_a_full_look(self, backend: PostgresBackend) -> None:
        marks = _reserve.Marks()
        await backend.enqueue_tasks([new(str(n)) for n in range(20)])
        (store,) = backend._stores.values()
        await store.run(lambda tx: _reserve.reserve(tx, WORKER, 20, marks))
        marks._until = math.inf
        await backend.abandon_worker(WORKER.id)
        assert len(await store.run(lambda tx: _reserve.reserve(tx, WORKER, 20, marks))) == 20
