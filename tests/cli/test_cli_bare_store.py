"""What a store cannot do ends in one line, whatever the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_kit import Cli
from sitq.backends.base import Backend
from sitq.core import ReservedTask, Result, Task

__all__ = ["Six"]  # imported by the module BARE

BARE = """
from test_cli_bare_store import Six
store = Six()
"""


class Six(Backend):
    """The six methods of the contract, and one task."""

    async def enqueue_task(
        self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        raise AssertionError

    async def reserve_task(self, worker_id: str, max_tasks: int = 1) -> list[ReservedTask]:
        return []

    async def get_task(self, task_id: str) -> Task | None:
        return Task(id=task_id, name="shop:send") if task_id == "here" else None

    async def update_task_status(self, task_id: str, status: str) -> None:
        raise AssertionError

    async def store_result(self, task_id: str, result: Result) -> None:
        raise AssertionError

    async def get_result(self, task_id: str) -> Result | None:
        return None


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    name = f"bare_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(BARE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Cli(f"{name}:store")


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["status", "--json"], ["tasks"], ["retry", "here"], ["retry", "-q", "mail"], ["cancel", "here"],
     ["cancel", "-q", "mail"], ["pause", "mail"], ["resume", "mail"], ["purge"], ["purge", "-q", "mail", "-y"]],
    ids=" ".join,
)  # fmt: skip
def test_what_the_store_lacks_is_named_and_ends_with_3(bare: Cli, arguments: list[str]) -> None:
    answer = bare(*arguments, code=3)
    assert answer.out == ""
    assert answer.err.startswith("sitq: Six lacks the capability ")
    assert answer.err.count("\n") == 1


def test_what_six_methods_can_answer_is_answered(bare: Cli) -> None:
    assert "shop:send" in bare("show", "here").out
    assert bare("why", "here", "--json").data["why"][0]["code"] == "unknown"
    assert bare("show", "missing", code=1).err == "sitq: no task has the id 'missing'\n"
    assert "all but QUEUES" in bare("doctor").out
