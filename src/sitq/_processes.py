"""The worker's side of its child processes: they are started on demand, run one task at a time, and are used again.

A child that must stop what it does is killed, and its end is waited for, before the worker says what became of the
task: nothing runs beside its own retry. `_child` is the other side.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sitq.core import ReservedTask
from sitq.exceptions import SerializationError, SitqError, WorkerError
from sitq.functions import function_name, registered_modules

if TYPE_CHECKING:
    from sitq._execute import Run
    from sitq.core import Outcome
    from sitq.queue import TaskQueue
    from sitq.serialization import Serializer

__all__ = ["HEADER", "CannotStartError", "ChildDiedError", "ProcessPool"]

logger = logging.getLogger("sitq")

HEADER = struct.Struct(">I")
"""Before each frame: its length in bytes."""

in_child = False
"""True in a child process: there, no worker may start."""

_IDLE = 60.0  # seconds an unused child is kept
_MOST_TASKS = 1_000  # a child is replaced after so many
_START_WITHIN = 60.0
_STOP_WITHIN = 5.0
_AFTER_TIMEOUT = 0.5  # the child's own timeout lets an async function clean up, so it goes first


class ChildDiedError(SitqError):
    """The process that ran a task ended in the middle of it."""


class CannotStartError(WorkerError):
    """A child process could not start; no task is to blame."""


class ProcessPool:
    """The children of one worker."""

    def __init__(self, queue: TaskQueue, serializer: Serializer, max_rss: int | None = None) -> None:
        self._queue = queue
        self._serializer = serializer
        self._max_rss = max_rss
        self._setup: bytes | None = None
        self._children: set[_Child] = set()
        self._idle: list[_Child] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, run: Run) -> Outcome | None:
        """Have a child take a run through the pipeline; return what it made of it.

        Raises `ChildDiedError`, `CannotStartError`, `SerializationError` for what cannot cross to a child, and
        `TimeoutError` when the task's timeout has passed and the child did not notice.
        """
        task = self._portable(run.reserved)
        child = await self._take()
        try:
            child.give(task)
            limit = run.options.timeout
            async with asyncio.timeout(None if limit is None else limit + _AFTER_TIMEOUT):
                outcome, is_full = await _follow(child, run)
        except BaseException:
            await self._end(child, kill=True)
            raise
        if is_full or child.tasks >= _MOST_TASKS:
            self._retire(child)
        else:
            self._idle.append(child)
            child.timer = asyncio.get_running_loop().call_later(_IDLE, self._retire, child)
        return outcome

    def can_take(self, task: ReservedTask) -> bool:
        """Say whether a task that did not ask for a child process can have one."""
        try:
            self._pack()
            self._portable(task)
        except SerializationError as error:
            logger.warning("task %s (%s) may have ended a worker, and runs in this one: %s", task.id, task.name, error)
            return False
        return True

    async def close(self) -> None:
        """End all children: idle ones in order, busy ones at once."""
        idle = set(self._idle)
        self._idle.clear()
        await asyncio.gather(*(self._end(child, kill=child not in idle) for child in list(self._children)))
        if self._ending:
            await asyncio.wait(self._ending)

    def _portable(self, task: ReservedTask) -> ReservedTask:
        """Return the task as bytes, where the store handed over objects."""
        if task.function is None:
            return task
        name = task.name or function_name(task.function)
        payload = self._serializer.encode_call(task.id, name, task.function, task.args, task.kwargs)
        return dataclasses.replace(task, name=name, payload=payload, function=None, args=(), kwargs={})

    async def _take(self) -> _Child:
        while self._idle:
            child = self._idle.pop()
            if child.timer is not None:
                child.timer.cancel()
            if child.is_alive:
                return child
            self._retire(child)
        setup = self._pack()
        child = _Child()
        self._children.add(child)
        try:
            async with asyncio.timeout(_START_WITHIN):
                await child.start(setup)
        except TimeoutError:
            await self._end(child, kill=True)
            raise CannotStartError(f"a child process was not ready within {_START_WITHIN:g} seconds") from None
        except BaseException:
            await self._end(child, kill=True)
            raise
        return child

    def _pack(self) -> bytes:
        if self._setup is None:
            from sitq._crossing import Setup, pack  # imports cloudpickle

            self._setup = pack(Setup(queue=self._queue, serializer=self._serializer, max_rss=self._max_rss))
        return self._setup

    def _retire(self, child: _Child) -> None:
        if child in self._idle:  # at once: it must not be given a task any more
            self._idle.remove(child)
        task = asyncio.get_running_loop().create_task(self._end(child), name="sitq-child-end")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, child: _Child, kill: bool = False) -> None:
        await child.end(kill)
        self._children.discard(child)


async def _follow(child: _Child, run: Run) -> tuple[Outcome | None, bool]:
    while True:
        match await child.receive():
            case ("progress", value):
                if run.current is not None:
                    run.current.progress_value = value
            case ("done", outcome, error, progress, is_full):
                if run.current is not None and progress is not None:
                    run.current.progress_value = progress
                run.error = None if error is None else SitqError(error)
                return outcome, is_full
            case _:
                raise ChildDiedError(f"its process {await child.died()}")


class _Child:
    """One child process, and the worker's end of its pipe."""

    def __init__(self) -> None:
        self.tasks = 0
        self.timer: asyncio.TimerHandle | None = None
        self._modules: set[str] = set()
        self._exited = asyncio.Event()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._variables: dict[str, str | None] = {}
        with theirs:
            number = theirs.fileno()
            try:
                self._process = subprocess.Popen(  # noqa: S603 (our own command)
                    [*_python(), "-P", "-m", "sitq._child", str(number), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[number],
                    env=self._environment(),
                )
            except OSError as error:
                self._socket.close()
                raise CannotStartError(f"cannot start a child process: {error}") from error
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait, args=(loop,), name="sitq-child-wait", daemon=True).start()

    def _environment(self) -> dict[str, str] | None:
        """Let the child find sitq itself; all other modules are found once it has the worker's `sys.path`."""
        root = str(Path(__file__).parents[1])
        if root in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            return None
        before = os.environ.get("PYTHONPATH")
        self._variables = {"PYTHONPATH": before}
        return {**os.environ, "PYTHONPATH": os.pathsep.join([root] if not before else [before, root])}

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the process, in a thread: a fork the task left behind may keep the pipe open."""
        self._process.wait()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)  # what it sent before can still be read, and then comes the end
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._exited.set)

    @property
    def is_alive(self) -> bool:
        return not self._exited.is_set() and not self._reader.at_eof()

    async def start(self, setup: bytes) -> None:
        """Hand over what the child needs. Raises `CannotStartError`."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)
        self._send(pickle.dumps((sys.path, self._variables)))
        self._send(setup)
        match await self.receive():
            case ("ready",):
                return
            case ("broken", text):
                raise CannotStartError(f"a child process could not start:\n{text}")
            case _:
                raise CannotStartError(f"a child process {await self.died()} before it was ready")

    def give(self, task: ReservedTask) -> None:
        """Send a task, with the modules that have come to register functions since the last one."""
        self.tasks += 1
        modules = registered_modules() - self._modules
        self._modules |= modules
        self._send(pickle.dumps((task, sorted(modules)), pickle.HIGHEST_PROTOCOL))

    def _send(self, frame: bytes) -> None:
        with suppress(ConnectionError):  # reading tells that it is gone
            self._writer.write(HEADER.pack(len(frame)) + frame)

    async def receive(self) -> Any:
        """Return the child's next message, or None when there will be none."""
        try:
            (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            return pickle.loads(await self._reader.readexactly(size))  # noqa: S301 (it runs the worker's own code)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def died(self) -> str:
        """Say how the child ended, once it has."""
        await self._exit(_STOP_WITHIN)
        code = self._process.returncode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    async def end(self, kill: bool) -> None:
        """End the process and wait until it is gone."""
        if self.timer is not None:
            self.timer.cancel()
        if not kill:
            self._send(b"")
            await self._exit(_STOP_WITHIN)
        self._process.kill()
        await self._exit(_STOP_WITHIN)
        if hasattr(self, "_writer"):
            self._writer.close()
            with suppress(ConnectionError):
                await self._writer.wait_closed()
        else:
            self._socket.close()

    async def _exit(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._exited.wait()


def _python() -> list[str]:
    """Return this interpreter with its options, as `multiprocessing` hands them on."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags]
