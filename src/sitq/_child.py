"""A child process of a worker, `python -m sitq._child`: runs one task after another, in the worker's own pipeline.

Three threads: one reads the pipe and ends the process at once when the worker has closed it, whatever the others are
doing; one has the event loop; the main thread runs plain functions, since some libraries work only there. Frames go
over a socket of their own, so what tasks print goes where the worker's output goes.

A module apart from the one that is started: `__main__` would be a second copy of this one.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any, NoReturn

from sitq import _crossing, _processes
from sitq._crossing import Setup
from sitq._execute import Executor, Run
from sitq._memory import rss
from sitq._processes import HEADER
from sitq._threads import ThreadPool
from sitq.core import ReservedTask

__all__ = ["main"]

logger = logging.getLogger("sitq")

_PR_SET_PDEATHSIG = 1
_PROGRESS_EVERY = 0.1


class Link:
    """The child's end of the pipe."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()
        self._told = 0.0

    def receive(self) -> bytes:
        """Return the next frame; ends the process when there is nobody to send one."""
        (size,) = HEADER.unpack(self._exactly(HEADER.size))
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(min(size - len(parts), 2**20))
            except OSError:
                part = b""
            if not part:
                os._exit(1)  # the worker is gone, and its lease will be: whatever runs here counts for nothing
            parts += part
        return bytes(parts)

    def send(self, *message: Any) -> None:
        """Send a message, from any thread."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            try:
                self._socket.sendall(HEADER.pack(len(body)) + body)
            except OSError:
                os._exit(1)

    def progress(self, value: Any) -> None:
        """Pass on progress, not faster than anybody looks; the last value comes with the outcome."""
        now = time.monotonic()
        if now - self._told >= _PROGRESS_EVERY:
            self._told = now
            self.send("progress", value)


class Child:
    """The event loop's side: takes frames, runs tasks, sends outcomes."""

    def __init__(self, link: Link, setup: bytes) -> None:
        self.threads = ThreadPool()
        self._link = link
        self._setup = setup
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue()

    def main(self) -> None:
        """Serve until the worker says stop; trouble outside of a task ends the process."""
        try:
            asyncio.run(self._serve())
        except BaseException:  # noqa: BLE001 (KeyboardInterrupt from a task, for example)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        self.threads.close()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), name="sitq-pipe", daemon=True).start()
        async with AsyncExitStack() as stack:
            try:
                # On the loop, because a script that starts a worker when it is imported must fail to do so here.
                setup = _crossing.unpack(self._setup)
                lifespan = setup.queue.lifespan
                state = None if lifespan is None else await stack.enter_async_context(lifespan(setup.queue))
            except Exception as error:  # noqa: BLE001 (the worker says what becomes of the task)
                self._link.send("broken", "".join(traceback.format_exception(error)))
                return
            executor = Executor(setup.queue, setup.serializer, state, threads=self.threads)
            executor.on_progress = self._link.progress
            self._link.send("ready")
            await self._work(executor, setup)
            await setup.queue.close()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            frame = self._link.receive()
            loop.call_soon_threadsafe(self._inbox.put_nowait, frame)
            if not frame:
                self._link.receive()  # only the end comes after the request to stop

    async def _work(self, executor: Executor, setup: Setup) -> None:
        context = contextvars.copy_context()
        while frame := await self._inbox.get():
            task, modules = pickle.loads(frame)  # noqa: S301 (from the worker, by a pipe of its own)
            _import(modules)
            await self._run(executor, task, context.copy(), setup.max_rss)

    async def _run(
        self, executor: Executor, task: ReservedTask, context: contextvars.Context, max_rss: int | None
    ) -> None:
        run = Run(task, time.monotonic(), float("inf"))
        outcome = await asyncio.get_running_loop().create_task(executor.execute(run), context=context)
        error = None if run.error is None else f"{type(run.error).__name__}: {run.error}"
        self._link.send("done", outcome, error, run.unpublished(), max_rss is not None and rss() > max_rss)


def main() -> None:
    """Be a child: the arguments are the number of the pipe's descriptor and the worker's process id."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    _end_with(int(sys.argv[2]))
    _leave_signals_to_the_worker()
    _processes.in_child = True
    link = Link(connection)
    sys.path[:], variables = pickle.loads(link.receive())  # noqa: S301 (from the worker, by a pipe of its own)
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    child = Child(link, link.receive())
    thread = threading.Thread(target=child.main, name="sitq-loop", daemon=True)
    run_plain_functions = child.threads.adopt()
    thread.start()
    run_plain_functions()
    thread.join()


def _end_with(worker: int) -> None:
    """Have the kernel end this process when the worker dies, even if this one is stuck in C and holds the GIL."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != worker:  # it died before that
        os._exit(1)


def _leave_signals_to_the_worker() -> None:
    """Outlive a Ctrl+C or a SIGTERM to the whole group: the worker lets tasks finish, and then ends its children.

    Handlers, since ignored signals stay ignored in every program a task starts.
    """
    me = os.getpid()

    def ignore(number: int, _frame: object) -> None:
        if os.getpid() != me:  # a fork of a task's own
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ignore)


def _import(modules: Iterable[str]) -> None:
    """Import what registers functions with `@task`: some serializers resolve registered names only."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 (a task that needs it will say so)
            logger.warning("cannot import %s in a child process (%s: %s)", name, type(error).__name__, error)


def start() -> NoReturn:
    """Run `main` and end the process as usual, exit handlers included."""
    main()
    sys.exit(0)


if __name__ == "__main__":
    from sitq._child import start as start_the_imported_one

    start_the_imported_one()
