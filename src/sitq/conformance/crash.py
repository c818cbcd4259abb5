"""The crash kit: processes that are killed and stopped in the middle, and ledgers outside the store that know better.

A producer writes an id into its ledger, synced, once `enqueue` has returned it; a task writes each of its runs into
another. What the store says afterwards must agree with both.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from sitq.backends.base import Backend, Capability
from sitq.conformance._kit import Kit, requires
from sitq.conformance.calls import note
from sitq.conformance.children import Child
from sitq.core import utcnow
from sitq.queue import TaskQueue
from sitq.worker import Worker

_KILLS = int(os.environ.get("SITQ_CRASH_KILLS", "6"))
_LEASE = 1.0
_NO_LEASE = 1_000_000.0  # leases switched off, as good as


@requires("persistent")
class CrashTests(Kit):
    """SIGKILL, SIGSTOP and SIGCONT."""

    @pytest.fixture
    def ledgers(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        """Give the ledgers of acknowledged ids and of runs, in a folder apart from the store."""
        folder = tmp_path_factory.mktemp("ledgers")
        return folder / "acknowledged", folder / "runs"

    async def test_acknowledged_ids_survive_a_kill(
        self, backend: Backend, make_backend: Callable[[], Backend], ledgers: tuple[Path, Path]
    ) -> None:
        """Every id that `enqueue` returned before its process was killed is there, and its task can be reserved."""
        acknowledged, runs = ledgers
        child = Child("produce", make_backend, acknowledged, runs)
        try:
            await self.eventually(partial(_has_lines, acknowledged, 30, [child]))
        finally:
            child.kill()
        ids = set(_lines(acknowledged))
        async with make_backend() as other:
            found: set[str] = set()
            worker = self.worker()
            while reserved := await other.reserve(worker, 50):
                found |= {task.id for task in reserved}
        assert ids <= found, f"{len(ids - found)} of {len(ids)} acknowledged tasks are gone"

    @requires(Capability.LEASES)
    async def test_killed_workers_and_producers_lose_nothing(
        self, backend: Backend, make_backend: Callable[[], Backend], ledgers: tuple[Path, Path]
    ) -> None:
        """Every acknowledged task ends once, and runs again only where a lease was lost."""
        await self._kill_again_and_again(make_backend, ledgers, _LEASE)
        left = await self._finish(backend, ledgers[0])
        assert not left, f"{len(left)} acknowledged tasks never end: {sorted(left)[:3]}"
        for task_id, fences in _runs(ledgers[1]).items():
            task = await self.stored(backend, task_id)
            assert task.status == "completed"
            result = await backend.get_result(task_id)
            assert result is not None
            assert result.status == "success"
            assert len(fences) <= 1 + task.crashes, f"{len(fences)} runs, {task.crashes} lost leases"
            assert all(a < b for a, b in pairwise(fences)), f"fences of the runs: {fences}"

    @requires(Capability.LEASES)
    async def test_the_kit_would_notice(
        self, backend: Backend, make_backend: Callable[[], Backend], ledgers: tuple[Path, Path]
    ) -> None:
        """Negative control: with leases that never end, the same kills leave tasks that never end."""
        for _ in range(5):
            await self._kill_again_and_again(make_backend, ledgers, _NO_LEASE)
            if await self._finish(backend, ledgers[0], until_stuck=True):
                return
        pytest.fail("workers were killed without leases, and nothing was stranded: the kit sees nothing")

    @requires(Capability.LEASES)
    async def test_stopped_worker_changes_nothing(
        self, backend: Backend, make_backend: Callable[[], Backend], ledgers: tuple[Path, Path]
    ) -> None:
        """A worker stopped past its lease and continued is refused: the run that took over is the one that counts."""
        lost, runs = ledgers
        async with TaskQueue(backend) as queue:
            handle = await queue.enqueue(note, str(runs), 1.5)
            child = Child("work", make_backend, _LEASE, lost)
            try:
                await self.eventually(partial(_has_lines, runs, 1, [child]))
                child.send(signal.SIGSTOP)
                async with Worker(queue, poll_interval=0.05):
                    result = await queue.get_result(handle, timeout=60)
                    before = await self.stored(backend, handle)
                    child.send(signal.SIGCONT)
                    await self.eventually(partial(_has_lines, lost, 1, [child]))
            finally:
                child.kill()
            after = await self.stored(backend, handle)
            assert result is not None
            assert (result.status, result.attempts) == ("success", 2)
            assert await queue.get_result(handle) == result
        assert (after.status, after.fence, after.crashes) == ("completed", before.fence, 1)
        (fences,) = _runs(runs).values()
        assert len(fences) == 2
        assert fences[0] < fences[1]

    async def _kill_again_and_again(
        self, make_backend: Callable[[], Backend], ledgers: tuple[Path, Path], lease: float
    ) -> None:
        """Keep producers and workers going, and kill one after the other, each after some progress."""
        acknowledged, runs = ledgers
        chance = random.Random(1)  # noqa: S311 (whom it hits, not when)
        start = {
            "produce": partial(Child, "produce", make_backend, acknowledged, runs),
            "work": partial(Child, "work", make_backend, lease),
        }
        children = [(role, make()) for role, make in start.items() for _ in range(2)]
        try:
            for _ in range(_KILLS):
                alive = [child for _, child in children]
                await self.eventually(partial(_has_lines, acknowledged, len(_lines(acknowledged)) + 5, alive))
                await self.eventually(partial(_has_lines, runs, len(_lines(runs)) + 5, alive))
                role, child = children.pop(chance.randrange(len(children)))
                child.kill()
                children.append((role, start[role]()))
        finally:
            for _, child in children:
                child.kill()

    async def _finish(self, backend: Backend, acknowledged: Path, until_stuck: bool = False) -> set[str]:
        """Work until all acknowledged tasks have ended; fail when none of them does for too long.

        With `until_stuck`, return as soon as only running tasks of dead workers are left.
        """
        left, stuck = set(_lines(acknowledged)), False
        async with TaskQueue(backend) as queue, Worker(queue, poll_interval=0.05):

            async def goes_on(before: int) -> bool:
                nonlocal stuck
                tasks = [await self.stored(backend, task_id) for task_id in left]
                live = [task for task in tasks if task.status in ("queued", "running")]
                left.intersection_update(task.id for task in live)
                stuck = until_stuck and all(_is_far(task.lease_expires_at) for task in live)
                return stuck or len(left) < before

            while left and not stuck:
                await self.eventually(partial(goes_on, len(left)))
        return left


def _is_far(moment: datetime | None) -> bool:
    return moment is not None and moment > utcnow() + timedelta(seconds=_NO_LEASE / 2)


def _lines(path: Path) -> list[str]:
    """Return the complete lines of a ledger."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _runs(path: Path) -> dict[str, list[int]]:
    """Return the fences of each task's runs, in order."""
    fences: dict[str, list[int]] = defaultdict(list)
    for line in _lines(path):
        task_id, _attempt, fence = line.split()
        fences[task_id].append(int(fence))
    return fences


async def _has_lines(path: Path, count: int, children: list[Child]) -> bool:
    await asyncio.sleep(0)
    for child in children:
        if not child.alive():
            raise RuntimeError(f"a child process of the suite ended by itself:\n{child.kill()}")
    return len(_lines(path)) >= count
