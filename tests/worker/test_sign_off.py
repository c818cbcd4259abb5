"""A worker that has stopped is no longer listed as alive."""

import pytest

from sitq import BackendError, MemoryBackend, TaskQueue, Worker


async def test_a_stopped_worker_is_forgotten_at_once(queue: TaskQueue) -> None:
    async with Worker(queue):
        task_id = await queue.enqueue(len, "abc")
        assert await task_id.result(timeout=60) == 3
        assert len(await queue.backend.list_workers()) == 1
    assert await queue.backend.list_workers() == []


async def test_a_store_that_fails_at_the_last_moment_fails_no_stop(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(MemoryBackend):
        async def abandon_worker(self, worker_id: str) -> int:
            raise BackendError("gone")

    await Worker(Fails()).run_until_empty()
    assert "cannot sign off (BackendError: gone): seen as alive for 30 s" in caplog.text
