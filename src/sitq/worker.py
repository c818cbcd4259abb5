"""The worker as its user holds it: settings, start and stop. What it does between the two is in `_session`."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from sitq import _processes
from sitq._limits import Limits
from sitq._session import Session
from sitq.backends.base import Backend
from sitq.core import WorkerInfo
from sitq.exceptions import ValidationError, WorkerError
from sitq.queue import TaskQueue
from sitq.serialization import Serializer

__all__ = ["RunCounts", "Worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """How many runs ended how."""

    completed: int = 0
    failed: int = 0
    deferred: int = 0


class Worker:
    """Runs the tasks of a queue.

    `max_concurrency` tasks at the same time, from `queues` (None: all). An idle worker
    is woken by the store, and looks by itself every `poll_interval` seconds (None: the store's own). `lease` is how
    many seconds after its last sign of life a worker's tasks go to another; `grace` how long a stop lets running tasks
    finish.

        async with Worker(queue): ...           # in the background
        await Worker(queue).start()              # until stop()
        await Worker(queue).run_until_empty()    # what is there, then return
    """

    def __init__(  # noqa: PLR0917 (the order users write them in)
        self,
        queue_or_backend: TaskQueue | Backend,
        serializer: Serializer | None = None,
        max_concurrency: int = 10,
        poll_interval: float | None = None,
        queues: Sequence[str] | None = None,
        lease: float = 30.0,
        grace: float = 30.0,
    ) -> None:
        if not isinstance(queue_or_backend, (Backend, TaskQueue)):
            raise ValidationError(f"a worker needs a TaskQueue or a Backend, not {queue_or_backend!r}")
        if type(max_concurrency) is not int or max_concurrency < 1:
            raise ValidationError(f"max_concurrency is a whole number of 1 or more, not {max_concurrency!r}")
        _check_seconds("poll_interval", poll_interval, 0.001)
        _check_seconds("lease", lease, 0.1)
        _check_seconds("grace", grace, 0.0)
        if isinstance(queues, str) or (queues is not None and not queues):
            raise ValidationError(f'queues is a list of names such as ["mail"], or None for all, not {queues!r}')
        if isinstance(queue_or_backend, Backend):
            self.queue = TaskQueue(queue_or_backend, serializer)
        else:
            self.queue = queue_or_backend
        self.serializer = serializer or self.queue.serializer
        self.max_concurrency = max_concurrency
        self.poll_interval = poll_interval
        self.queues = None if queues is None else tuple(queues)
        self.lease = float(lease)
        self.grace = float(grace)
        self._pid = os.getpid()
        self._session: Session | None = None
        self._background: asyncio.Task[None] | None = None
        self._next_id: str | None = None  # a supervisor gives its workers their ids, each for one run
        self._on_retire: Callable[[], object] = bool

    async def start(
        self, *, handle_signals: bool = False, max_tasks: int | None = None, max_rss: int | None = None
    ) -> None:
        """Work until `stop()`; with `handle_signals` until SIGTERM or SIGINT, a second of which cuts the grace.

        After `max_tasks` runs, or when the process takes more than `max_rss` bytes of memory, the worker reserves no
        more, lets what runs finish, and returns. Raises `WorkerError` when it cannot go on, with the cause chained.
        """
        limits = Limits(max_tasks=max_tasks, max_rss=max_rss, on_reached=self._on_retire)
        session = self._new_session(limits=limits)
        if not handle_signals:
            await session.run()
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, session.request_stop)
        try:
            await session.run()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def stop(self) -> None:
        """Reserve no more, let running tasks finish for up to the grace, give back the rest, and then return.

        Nothing happens to a worker that has not begun.
        """
        session = self._session
        if session is not None:
            session.request_stop()
            await session.ended.wait()

    def _retire(self) -> None:
        """Reserve no more, let what runs finish, however long it takes, and return; on the worker's loop."""
        if self._session is not None:
            self._session.retire("another worker of its process does")

    async def run_until_empty(self) -> RunCounts:
        """Work until no task of its queues is ready, running or in retry backoff; a later `eta` stays."""
        session = self._new_session(until_empty=True)
        await session.run()
        counts = session.counts
        return RunCounts(completed=counts["completed"], failed=counts["failed"], deferred=counts["deferred"])

    async def __aenter__(self) -> Self:
        session = self._new_session()
        self._background = asyncio.create_task(session.run(), name="sitq-worker")
        started = asyncio.create_task(session.started.wait())
        try:
            await asyncio.wait([self._background, started], return_when=asyncio.FIRST_COMPLETED)
        except BaseException:  # cancelled: there will be no __aexit__
            started.cancel()
            self._background.cancel()
            await asyncio.wait([self._background])
            raise
        if self._background.done():
            started.cancel()
            await self._background  # it could not start: raise what it raised
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        background, self._background = self._background, None
        if background is not None and self._session is not None:
            self._session.request_stop()
            await background

    def _new_session(self, until_empty: bool = False, limits: Limits | None = None) -> Session:
        if os.getpid() != self._pid:
            raise WorkerError("this worker was made before a fork: make it in the process that runs it")
        if _processes.in_child:
            raise WorkerError(
                "a child process of a worker starts no worker of its own: if the script that was started does so when "
                'it is imported, put that under `if __name__ == "__main__":`'
            )
        if self._session is not None and not self._session.ended.is_set():
            raise WorkerError("this worker is running already: make another one, or stop it first")
        given, self._next_id = self._next_id, None
        info = WorkerInfo(
            id=given or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            queues=self.queues,
            lease=self.lease,
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self._session = Session(
            self.queue,
            info,
            serializer=self.serializer,
            slots=self.max_concurrency,
            poll_interval=self.poll_interval,
            grace=self.grace,
            until_empty=until_empty,
            limits=limits,
        )
        return self._session


def _check_seconds(name: str, value: object, least: float) -> None:
    if value is None and name == "poll_interval":
        return
    if not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise ValidationError(f"{name} is a number of seconds, at least {least:g}, not {value!r}")
