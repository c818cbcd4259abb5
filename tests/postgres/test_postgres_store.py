"""What the store promises beyond the suite: durability by statement, batches, poolers, odd text, event loops."""

import asyncio
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from sitq import TaskQueue, Worker
from sitq.backends.postgres import PostgresBackend, _reserve
from sitq.core import NewTask, Outcome, Result, Status, Task, TaskOptions, WorkerInfo, utcnow

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
    """Take a task to its end."""
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
        await backend.enqueue_tasks([new("a", unique="a key")])  # without a key two commits share this
        assert sql("SELECT level FROM {s}.seen WHERE what = 'INSERT'") == [(accepting,)]
        sql("DELETE FROM {s}.seen")
        await work(backend)
        assert sql("SELECT DISTINCT level FROM {s}.seen") == [(working,)]


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
    await backend.enqueue_tasks([new("a")])
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
    async def test_a_slow_look_is_not_taken_each_time(self, backend: PostgresBackend) -> None:
        """After a look that took long the next ones start where it ended, and find what comes after."""
        marks = _reserve.Marks()
        await backend.enqueue_tasks([new(str(n)) for n in range(60)])
        (store,) = backend._stores.values()
        first = await store.run(lambda tx: _reserve.reserve(tx, WORKER, 20, marks))
        assert marks.lanes() == []  # it was quick
        marks.note_full_look(first, 0.1, now=1000.0)
        assert marks.lanes() == [["default"], [0], [first[-1]["created_at"]]]
        assert not marks.wants_look(1001.9)
        assert marks.wants_look(1002.1)
        await backend.enqueue_tasks([new("urgent", priority=9), new("old", priority=0)])
        second = await store.run(lambda tx: _reserve.reserve(tx, WORKER, 20, marks))
        assert [row[0] for row in second] == [str(n) for n in range(20, 40)]
        third = await store.run(lambda tx: _reserve.reserve(tx, WORKER, 40, marks))
        assert {row[0] for row in third} == {*map(str, range(40, 60)), "old"}
        last = await store.run(lambda tx: _reserve.reserve(tx, WORKER, 40, marks))  # they ran dry: a full look
        assert [row[0] for row in last] == ["urgent"]

    @pytest.mark.parametrize("queues", [None, ("default", "other")])
    async def test_what_is_put_in_front_is_found_beside_the_reserves(
        self, backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch, queues: tuple[str, ...] | None
    ) -> None:
        """A higher priority, what is given back, another queue; expired tasks end, dead workers' tasks come again."""
        for name in ("_SLOW", "_QUICK_AGAIN", "_BLIND"):  # every look counts as slow, and is over at once
            monkeypatch.setattr(_reserve, name, -1.0)
        worker = WorkerInfo(id="w", queues=queues, lease=3600.0)
        await backend.enqueue_tasks([new(str(n)) for n in range(60)])
        (store,) = backend._stores.values()

        async def reserve(limit: int = 10) -> list[str]:
            """Reserve, and wait for the look that goes on beside."""
            ids = [task.id for task in await backend.reserve(worker, limit)]
            for look in list(store._reserving._looking.values()):
                await look
            return ids

        assert await reserve() == [str(n) for n in range(10)]  # a full look: the marks begin here
        back = await backend.get_task("3")
        assert back is not None
        await backend.settle([Outcome.released("3", back.fence)])
        soon = utcnow() + timedelta(seconds=30)
        await backend.enqueue_tasks(
            [new("urgent", priority=9), new("also", queue="other"), new("gone", expires_at=soon)]
        )
        backend._clock.offset += 60.0
        assert await reserve() == [str(n) for n in range(10, 20)]  # from the marks on
        assert set(await reserve()) == {"urgent", "3", *map(str, range(20, 28))}
        gone = await backend.get_task("gone")
        assert gone is not None
        assert gone.status == Status.FAILED
        await backend.abandon_worker(worker.id)  # 29 tasks are nobody's now
        assert await reserve() == [str(n) for n in range(28, 38)]
        assert len(set(await reserve(50)) & {"urgent", "3", *map(str, range(28))}) == 29

    async def test_a_look_that_has_become_quick_ends_the_marks(self) -> None:
        marks = _reserve.Marks()
        for took, is_takeover, goes_on in ((0.1, False, True), (0.1, True, False), (0.001, False, False)):
            marks.note_front({("default", 0): 1.0}, is_takeover, took, now=1000.0)
            assert bool(marks.lanes()) is goes_on

    async def test_a_look_that_fails_is_followed_by_a_full_one(
        self, backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("_SLOW", "_BLIND"):
            monkeypatch.setattr(_reserve, name, -1.0)

        async def fail(*_: object) -> None:
            raise RuntimeError("the look")

        monkeypatch.setattr(_reserve, "look_in_front", fail)
        await backend.enqueue_tasks([new(str(n)) for n in range(30)])
        (store,) = backend._stores.values()
        await backend.reserve(WORKER, 10)
        await backend.enqueue_tasks([new("urgent", priority=9)])
        await backend.reserve(WORKER, 10)
        for look in list(store._reserving._looking.values()):
            await look
        assert "urgent" in [task.id for task in await backend.reserve(WORKER, 10)]
        assert not store._reserving._looking

    def test_few_tasks_are_looked_for_from_the_start(self) -> None:
        """Unless eight full looks in a row were slow: then it is not the machine that was busy for a moment."""
        marks = _reserve.Marks()
        row: list[Any] = [None] * 21
        row[2], row[3], row[6] = "default", 0, 1.0
        for _ in range(7):
            marks.note_full_look([row], 0.03, now=1000.0)
        assert marks.lanes(limit=10)
        assert not marks.lanes(limit=9)
        marks.note_full_look([row], 0.012, now=1000.0)
        assert marks.lanes(limit=1)
        marks.note_full_look([row], 0.001, now=1000.0)
        assert not marks.lanes(limit=100)

    async def test_nothing_after_the_marks_is_a_full_look(self, backend: PostgresBackend) -> None:
        marks = _reserve.Marks()
        await backend.enqueue_tasks([new(str(n)) for n in range(20)])
        (store,) = backend._stores.values()
        rows = await store.run(lambda tx: _reserve.reserve(tx, WORKER, 20, marks))
        marks.note_full_look(rows, 0.1, now=math.inf)
        await backend.abandon_worker(WORKER.id)
        assert len(await store.run(lambda tx: _reserve.reserve(tx, WORKER, 20, marks))) == 20
