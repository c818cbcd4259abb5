"""Group commit on an event loop: batches, answers, and operations that nobody waits for."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sitq._commit_task import CommitTask
from sitq._group_commit import Lane, Operation
from sitq.exceptions import BackendError


class Recorder:
    """Doubles numbers, one batch at a time, each as long as its gate is closed; refuses what is negative."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def execute(self, batch: Sequence[Operation[Any]]) -> list[Any]:
        works = [operation.work for operation in batch]
        self.batches.append(works)
        await self.gate.wait()
        if any(work < 0 for work in works):
            raise ValueError("negative")
        return [KeyError("none") if work == 0 else work * 2 for work in works]

    def is_about_data(self, error: Exception) -> bool:
        return isinstance(error, ValueError)

    def explain(self, error: Exception) -> BackendError:
        return BackendError(f"explained: {error}")


def double(commits: CommitTask, work: Any, heard: list[Any] | None = None) -> asyncio.Task[Any]:
    unheard = None if heard is None else heard.append
    return asyncio.create_task(commits.run(Operation(Lane.WORK, work, unheard=unheard)))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_waits_shares_a_batch() -> None:
    recorder = Recorder()
    commits = CommitTask(recorder, "commits")
    assert await asyncio.gather(*(double(commits, n) for n in (1, 2, 3))) == [2, 4, 6]
    recorder.gate.clear()
    first = double(commits, 4)
    await turns()
    later = [double(commits, n) for n in (5, 6)]
    await turns()
    recorder.gate.set()
    assert await asyncio.gather(first, *later) == [8, 10, 12]
    assert recorder.batches == [[1, 2, 3], [4], [5, 6]]


async def test_one_callers_error_is_not_anothers() -> None:
    recorder = Recorder()
    commits = CommitTask(recorder, "commits")
    good, bad, missing = await asyncio.gather(*(double(commits, n) for n in (1, -1, 0)), return_exceptions=True)
    assert good == 2
    assert isinstance(bad, BackendError)
    assert isinstance(missing, KeyError)
    assert recorder.batches == [[1, -1, 0], [1], [-1], [0]]


async def test_cancelled_before_its_batch_is_not_done() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    commits = CommitTask(recorder, "commits")
    first, second = double(commits, 1), None
    await turns()
    second = double(commits, 2)
    await turns()
    second.cancel()
    await turns()
    recorder.gate.set()
    assert await first == 2
    await commits.close()
    assert recorder.batches == [[1]]


async def test_a_result_nobody_waits_for_is_handed_back() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    commits, unheard = CommitTask(recorder, "commits"), list[Any]()
    asking = double(commits, 1, unheard)
    await turns()
    asking.cancel()
    await turns()
    recorder.gate.set()
    await commits.close()
    await turns()
    assert unheard == [2]


async def test_close_finishes_what_waits_and_refuses_the_rest() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    commits = CommitTask(recorder, "commits")
    asking = double(commits, 1)
    await turns()
    closing = asyncio.create_task(commits.close())
    await turns()
    assert not closing.done()
    recorder.gate.set()
    await closing
    assert await asking == 2
    with pytest.raises(BackendError, match="closed"):
        await double(commits, 2)
    commits.post(Operation(Lane.WORK, 3))
    assert recorder.batches == [[1]]


async def test_posted_work_is_done_and_its_error_is_nobodys() -> None:
    recorder = Recorder()
    commits = CommitTask(recorder, "commits")
    commits.post(Operation(Lane.WORK, 7))
    commits.post(Operation(Lane.WORK, -7))
    await commits.close()
    assert recorder.batches == [[7, -7], [7], [-7]]


async def test_interrupted_means_unknown() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    commits = CommitTask(recorder, "commits")
    asking = double(commits, 1)
    await turns()
    (serving,) = [task for task in asyncio.all_tasks() if task.get_name() == "commits"]
    serving.cancel()
    with pytest.raises(BackendError, match="not known"):
        await asking
