"""Plain functions run here, in daemon threads of the worker's own.

A thread cannot be interrupted, so none of this pretends to. `concurrent.futures` joins its threads when the interpreter
exits, and one stuck function would hold the exit for ever: these threads are daemons.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple

__all__ = ["Returned", "ThreadPool"]


class Returned(NamedTuple):
    """How a function ended: a tuple, because a Future refuses some exceptions (StopIteration)."""

    value: Any
    error: BaseException | None


class ThreadPool:
    """Threads that appear as they are needed, up to one a slot, and wait for the next function."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = 0
        self._threads: set[threading.Thread] = set()

    def submit(self, context: Context, function: Callable[[], Any]) -> asyncio.Future[Returned]:
        """Run `function` in `context` in a thread; called on the event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Returned] = loop.create_future()

        def job() -> None:
            try:
                returned = Returned(context.run(function), None)
            except BaseException as error:  # noqa: BLE001 (also SystemExit: the task ends, not the worker)
                returned = Returned(None, error)
            try:
                loop.call_soon_threadsafe(self._deliver, future, returned)
            except RuntimeError:  # the loop is closed: the worker gave this task back and went home
                return

        if self._idle:
            self._idle -= 1
        else:
            thread = threading.Thread(target=self._work, name=f"sitq-thread-{len(self._threads) + 1}", daemon=True)
            self._threads.add(thread)
            thread.start()
        self._jobs.put(job)
        return future

    def adopt(self) -> Callable[[], None]:
        """Make the calling thread one of the pool's: it must call what is returned, which lasts until `close`."""
        self._idle += 1
        self._threads.add(threading.current_thread())
        return self._work

    def _deliver(self, future: asyncio.Future[Returned], returned: Returned) -> None:
        self._idle += 1
        if not future.done():
            future.set_result(returned)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or it would keep the task's arguments alive until the next one

    def close(self) -> None:
        """Send idle threads home; a thread that is stuck stays behind, and does not hold up the exit."""
        for _ in self._threads:
            self._jobs.put(None)
