"""How PostgreSQL finds rows: at 50,000 rows none of the statements of queue and worker reads the whole table."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sitq.backends.postgres import PostgresBackend, _reserve
from sitq.backends.postgres._connect import Tx, connect, render
from sitq.core import Held, NewTask, Outcome, Result, Task, TaskFilter, TaskOptions, WorkerInfo, utcnow

FILL = """
INSERT INTO {s}.sitq_tasks (id, queue, priority, due, created_at, name, status, purge_at, unique_key, expires,
    lease_until, worker_id, payload)
SELECT 'fill-' || n, 'queue-' || n % 3, n % 2, now() + n * interval '1 second' - interval '4 hours', now(), 'm:f',
    CASE WHEN n % 100 = 0 THEN 1 WHEN n % 2 = 0 THEN 2 ELSE 0 END,
    CASE WHEN n % 2 = 0 THEN now() + n * interval '1 second' END,
    CASE WHEN n % 7 = 0 THEN 'key-' || n END, CASE WHEN n % 11 = 0 THEN now() + interval '1 day' END,
    CASE WHEN n % 100 = 0 THEN now() + n * interval '1 second' END,
    CASE WHEN n % 100 = 0 THEN 'worker-' || n % 10 END, repeat('x', 100)::bytea
FROM generate_series(1, 50000) AS n
"""
QUIET = """
INSERT INTO {s}.sitq_tasks (id, queue, priority, due, created_at, name, status, purge_at, payload)
SELECT 'quiet-' || n, 'queue-' || n % 3, n % 2, now(), now(), 'm:f', 2, now() + n * interval '1 second',
    repeat('x', 100)::bytea
FROM generate_series(1, 50000) AS n
"""
INDEX_SCANS = {"Index Scan", "Index Only Scan", "Bitmap Index Scan"}
UNPLANNED = ("count(*) FILTER", "k.name = $", "CALL")  # all rows; names, which have no index; an INSERT of values


def new(**options: Any) -> NewTask:
    task_id = f"new-{new.__dict__.setdefault('n', 0)}"
    new.__dict__["n"] += 1
    return NewTask(task=Task(id=task_id, name="m:f", payload=b"x", options=TaskOptions(**options)))


async def everything(backend: PostgresBackend) -> None:
    """Do what queues, workers and operators do."""
    worker, named = WorkerInfo(id="w"), WorkerInfo(id="v", queues=("queue-1", "queue-2"))
    await backend.enqueue_tasks([new() for _ in range(100)])
    await backend.enqueue_tasks([new(unique="key-7"), new(unique="fresh"), new(unique="fresh")])
    reserved = await backend.reserve(worker, 100) + await backend.reserve(named, 10)
    result = Result(task_id="x")
    await backend.settle([Outcome.completed(task.id, task.fence, result) for task in reserved[:50]])
    await backend.settle([Outcome.completed(task.id, task.fence, result) for task in reserved[:50]])
    await backend.settle([Outcome.deferred(task.id, task.fence, 5.0) for task in reserved[50:70]])
    held = [Held(id=task.id, fence=task.fence, progress=1) for task in reserved[70:90]]
    await backend.extend_leases(worker, held)
    for waiting in (worker, named):
        await backend.wait_for_work(waiting, 0.0)
        await backend.has_active_tasks(waiting)
    await backend.wait_for_result(reserved[0].id, 0.0)
    await backend.get_task("fill-1")
    await backend.store_result("fill-1", result)
    for status in ("running", "queued", "completed", "queued"):
        await backend.update_task_status("fill-40005", status)
    await backend.cancel_tasks(["fill-40003", "fill-100", "nobody"])
    await backend.requeue_tasks(["fill-14", "fill-40003"])
    await backend.abandon_worker("worker-0")
    await backend.list_tasks()
    await backend.list_tasks(TaskFilter(after="fill-40000"))
    await backend.count_tasks()
    await backend.list_workers()
    await backend.purge()
    await backend.pause_queue("queue-0", paused=True)
    await backend.reserve(worker, 1)
    (store,) = backend._stores.values()
    marks = _reserve.Marks()
    marks.front = {("queue-1", 1): utcnow()}
    await store.run(lambda tx: _reserve.reserve(tx, worker, 10, marks))
    for looking in (worker, named):
        await store.run(lambda tx, looking=looking: _reserve.look_in_front(tx, looking, marks))  # type: ignore[misc]


def scans(plan: dict[str, Any], within: str = "") -> Iterator[str]:
    """Return where the table of tasks is read from end to end or, for each row of another one, an index of it."""
    kind = plan["Node Type"]
    if kind == "Seq Scan" and plan["Relation Name"] == "sitq_tasks":
        yield plan["Alias"]
    if within == "Nested Loop" and kind in INDEX_SCANS and "Index Cond" not in plan:
        yield plan["Index Name"]
    if kind == "Limit" or (kind == "Nested Loop" and within != "Limit"):
        within = kind
    for child in plan.get("Plans", ()):
        yield from scans(child, within)


@pytest.fixture
async def connection(backend: PostgresBackend) -> AsyncIterator[Any]:
    connection = await connect(backend._settings)
    yield connection
    await connection.close()


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("statistics", ["none", "of now", "of a quiet hour"])
async def test_no_sequential_scan(  # noqa: PLR0917
    backend: PostgresBackend,
    connection: Any,
    sql: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    statistics: str,
) -> None:
    sql("ALTER TABLE {s}.sitq_tasks SET (autovacuum_enabled = false)")
    if statistics == "of a quiet hour":
        sql(QUIET)
        sql("ANALYZE {s}.sitq_tasks")
    sql(FILL)
    if statistics == "of now":
        sql("ANALYZE {s}.sitq_tasks")
    seen: dict[str, tuple[Any, ...]] = {}
    schema = backend._settings.schema

    def recording(name: str) -> None:
        method = getattr(Tx, name)

        async def record(tx: Tx, statement: str, *values: Any, **options: Any) -> Any:
            first = {"write": (0.0, "off"), "read": (0.0,), "plain": ()}[name]
            seen.setdefault(render(statement, schema), (*first, *values))
            return await method(tx, statement, *values, **options)

        monkeypatch.setattr(Tx, name, record)

    for name in ("write", "read", "plain"):
        recording(name)
    await everything(backend)
    await connection.execute(f"SET plan_cache_mode = {mode}")
    assert len(seen) > 25
    for statement, values in seen.items():
        if any(text in statement for text in UNPLANNED):
            continue
        text = await connection.fetchval(f"EXPLAIN (FORMAT JSON, VERBOSE) {statement}", *values)
        found = list(scans(json.loads(text)[0]["Plan"]))
        text = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {statement}", *values))
        assert not found, f"{statement}\n{text}"


LATER = """
INSERT INTO {s}.sitq_tasks (id, queue, priority, due, created_at, name)
SELECT 'later-' || n, 'default', 0, now() + interval '1 day', now(), 'm:f' FROM generate_series(1, 5000) AS n
"""


def removed(plan: dict[str, Any]) -> int:
    """Return how many rows were read that a condition then left out."""
    return int(plan.get("Rows Removed by Filter", 0)) + sum(removed(child) for child in plan.get("Plans", ()))


@pytest.mark.parametrize("named", [False, True])
async def test_tasks_for_later_are_not_read_to_find_that_none_is_active(
    connection: Any, backend: PostgresBackend, sql: Callable[..., list[Any]], named: bool
) -> None:
    sql(LATER)
    sql("ANALYZE {s}.sitq_tasks")
    statement = render(_reserve._HAS_ACTIVE[named], backend._settings.schema)
    text = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", 0.0, ["default"] if named else None)
    assert removed(json.loads(text)[0]["Plan"]) < 20
    assert not await backend.has_active_tasks(WorkerInfo(id="w"))


async def test_the_check_can_fail(connection: Any, backend: PostgresBackend, sql: Callable[..., list[Any]]) -> None:
    sql(FILL)
    statement = render("SELECT * FROM {s}.sitq_tasks WHERE name = 'm:f'", backend._settings.schema)
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}")
    assert list(scans(json.loads(text)[0]["Plan"])) == ["sitq_tasks"]
