"""`sitq why`: gather the facts about one task, and print the answer."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from sitq.backends.base import Backend, Capability
from sitq.cli._command import BackendOption, JsonOption, console, print_json, run
from sitq.cli._find import find_task
from sitq.cli._health import serves
from sitq.cli._tasks import phase_style
from sitq.cli._text import printable
from sitq.cli._why import Answer, Facts, ahead_of, explain
from sitq.core import Phase, Task, TaskFilter, TaskOptions, phase_of, utcnow
from sitq.queue import TaskQueue

__all__ = ["why"]

_COUNTED = 20_000
_RUNNING = 2_000


def why(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The id, or the beginning or end of it.")],
    backend: BackendOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a task does not run (yet), and what to do about it.

    Example: sitq why 9f3c21ab --backend app:queue
    """

    async def work(_queue: TaskQueue, store: Backend) -> tuple[Task, Answer]:
        task = await find_task(store, task_id)
        return task, explain(await _gather(store, task))

    task, answer = run(backend, work)
    if as_json:
        print_json(
            {"id": task.id, "name": task.name, "phase": answer.phase, "why": answer.obstacles, "notes": answer.notes}
        )
        return
    out = console()
    out.print(Text.assemble((printable(task.name), "bold"), f" {task.id} ", (answer.phase, phase_style(answer.phase))))
    for obstacle in answer.obstacles:
        out.print(Text(printable(obstacle.text)))
        if obstacle.advice:
            out.print(Text(f"  → {printable(obstacle.advice)}", "cyan"))
    for note in answer.notes:
        out.print(Text(printable(note), "dim"))


async def _gather(store: Backend, task: Task) -> Facts:
    now, name = utcnow(), (task.options or TaskOptions()).queue
    result = await store.wait_for_result(task.id, 0.0)  # as stored, not decoded
    if Capability.INSPECT not in store.capabilities:
        return Facts(task=task, now=now, result=result)
    counts = next((queue for queue in await store.count_tasks() if queue.queue == name), None)
    workers = await store.list_workers()
    ahead, running = None, 0
    if phase_of(task, now) == Phase.READY:
        ready = await store.list_tasks(TaskFilter(phase=Phase.READY, queue=name), _COUNTED)
        ahead = ahead_of(task, ready, complete=len(ready) < _COUNTED)
        serving = {worker.id for worker in workers if serves(worker, name)}
        at_work = await store.list_tasks(TaskFilter(phase=Phase.RUNNING), _RUNNING)
        running = sum(other.worker_id in serving for other in at_work)
    return Facts(task=task, now=now, result=result, counts=counts, workers=workers, ahead=ahead, running=running)
