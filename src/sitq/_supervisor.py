"""Supervised worker processes: kept running, replaced when they end, and their tasks set free the moment they are dead.

`supervise` is the parent: it runs no task and holds no lease, so little can go wrong in it. `join_supervisor` is the
other end, in each worker process. Between the two is a socket: the process says that it has started, or that it
retires; its end tells the process that the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from sitq.backends.base import Backend
from sitq.exceptions import UnsupportedError
from sitq.queue import TaskQueue
from sitq.worker import Worker

__all__ = ["is_supervised", "join_supervisor", "supervise"]

logger = logging.getLogger("sitq")

_VARIABLE = "SITQ_SUPERVISED"
_STARTED = b"s"
_RETIRING = b"r"

_YOUNG = 5.0  # seconds: one that ends earlier is replaced with a pause
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
_MAKE_WAY = 0.25  # seconds in which the others start what a dead one held, before a new one needs the processor
_FALSE_STARTS = 6  # ends in a row before a process had started
_EXIT_USAGE = 2  # said of a command line that cannot work: no use in repeating it
_HURRIED = 10.0  # seconds after a second request to stop


def supervise(
    command: Sequence[str],
    processes: int,
    backend: Callable[[], Backend],
    *,
    workers: int = 1,
    stop_within: float = 90.0,
) -> int:
    """Keep `processes` processes of `command` running until SIGTERM or SIGINT; return the exit code.

    Each must call `join_supervisor` with its `workers` workers. `backend` makes a handle on their store, for
    `abandon_worker`. A stop is passed on; a second one is fast; a third one, or `stop_within` seconds, kills.
    """
    return asyncio.run(_Supervisor(command, processes, backend, workers, stop_within).run())


def is_supervised() -> bool:
    """Say whether a supervisor started this process, and has not been joined yet."""
    return _VARIABLE in os.environ


def join_supervisor(queue: TaskQueue, workers: Sequence[Worker]) -> None:
    """Connect this process to the supervisor that started it; without one, do nothing. Called before the workers run.

    The variable is taken out of the environment, for what a task starts is not supervised.
    """
    given = os.environ.pop(_VARIABLE, None)
    if given is None:
        return
    number, _, name = given.partition(":")
    supervisor = socket.socket(fileno=int(number))
    supervisor.set_inheritable(False)

    def say(word: bytes) -> None:
        with suppress(OSError):  # it is gone, which the thread below has noticed
            supervisor.send(word)

    for worker, worker_id in zip(workers, _ids(name, len(workers)), strict=True):
        worker._next_id = worker_id
        worker._on_retire = lambda: say(_RETIRING)
    queue.on("worker_started", lambda _event: say(_STARTED))
    threading.Thread(target=_stop_with, args=(supervisor,), name="sitq-supervisor", daemon=True).start()


def _stop_with(supervisor: socket.socket) -> None:
    """Stop in good order when the supervisor is gone, however it ended."""
    with suppress(OSError):
        supervisor.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _ids(name: str, workers: int) -> list[str]:
    return [f"{name}-{number}" for number in range(workers)]


class _Process:
    """One worker process."""

    def __init__(self, workers: int) -> None:
        name = f"{socket.gethostname()}-{secrets.token_hex(6)}"
        self.worker_ids = _ids(name, workers)
        self.has_started = False
        self.born = time.monotonic()
        self.code: int | None = None
        self._name = name
        self._left = asyncio.Event()

    async def start(self, command: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            number = theirs.fileno()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    env={**os.environ, _VARIABLE: f"{number}:{self._name}"},
                    pass_fds=[number],
                    start_new_session=True,  # a Ctrl+C reaches it once, through the supervisor
                )
            except BaseException:
                self._socket.close()
                raise
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)

    async def listen(self) -> None:
        """Note what the process says, until it ends."""
        while word := await self._reader.read(1):
            self.has_started = self.has_started or word == _STARTED
            if word == _RETIRING:
                self._left.set()

    async def end(self) -> int:
        """Wait for the process and return its exit code; negative is a signal."""
        listening = asyncio.create_task(self.listen())
        self.code = await self._process.wait()
        with suppress(
            OSError
        ):  # what it said can still be read; then comes the end, even if a fork has the socket, too
            self._socket.shutdown(socket.SHUT_RD)
        await listening
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        self._left.set()
        return self.code

    async def leave(self) -> None:
        """Wait until the process has ended, or takes no more tasks."""
        await self._left.wait()

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def lived(self) -> float:
        return time.monotonic() - self.born


class _Supervisor:
    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        backend: Callable[[], Backend],
        workers: int,
        stop_within: float,
    ) -> None:
        self._command = command
        self._processes = processes
        self._make_backend = backend
        self._backend: Backend | None = None
        self._workers = workers
        self._stop_within = stop_within
        self._running: set[_Process] = set()
        self._ends: set[asyncio.Task[None]] = set()
        self._stops = 0
        self._stopping = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._stop)
        try:
            await asyncio.gather(*(self._keep_one() for _ in range(self._processes)))
            while self._ends:
                await asyncio.wait(self._ends)
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            for process in self._running:
                process.send_signal(signal.SIGKILL)
            if self._backend is not None:
                await self._backend.close()
        return self._exit_code

    # --- one place, filled by one process after another ---------------------------------------------------------------

    async def _keep_one(self) -> None:
        young = false_starts = 0
        while not self._stopping.is_set():
            process = _Process(self._workers)
            await process.start(self._command)
            self._running.add(process)
            if self._stops:  # the request came while there was no process to tell
                process.send_signal(signal.SIGTERM)
            end = asyncio.create_task(self._end_of(process))
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)
            await process.leave()
            if process.code is None or process.code == 0:  # it retires, and another takes its place at once
                young = false_starts = 0
                if not process.has_started and not self._stopping.is_set():
                    await self._pause(_FIRST_PAUSE)
                continue
            false_starts = 0 if process.has_started else false_starts + 1
            young = young + 1 if process.lived() < _YOUNG else 0
            if false_starts and (process.code == _EXIT_USAGE or false_starts >= _FALSE_STARTS):
                self._give_up(process.code, false_starts)
            elif young > 1 or false_starts:
                await self._pause(min(_FIRST_PAUSE * 2.0 ** (young - 1 + bool(false_starts)), _LONGEST_PAUSE))
            elif self._running:
                await self._pause(_MAKE_WAY)

    async def _end_of(self, process: _Process) -> None:
        """Wait for a process; whatever one that did not end by itself still held is free at once."""
        code = await process.end()
        self._running.discard(process)
        if code == 0:
            return
        if not (self._stops and code == -signal.SIGTERM):  # asked to stop before it could listen
            logger.error("a worker process ended with %s after %.1f s", _how(code), process.lived())
        for worker_id in process.worker_ids:
            await self._abandon(worker_id)

    async def _abandon(self, worker_id: str) -> None:
        try:
            if self._backend is None:
                self._backend = self._make_backend()
            await self._backend.connect()
            freed = await self._backend.abandon_worker(worker_id)
        except UnsupportedError:  # no leases: the worker's own plan has said so
            return
        except Exception as error:  # noqa: BLE001 (the user's module, or the store: the leases will end by themselves)
            logger.warning("cannot free the tasks of a dead worker (%s: %s)", type(error).__name__, error)
            return
        if freed:
            what = "1 task starts" if freed == 1 else f"{freed} tasks start"
            logger.warning("%s again: the worker %s is dead", what, worker_id)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _give_up(self, code: int, false_starts: int) -> None:
        if self._stopping.is_set():
            return
        times = f"{false_starts} times in a row" if false_starts > 1 else "right away"
        logger.critical(
            "worker processes end before they have started (%s, %s): see above; giving up", times, _how(code)
        )
        self._exit_code = max(code, 1)
        self._stop()

    # --- stop ---------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._stops += 1
        self._stopping.set()
        # Two of one kind that come close together are one to the kernel.
        number = {1: signal.SIGTERM, 2: signal.SIGINT}.get(self._stops, signal.SIGKILL)
        for process in self._running:
            process.send_signal(number)
        patience = self._stop_within if self._stops == 1 else min(_HURRIED, self._stop_within)
        asyncio.get_running_loop().call_later(patience, self._kill)

    def _kill(self) -> None:
        for process in self._running:
            logger.error("a worker process did not stop: killing it")
            process.send_signal(signal.SIGKILL)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
