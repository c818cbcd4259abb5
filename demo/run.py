"""The demo: every file of the standard library becomes a task; one worker process is killed; nothing is lost."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from measure import crash, library, measure, queue
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sitq import Phase, Result
from sitq.core import TaskFilter

ENDED = (Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED, Phase.QUARANTINED)
IDS = Path("demo.db.ids")
console = Console(record=True, highlight=False)


def main() -> int:
    """Run the demo in the current folder."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="worker processes (2)")
    parser.add_argument("--fresh", action="store_true", help="forget an unfinished run instead of resuming it")
    parser.add_argument("--stop-after", type=int, metavar="N", help="stop in the middle; run again to resume")
    parser.add_argument("--picture", metavar="FILE", help="also draw what the terminal shows, as SVG")
    arguments = parser.parse_args()
    status = asyncio.run(demo(arguments))
    if arguments.picture:
        picture = console.export_svg(title="scripts/demo")
        # Without its fonts from elsewhere: a README loads nothing.
        Path(arguments.picture).write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))
    return status


async def demo(arguments: argparse.Namespace) -> int:
    """Enqueue what is not there yet, work, and report."""
    if arguments.fresh:
        forget()
    async with queue:
        known = recall()
        done = await ended()
        if known and done < len(known):
            console.print(f"Resuming: {done:,} of {len(known):,} tasks are done (--fresh starts anew).")
        else:
            known = await enqueue()
            remember(known)
        started = time.monotonic()
        before = await ended()
        killed = await work(arguments, len(known))
        seconds = time.monotonic() - started
        if arguments.stop_after:
            console.print(f"Stopped with {await ended():,} of {len(known):,} done. Run scripts/demo again to resume.")
            return 0
        results = [await queue.get_result(task_id) for task_id in known]
        return report(results, killed, seconds, len(known) - before)


def forget() -> None:
    """Delete the queue and what is known of it."""
    for name in Path().glob("demo.db*"):
        name.unlink()


def recall() -> list[str]:
    """Return the ids of an earlier run."""
    return IDS.read_text().split() if IDS.exists() else []


def remember(ids: list[str]) -> None:
    """Keep the ids for a run that resumes this one."""
    IDS.write_text("\n".join(ids))


async def enqueue() -> list[str]:
    """Store one task a file, and one that crashes its process."""
    while await queue.backend.purge(TaskFilter(), limit=500):
        pass
    files = library()
    started = time.monotonic()
    handles = await queue.enqueue_many(measure, [(path,) for path in files])
    seconds = time.monotonic() - started
    console.print(f"Enqueued {len(files):,} files of the standard library in {seconds:.2f} s, and a task that crashes.")
    return [*map(str, handles), str(await queue.enqueue(crash))]


async def work(arguments: argparse.Namespace, total: int) -> list[str]:
    """Start `sitq worker`, watch it, and kill one of its processes in the middle; return the tasks it held."""
    command = [sys.executable, "-m", "sitq", "worker", "measure:queue", "--processes", str(arguments.processes)]
    log = Path("demo.log").open("w")  # noqa: SIM115, ASYNC230 (the child's for as long as it lives)
    workers = subprocess.Popen([*command, "--concurrency", "4"], stdout=log, stderr=log)  # noqa: ASYNC220, S603 (our own command)
    killed: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("measuring", total=total)
            while (done := await ended()) < (arguments.stop_after or total):
                progress.update(bar, completed=done)
                if not killed and done > total * 0.4 and not arguments.stop_after:
                    killed = await kill_one(progress)
                if workers.poll() is not None:
                    raise SystemExit(f"the workers ended with {workers.returncode}: see demo.log")
                await asyncio.sleep(0.05)
            progress.update(bar, completed=done)
    finally:
        workers.terminate()
        workers.wait()
        log.close()
    return killed


async def kill_one(progress: Progress) -> list[str]:
    """Kill a worker process that holds tasks, as the kernel does when memory runs out; return what it held."""
    for worker in await queue.backend.list_workers():
        held = await queue.backend.list_tasks(TaskFilter(worker_id=worker.id, phase=Phase.RUNNING))
        if held:
            os.kill(worker.pid, signal.SIGKILL)
            said = f"[bold red]kill -9[/] {worker.pid}: a worker with {len(held)} running tasks is gone."
            progress.console.print(said)
            return [task.id for task in held]
    return []


async def ended() -> int:
    """Count the tasks that need nothing more."""
    return sum(counts.phases.get(phase, 0) for counts in await queue.backend.count_tasks() for phase in ENDED)


def report(results: list[Result | None], killed: Iterable[str], seconds: float, ran: int) -> int:
    """Print what came out; return 1 if a task got lost."""
    missing = sum(result is None for result in results)
    found = [result for result in results if result is not None]
    good = [result for result in found if result.status == "success"]
    table = Table(title="What the workers found")
    for heading in ("files", "lines", "functions", "classes", "longest function"):
        table.add_column(heading, justify="right")
    sums = [sum(result.value[key] for result in good) for key in ("lines", "functions", "classes")]
    longest = max((result.value["longest"] for result in good), default=0)
    table.add_row(f"{len(good):,}", *(f"{number:,}" for number in sums), f"{longest:,} lines")
    console.print(table)
    again = [result for result in found if result.attempts > 1]
    held = [result for result in found if result.task_id in set(killed)]
    quarantined = [result for result in found if result.reason == "quarantined"]
    failed = [result for result in found if result.status == "failed" and result not in quarantined]
    console.print(f"{ran:,} tasks in {seconds:.1f} s: {ran / seconds:,.0f} a second.")
    console.print(f"{len(again)} ran more than once, among them {len(held)} that the killed worker held.")
    console.print(f"{len(failed)} failed: odd files on purpose, such as {failed[0].error if failed else 'none'}")
    for result in quarantined:
        console.print(f"1 quarantined after {result.attempts} runs: the task that ends its process each time.")
    verdict = f"[bold red]{missing} are lost[/]" if missing else "[bold green]none is lost[/]"
    console.print(f"{len(results):,} enqueued, {len(found):,} ended: {verdict}.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
