"""The fleet under stress, with figures: kills, sigterm, poison. `scripts/slow NAME [number]` runs one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from fleet import APP, Fleet
from sitq import SQLiteBackend, TaskQueue

DEADLINE = 300.0
rng = random.Random()  # noqa: S311


def prepare(folder: Path) -> Any:
    """Make the application importable and return it."""
    (folder / "app.py").write_text(APP, encoding="utf-8")
    sys.path.insert(0, str(folder))
    import app  # type: ignore[import-not-found]  # just written

    return app


def check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"failed: {what}")


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        check(time.monotonic() < deadline, "it did not come")
        await asyncio.sleep(0.01)


def log_of(folder: Path) -> list[tuple[str, int]]:
    path = folder / "log"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(line.split()[0], int(line.split()[1])) for line in lines]


async def crashes_of(queue: TaskQueue, handles: list[Any]) -> int:
    tasks = [await queue.get_task(handle) for handle in handles]
    return sum(task.crashes for task in tasks if task)


async def kills(folder: Path, number: int) -> None:
    """SIGKILL a supervised worker again and again, and see how soon its tasks start once more."""
    app = prepare(folder)
    reserved: list[float] = []
    waits: list[float] = []
    async with TaskQueue(SQLiteBackend(folder / "tasks.db")) as queue:
        with Fleet(folder, "--processes", "2", "-c", "4", "--lease", "3600", "--log-level", "error") as fleet:
            for turn in range(number):
                while len(await queue.backend.list_workers()) < 2:  # noqa: ASYNC110 (told by nobody)
                    await asyncio.sleep(0.01)
                (folder / "go").unlink(missing_ok=True)
                (folder / "log").unlink(missing_ok=True)
                handles = await queue.enqueue_many(app.hold, [(f"t{turn}-{n}",) for n in range(4)])
                await until(lambda: len(fleet.log()) == 4)
                victim = rng.choice(fleet.log())[1]
                held = sum(pid == victim for _, pid in fleet.log())
                killed = time.monotonic()
                fleet.kill(victim)
                while await crashes_of(queue, handles) < held:  # noqa: ASYNC110 (told by nobody)
                    await asyncio.sleep(0.01)
                reserved.append(time.monotonic() - killed)
                await until(lambda held=held: len(fleet.log()) == 4 + held)  # type: ignore[misc]
                waits.append(time.monotonic() - killed)
                (folder / "go").touch()
                for handle in handles:
                    await handle.result(timeout=DEADLINE)
                check(await crashes_of(queue, handles) == held, "others were blamed")
            fleet.signal()
            check(fleet.end().exit_code == 0, "the exit code is not 0")
    late = sum(wait > 1 for wait in waits)
    print(f"{number} SIGKILLs of a worker process, until all it held …")
    for what, seconds in (("was reserved by another", reserved), ("ran again in a child process", waits)):
        print(f"  {what}: {statistics.median(seconds):.3f} s (median), {max(seconds):.3f} s (worst)")
    print(f"  later than a second: {late}")
    check(not late, "too late")


async def sigterm(folder: Path, number: int) -> None:
    """SIGTERM a loaded worker again and again: nothing is lost, and nothing runs twice but what was interrupted."""
    app, interrupted = prepare(folder), 0
    async with TaskQueue(SQLiteBackend(folder / "tasks.db")) as queue:
        handles: list[Any] = []
        for turn in range(number):
            naps = [(f"t{turn}-{n}", rng.choice([0, 0.001, 0.05, 0.3])) for n in range(60)]
            handles += await queue.enqueue_many(app.nap, naps)
            with Fleet(folder, "-c", "8", "--grace", "0.2", "--log-level", "error") as fleet:
                begun = len(log_of(folder))
                await until(lambda begun=begun: len(log_of(folder)) > begun + 10)  # type: ignore[misc]
                await asyncio.sleep(rng.uniform(0, 0.1))
                fleet.signal()
                check(fleet.end().exit_code == 0, "the exit code is not 0")
            counts = await queue.backend.count_tasks()
            check(not any(queue.phases.get("running") for queue in counts), "a stop left something running")
        with Fleet(folder, "-c", "50", "--log-level", "error") as fleet:
            results = [await queue.get_result(handle, timeout=DEADLINE) for handle in handles]
            fleet.signal()
            fleet.end()
        tasks = [await queue.get_task(handle) for handle in handles]
    check(all(result is not None and result.status == "success" for result in results), "something was lost")
    runs = Counter(name for name, _ in log_of(folder))
    check(all(task and (task.attempt, task.crashes) == (1, 0) for task in tasks), "an attempt was charged")
    interrupted = sum(count - 1 for count in runs.values())
    most = 8 * number
    print(
        f"{number} SIGTERMs under load: {len(handles):,} tasks all succeeded in one attempt each; "
        f"{interrupted} runs were interrupted at the end of the grace and repeated (at most {most} could be)"
    )
    check(interrupted <= most, "more was repeated than was interrupted")


async def poison(folder: Path, number: int) -> None:
    """Two tasks that end their process among many: those two are quarantined, all others succeed."""
    app = prepare(folder)
    for how, options in (("in children", {"executor": "process"}), ("in supervised workers", {})):
        async with TaskQueue(SQLiteBackend(folder / "tasks.db")) as queue:
            configured = queue.options(**options)  # type: ignore[arg-type]
            half = (number - 2) // 2
            good = await configured.enqueue_many(app.pid, [()] * half)
            bad = [await configured.enqueue(app.segfault), await configured.enqueue(app.leave)]
            good += await configured.enqueue_many(app.pid, [()] * (number - 2 - half))
            started = time.monotonic()
            with Fleet(folder, "--processes", "2", "--log-level", "error") as fleet:
                ends = [await queue.get_result(handle, timeout=DEADLINE) for handle in bad]
                others = [await queue.get_result(handle, timeout=DEADLINE) for handle in good]
                took = time.monotonic() - started
                fleet.signal()
                check(fleet.end().exit_code == 0, "the exit code is not 0")
        quarantined = sum(end is not None and end.reason == "quarantined" for end in ends)
        succeeded = sum(other is not None and other.status == "success" for other in others)
        print(f"{number:,} tasks {how}: {quarantined} quarantined, {succeeded} succeeded, in {took:.1f} s")
        check((quarantined, succeeded) == (2, number - 2), "not what was promised")


COMMANDS: dict[str, tuple[Callable[[Path, int], Coroutine[Any, Any, None]], int]] = {
    "kills": (kills, 50),
    "sigterm": (sigterm, 100),
    "poison": (poison, 1_000),
}


def main() -> None:
    command, number = COMMANDS[sys.argv[1]]
    if len(sys.argv) > 2:
        number = int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        asyncio.run(command(Path(folder), number))


if __name__ == "__main__":
    main()
