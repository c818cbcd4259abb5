"""Many callers, one commit: operations gather while a commit is in flight and share the next one.

There is no timer: an idle store commits at once, a busy one in batches as large as the load. `Lanes` picks the next
batch, `Batch` replays it one by one when its data is at fault and takes every answer back to the event loop that waits
for it. Neither knows a store nor a thread; `CommitThread` drives them for a store whose calls block.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import IntEnum
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from sitq.exceptions import BackendError

__all__ = [
    "MAX_BYTES",
    "MAX_OPERATIONS",
    "ROW_BYTES",
    "Batch",
    "CommitThread",
    "Lane",
    "Lanes",
    "Operation",
    "Reading",
    "start_thread",
]

T = TypeVar("T")

MAX_OPERATIONS = 500
MAX_BYTES = 4 * 1024 * 1024
ROW_BYTES = 1024
"""What a task weighs in a batch besides its payload, so that many small ones do not hold the store for long either."""


class Lane(IntEnum):
    """Operations of one lane happen in the order they came in; the lanes share a batch."""

    WORK = 0
    """What workers and operators ask: reserve, settle, extend, cancel."""
    ACCEPT = 1
    """New tasks."""


class Operation(Generic[T]):
    """Something asked of a store: `work` is for its executor to understand, `size` what it weighs in bytes.

    `unheard` is called with a result that nobody waits for any more.
    """

    __slots__ = ("future", "lane", "loop", "size", "unheard", "work")

    future: asyncio.Future[T]
    loop: asyncio.AbstractEventLoop

    def __init__(self, lane: Lane, work: Any, size: int = 0, unheard: Callable[[T], None] | None = None) -> None:
        self.lane = lane
        self.work = work
        self.size = size
        self.unheard = unheard

    def bind(self) -> asyncio.Future[T]:
        """Make the future by which the running event loop hears the answer."""
        self.loop = asyncio.get_running_loop()
        self.future = self.loop.create_future()
        return self.future

    async def answer(self) -> T:
        """Wait for the answer. One that arrives together with a cancellation counts as unheard."""
        try:
            return await self.future
        except asyncio.CancelledError:
            if self.future.done() and not self.future.cancelled() and self.future.exception() is None:
                self._nobody_waits(self.future.result())
            raise

    def resolve(self, result: T | None, error: BaseException | None) -> None:
        """Hand over the answer; called on the loop that waits for it, or when that is closed."""
        if not self.loop.is_closed() and not self.future.done():
            if error is None:
                self.future.set_result(result)  # type: ignore[arg-type]
            else:
                self.future.set_exception(error)
        elif error is None:
            self._nobody_waits(result)  # type: ignore[arg-type]

    def _nobody_waits(self, result: T) -> None:
        if self.unheard is not None:
            self.unheard(result)


class Lanes:
    """What waits for a commit. Used by one thread only."""

    def __init__(self) -> None:
        self._lanes: list[deque[Operation[Any]]] = [deque() for _ in Lane]

    def add(self, operation: Operation[Any]) -> None:
        """Put an operation at the end of its lane."""
        self._lanes[operation.lane].append(operation)

    def take(self) -> list[Operation[Any]]:
        """Return the next batch, empty when nothing waits.

        Lanes that wait share the limits evenly and take turns in being first; an operation over the limits goes alone.
        """
        self._lanes.reverse()
        batch: list[Operation[Any]] = []
        size = 0
        waiting = [lane for lane in self._lanes if lane]
        for index, lane in enumerate(waiting):
            share = len(waiting) - index
            count_limit = len(batch) + (MAX_OPERATIONS - len(batch)) // share
            size_limit = size + (MAX_BYTES - size) // share
            while lane and len(batch) < count_limit and (not batch or size + lane[0].size <= size_limit):
                operation = lane.popleft()
                if operation.future.cancelled():  # nobody waits, and nothing has been done
                    continue
                batch.append(operation)
                size += operation.size
        return batch


class Reading(Protocol):
    """How a store reads its errors."""

    def is_about_data(self, error: Exception) -> bool:
        """Say whether one operation's data may be at fault, so that the others would succeed without it."""

    def explain(self, error: Exception) -> BackendError:
        """Make the error for one caller."""


Answer = tuple[Operation[Any], Any, BaseException | None]


class Batch:
    """A batch on its way through an executor, of whichever kind: do every `part`, then `deliver`."""

    def __init__(self, operations: list[Operation[Any]], reading: Reading) -> None:
        self._parts = deque([operations])
        self._reading = reading
        self._answers: list[Answer] = []

    def part(self) -> list[Operation[Any]] | None:
        """Return what to execute next: everything, then, after an error about data, one by one."""
        return self._parts.popleft() if self._parts else None

    def done(self, part: list[Operation[Any]], results: list[Any]) -> None:
        """Note the results of a part."""
        for operation, result in zip(part, results, strict=True):
            if isinstance(result, BaseException):
                self._answer(operation, None, result)
            else:
                self._answer(operation, result, None)

    def failed(self, part: list[Operation[Any]], error: Exception) -> None:
        """Note that a part failed and left no trace."""
        if len(part) > 1 and self._reading.is_about_data(error):
            self._parts.extend([operation] for operation in part)
            return
        for operation in part:  # an error each: their tracebacks grow apart
            self._answer(operation, None, self._reading.explain(error))

    def deliver(self) -> None:
        """Take the answers to their event loops: one call for each loop."""
        _deliver(self._answers)

    def _answer(self, operation: Operation[Any], result: Any, error: BaseException | None) -> None:
        self._answers.append((operation, result, error))


def _deliver(answers: list[Answer]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for answer in answers:
        by_loop.setdefault(answer[0].loop, []).append(answer)
    running = asyncio._get_running_loop()  # None in a thread of its own
    for loop, part in by_loop.items():
        if loop is running:
            _resolve(part)
            continue
        try:
            loop.call_soon_threadsafe(_resolve, part)
        except RuntimeError:  # closed
            _resolve(part)


def _resolve(answers: list[Answer]) -> None:
    for operation, result, error in answers:
        operation.resolve(result, error)


class BlockingExecutor(Reading, Protocol):
    """What a store brings to a `CommitThread`."""

    def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        """Do a batch in one transaction and return its results; an exception among them is that operation's answer.

        What it raises means that nothing of the batch was done.
        """

    def tidy(self) -> None:
        """Do what can wait until the answers are out."""

    def suspend(self) -> None:
        """Let go of the store until the next `execute`; called by another thread, between two batches."""

    def close(self) -> None:
        """Let go of the store."""


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. Raises `BackendError`: from Python 3.12 on, a program that has come to its end starts none."""
    try:
        thread.start()
    except RuntimeError as error:
        raise BackendError(f"{thread.name} cannot start ({error}): connect() while the program runs") from error


class CommitThread:
    """One thread that owns a blocking store and does everything that is asked of it, batch after batch.

    A daemon: what was acknowledged is committed, so a process may end at any moment.
    """

    def __init__(self, open_executor: Callable[[], BlockingExecutor], name: str) -> None:
        self.opened: Future[None] = Future()
        self.closed: Future[None] = Future()
        self.has_ended = False  # as `closed` says, without its lock: asked at every operation
        self._open_executor = open_executor
        self._inbox: SimpleQueue[list[Operation[Any]] | None] = SimpleQueue()
        self._gathered: dict[asyncio.AbstractEventLoop, list[Operation[Any]]] = {}
        self._lock = threading.Lock()
        self._busy = threading.Lock()  # held while the store is touched
        self._executor: BlockingExecutor | None = None
        self._refusal: BackendError | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; `opened` tells when the store is open."""
        start_thread(self._thread)

    async def run(self, operation: Operation[T]) -> T:
        """Have an operation done and return its result.

        What one turn of an event loop asks is handed in together: the thread would be awake after the first, and the
        others would wait for a commit of that one alone.
        """
        operation.bind()
        gathered = self._gathered.get(operation.loop)
        if gathered is None:
            gathered = self._gathered[operation.loop] = []
            operation.loop.call_soon(self._hand_in, operation.loop)
        gathered.append(operation)
        return await operation.answer()

    def submit(self, operations: list[Operation[Any]]) -> None:
        """Hand in bound operations, from any thread."""
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            self._inbox.put(operations)

    def _hand_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand in what an event loop has gathered; called on that loop."""
        operations = self._gathered.pop(loop, [])
        try:
            self.submit(operations)
        except BackendError as error:
            _resolve([(operation, None, error) for operation in operations])

    def stop(self) -> None:
        """Finish what was handed in and end; `closed` tells when."""
        loop = asyncio._get_running_loop()
        if loop is not None:
            self._hand_in(loop)
        self._inbox.put(None)

    def pause(self, timeout: float) -> bool:
        """Let go of the store after the batch in flight, and start none until `resume`; False: it takes longer."""
        if not self._busy.acquire(timeout=timeout):
            return False
        if self._executor is not None:
            self._executor.suspend()
        return True

    def resume(self) -> None:
        """Go on after `pause`."""
        self._busy.release()

    def _main(self) -> None:
        try:
            with self._busy:
                executor = self._executor = self._open_executor()
        except Exception as error:  # noqa: BLE001 (whoever waits for `opened` gets it)
            refusal = error if isinstance(error, BackendError) else BackendError(str(error))
            refusal.__cause__ = error.__cause__ if refusal is error else error
            self._refuse(refusal)
            self.opened.set_exception(refusal)
            self._end()
            return
        self.opened.set_result(None)
        lanes = Lanes()
        try:
            self._serve(executor, lanes)
        finally:
            refusal = BackendError("the store was closed: connect to it again")
            self._refuse(refusal)
            while left := lanes.take():  # none, unless the thread dies of a bug
                _deliver([(operation, None, refusal) for operation in left])
            with self._busy:
                self._executor = None
                executor.close()
            self._end()

    def _end(self) -> None:
        self.has_ended = True
        self.closed.set_result(None)

    def _serve(self, executor: BlockingExecutor, lanes: Lanes) -> None:
        stopping = False
        while True:
            operations = lanes.take()
            if operations:
                with self._busy:
                    self._commit(Batch(operations, executor), executor)
                    executor.tidy()
            elif stopping:
                return
            for arrived in self._arrivals(wait=not operations):
                if arrived is None:
                    stopping = True
                else:
                    for operation in arrived:
                        lanes.add(operation)

    def _arrivals(self, wait: bool) -> list[list[Operation[Any]] | None]:
        inbox = self._inbox
        arrived = [inbox.get()] if wait else []
        arrived += [inbox.get() for _ in range(inbox.qsize())]  # this thread is the only one that takes
        return arrived

    @staticmethod
    def _commit(batch: Batch, executor: BlockingExecutor) -> None:
        while (part := batch.part()) is not None:
            try:
                results = executor.execute(part)
            except Exception as error:  # noqa: BLE001 (it becomes the answer of those who asked)
                batch.failed(part, error)
            else:
                batch.done(part, results)
        batch.deliver()

    def _refuse(self, error: BackendError) -> None:
        """Answer what is in the inbox, and all that comes later, with `error`."""
        with self._lock:
            self._refusal = error
            left = [self._inbox.get() for _ in range(self._inbox.qsize())]
        _deliver([(operation, None, error) for operations in left for operation in operations or ()])
