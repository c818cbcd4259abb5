"""A store that is a directory: a folder for each task, whose state is the name of one empty file in it.

Every move is one `os.rename` of that file. The name holds all that changes (status, fence, attempt, lease …), so a
rename is a compare-and-set: of two processes that try to move a task at the same moment, one finds the old name gone
and has lost. The call and the results lie in files beside it that are written once. LEASES follow from that.

    tasks/<id>/call                          the task with its payload, pickled
    tasks/<id>/state,7,running,2,1,…         version, status, fence, attempt and so on
    tasks/<id>/result,2                      what the run with fence 2 gave; it counts once the state says so
"""

import asyncio
import dataclasses
import errno
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from sitq import BackendError, Result, Task, TaskNotFoundError, TaskQueue, Worker
from sitq.backends.base import Backend, Capability, check_move
from sitq.core import CRASHED, Extended, Held, Outcome, ReservedTask, WorkerInfo

_FINISHED = ("completed", "failed")
_AS_QUEUED = ("deferred", "released")


@dataclasses.dataclass(frozen=True)
class State:
    """What changes of a task: the name of its state file. Times are seconds since 1970."""

    version: int = 0
    status: str = "queued"
    fence: int = 0
    attempt: int = 0
    crashes: int = 0
    solo_crashes: int = 0
    due: float = 0.0
    lease_until: float = 0.0
    reserved_at: float = 0.0
    worker: str = ""

    @property
    def name(self) -> str:
        """The file's name."""
        return ",".join(["state", *(quote(str(value), safe="") for value in dataclasses.astuple(self))])

    @classmethod
    def of(cls, name: str) -> Self:
        """Read a state from a file's name."""
        texts = zip(dataclasses.fields(cls), name.split(",")[1:], strict=True)
        return cls(**{field.name: _READ[field.type](unquote(text)) for field, text in texts})


_READ: dict[Any, Callable[[str], Any]] = {int: int, float: float, str: str}


class DirectoryStore(Backend):
    """Keeps tasks in a directory, shared by all processes of one machine. An acknowledged task is on the disk."""

    capabilities = Capability.LEASES

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._tasks = self.path / "tasks"

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Make the store for `directory:///absolute/path`."""
        return cls(unquote(urlsplit(url).path))

    async def connect(self) -> None:
        """Make the directory, if need be."""
        try:
            self._tasks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError(f"cannot use {self.path} as a store: {error}") from error

    # --- files --------------------------------------------------------------------------------------------------------

    def _state(self, task_id: str) -> State | None:
        """Return a task's state. A listing that falls into a rename may show two names, or none: look again."""
        for _ in range(100):
            try:
                names = [file.name for file in self._folder(task_id).iterdir() if file.name.startswith("state,")]
            except FileNotFoundError:
                return None
            except OSError as error:
                raise BackendError(f"cannot read {self.path}: {error}") from error
            if names:
                return max(map(State.of, names), key=lambda state: state.version)
        raise BackendError(f"task {task_id} has no state: was a file deleted in {self._folder(task_id)}?")

    def _move(self, task_id: str, old: State, **changes: Any) -> State | None:
        """Go from one state to another; None if somebody else has moved the task meanwhile."""
        new = dataclasses.replace(old, version=old.version + 1, **changes)
        folder = self._folder(task_id)
        try:
            (folder / old.name).rename(folder / new.name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BackendError(f"cannot write to {self.path}: {error}") from error
        return new

    def _folder(self, task_id: str) -> Path:
        return self._tasks / quote(task_id, safe="")

    def _all(self) -> Iterator[tuple[str, State]]:
        try:
            ids = sorted(unquote(folder.name) for folder in self._tasks.iterdir())
        except OSError as error:
            raise BackendError(f"cannot read {self.path}: {error}") from error
        for task_id in ids:
            state = self._state(task_id)
            if state is not None:
                yield task_id, state

    def _write(self, path: Path, content: bytes) -> None:
        """Write a file that is there whole or not at all."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.path, delete=False) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).rename(path)
        except OSError as error:
            raise BackendError(f"cannot write to {self.path}: {error}") from error

    def _load(self, task_id: str, state: State) -> Task:
        folder = self._folder(task_id)
        task: Task = pickle.loads((folder / "call").read_bytes())
        task.status, task.fence, task.attempt = state.status, state.fence, state.attempt
        task.crashes, task.solo_crashes = state.crashes, state.solo_crashes
        if state.status == "running":
            task.worker_id = state.worker
            task.lease_expires_at = datetime.fromtimestamp(state.lease_until, UTC)
        with suppress(FileNotFoundError):
            task.progress = pickle.loads((folder / f"progress,{state.fence}").read_bytes())
        if state.status == "failed" and (result := self._result(task_id, state)) is not None:
            task.reason = result.reason
        return task

    # --- the six ------------------------------------------------------------------------------------------------------

    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if task.payload is None:
            payload = self.default_serializer().encode_call(task.id, task.name, function, args, kwargs)
            task = dataclasses.replace(task, payload=payload)
        due = max(task.created_at, task.eta or task.created_at).timestamp()
        try:
            self._store(task, State(due=due))
        except OSError as error:
            raise BackendError(f"cannot write to {self.path}: {error}") from error

    def _store(self, task: Task, state: State) -> None:
        """Make the folder apart, and rename it into place: it fails if the id is there, whose folder is not empty."""
        folder = Path(tempfile.mkdtemp(dir=self.path))
        self._write(folder / "call", pickle.dumps(task))
        (folder / state.name).touch()
        try:
            folder.rename(self._folder(task.id))
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _sync(self._tasks)

    async def reserve_task(self, worker_id: str, max_tasks: int = 1) -> list[ReservedTask]:
        reserved = await self.reserve(WorkerInfo(id=worker_id), max_tasks)
        for task in reserved:
            call = self.default_serializer().decode_call(task.id, task.name, task.payload or b"")
            task.function, task.args, task.kwargs = call
        return reserved

    async def get_task(self, task_id: str) -> Task | None:
        state = self._state(task_id)
        return None if state is None else self._load(task_id, state)

    async def update_task_status(self, task_id: str, status: str) -> None:
        while (state := self._state(task_id)) is not None:
            if check_move(task_id, state.status, status) == state.status:
                return
            changes: dict[str, Any] = {"status": status, "fence": state.fence + 1, "worker": ""}
            if status == "running":
                now = time.time()
                changes |= {"worker": "operator", "lease_until": now + 30.0, "reserved_at": now}
                changes["attempt"] = state.attempt + 1
            if status == "queued" and state.status in _FINISHED:
                changes |= {"attempt": 0, "crashes": 0, "solo_crashes": 0}
                for file in self._folder(task_id).glob("result,*"):
                    file.unlink(missing_ok=True)
            if self._move(task_id, state, **changes):
                return
        raise TaskNotFoundError(task_id)

    async def store_result(self, task_id: str, result: Result) -> None:
        state = self._state(task_id)
        if state is None:
            raise TaskNotFoundError(task_id)
        which = str(state.fence) if state.status in _FINISHED else "by hand"
        self._write(self._folder(task_id) / f"result,{which}", pickle.dumps(result))

    async def get_result(self, task_id: str) -> Result | None:
        state = self._state(task_id)
        return None if state is None else self._result(task_id, state)

    def _result(self, task_id: str, state: State) -> Result | None:
        for which in [str(state.fence)] * (state.status in _FINISHED) + ["by hand"]:
            with suppress(FileNotFoundError):
                result: Result = pickle.loads((self._folder(task_id) / f"result,{which}").read_bytes())
                return result
        return None

    # --- leases -------------------------------------------------------------------------------------------------------

    def clone(self) -> Self:
        return type(self)(self.path)  # nothing is kept in memory

    async def reserve(self, worker: WorkerInfo, max_tasks: int) -> list[ReservedTask]:
        if worker.queues is not None:
            self._unsupported(Capability.QUEUES)
        now = time.time()
        ready = [(state.due, task_id, state) for task_id, state in self._all() if _is_ready(state, now)]
        reserved: list[ReservedTask] = []
        for _, task_id, state in sorted(ready, key=lambda item: item[:2]):
            if len(reserved) == max_tasks:
                break
            taken = self._move(
                task_id, state, status="running", fence=state.fence + 1, attempt=state.attempt + 1,
                crashes=state.crashes + (state.status == "running"), worker=worker.id,
                lease_until=time.time() + worker.lease, reserved_at=now,
            )  # fmt: skip
            if taken is not None:  # else another worker was faster
                task = self._load(task_id, taken)
                reserved.append(ReservedTask(**{f.name: getattr(task, f.name) for f in dataclasses.fields(Task)}))
        return reserved

    async def settle(self, outcomes: Sequence[Outcome]) -> list[bool]:
        return [self._settle(outcome) for outcome in outcomes]

    def _settle(self, outcome: Outcome) -> bool:
        while True:
            state = self._state(outcome.task_id)
            if state is None or state.fence != outcome.fence:
                return False
            if state.status != "running":
                return True  # settled before, by this very outcome
            changes: dict[str, Any] = {"status": str(outcome.kind.value), "worker": ""}
            if outcome.kind in _AS_QUEUED:
                crashed = outcome.reason == CRASHED
                changes |= {
                    "status": "queued",
                    "due": time.time() + outcome.delay if outcome.delay else state.due,
                    "attempt": state.attempt - (outcome.kind == "released"),
                    "crashes": state.crashes + crashed,
                    "solo_crashes": state.solo_crashes + crashed,
                }
            elif outcome.result is not None:  # seen by nobody until the state says so
                path = self._folder(outcome.task_id) / f"result,{state.fence}"
                self._write(path, pickle.dumps(outcome.result))
            if self._move(outcome.task_id, state, **changes):
                return True

    async def extend_leases(self, worker: WorkerInfo, held: Sequence[Held]) -> Extended:
        lost = {item.id for item in held if not self._extend(worker, item)}
        named, now = {item.id for item in held}, time.time()
        for task_id, state in self._all():
            unheard = state.status == "running" and state.worker == worker.id and task_id not in named
            if unheard and now - state.reserved_at > worker.lease / 2:
                self._move(task_id, state, status="queued", worker="", attempt=state.attempt - 1)
        return Extended(lost=frozenset(lost))

    def _extend(self, worker: WorkerInfo, item: Held) -> bool:
        while True:
            state = self._state(item.id)
            if state is None or state.status != "running" or state.fence != item.fence:
                return False
            if item.progress is not None:
                self._write(self._folder(item.id) / f"progress,{state.fence}", pickle.dumps(item.progress))
            if self._move(item.id, state, lease_until=time.time() + worker.lease):
                return True

    async def abandon_worker(self, worker_id: str) -> int:
        held = [(i, s) for i, s in self._all() if s.status == "running" and s.worker == worker_id]
        return sum(self._move(task_id, state, lease_until=0.0) is not None for task_id, state in held)


def _is_ready(state: State, now: float) -> bool:
    return (state.status == "queued" and state.due <= now) or (state.status == "running" and state.lease_until <= now)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def main() -> None:
    """Run one task."""
    with tempfile.TemporaryDirectory() as folder:
        async with TaskQueue(DirectoryStore(folder)) as queue:
            handle = await queue.enqueue(add, 2, 3)
            async with Worker(queue):
                print(await handle.result(timeout=5))


if __name__ == "__main__":
    asyncio.run(main())
