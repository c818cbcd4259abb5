"""From `app:queue` to a queue, and what is said when there is none."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_kit import write_app
from sitq import MemoryBackend, SQLiteBackend, TaskQueue
from sitq.cli._target import TargetError, load_queue

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module into the current folder; its name is new for each test, since modules stay imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(name: str, source: str) -> str:
        unique = f"{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{unique}.py").write_text(source)
        return unique

    return write


@pytest.fixture
def app(write: Write, tmp_path: Path) -> str:
    name = write("app", "")
    write_app(tmp_path, name)
    return name


def refusal(target: str) -> str:
    with pytest.raises(TargetError) as caught:
        load_queue(target)
    return str(caught.value)


def test_a_queue_of_the_current_folder_is_found(app: str) -> None:
    queue = load_queue(f"{app}:queue")
    assert queue is sys.modules[app].queue
    assert load_queue(f"{app}:make_queue") is queue


def test_urls_and_backends_make_queues(write: Write) -> None:
    name = write(
        "stores", "from sitq import MemoryBackend\nstore = MemoryBackend()\nclass Here:\n    make = MemoryBackend"
    )
    assert isinstance(load_queue("sqlite:///x.db").backend, SQLiteBackend)
    assert load_queue(f"{name}:store").backend is sys.modules[name].store
    assert isinstance(load_queue(f"{name}:Here.make").backend, MemoryBackend)


def test_a_url_that_is_wrong_says_so(write: Write) -> None:
    assert "no backend for mongo://" in refusal("mongo://x")


def test_the_queue_behind_a_sync_one_is_taken(write: Write) -> None:
    name = write("plain", "from sitq import SyncTaskQueue\nqueue = SyncTaskQueue('sqlite:///tasks.db')\n")
    assert load_queue(f"{name}:queue") is sys.modules[name].queue.queue


def test_a_missing_module_says_what_is_here(app: str, tmp_path: Path) -> None:
    assert f"no module 'shop': in {tmp_path} there are {app}" in refusal("shop:queue")
    assert "without .py" in refusal(f"{app}.py:queue")


def test_an_empty_folder_says_so(write: Write) -> None:
    assert "has no Python modules" in refusal("shop:queue")


def test_a_module_that_is_no_package_says_so(app: str) -> None:
    assert f"{app} is a module, not a package" in refusal(f"{app}.tasks:queue")


def test_a_missing_attribute_names_the_queues_there_are(app: str) -> None:
    assert refusal(f"{app}:queues") == f"{app} has no 'queues': did you mean {app}:queue?"
    assert f"did you mean {app}:queue?" in refusal(app)
    assert f"did you mean {app}:queue?" in refusal(f"{app}.py")


def test_another_thing_than_a_queue_says_what_it_is(app: str) -> None:
    assert refusal(f"{app}:number") == f"{app}:number is int, not a TaskQueue: did you mean {app}:queue?"
    assert "needs arguments" in refusal(f"{app}:add")
    assert "returned coroutine, not a TaskQueue" in refusal(f"{app}:crowd")


def test_a_module_without_queues_says_so(write: Write) -> None:
    name = write("bare", "x = 1")
    assert f"there is no TaskQueue in {name}" in refusal(f"{name}:x")
    assert "write module:attribute" in refusal("")


def test_a_file_is_no_module(write: Write) -> None:
    assert "sqlite:///tasks.db" in refusal("tasks.db")


@pytest.mark.parametrize("source", ["import not_installed_anywhere", "1 / 0", "x = (", "raise SystemExit(3)"])
def test_a_module_that_raises_shows_the_user_their_own_lines(write: Write, source: str) -> None:
    name = write("broken", source)
    said = refusal(f"{name}:queue")
    assert name in said
    assert "importlib" not in said
    if "SystemExit" not in source:
        assert f"{name}.py" in said.splitlines()[-4] + said.splitlines()[-3] + said.splitlines()[-2]


def test_a_factory_that_raises_shows_the_user_their_own_lines(write: Write) -> None:
    name = write("factory", "def make():\n    raise KeyError('DATABASE')")
    assert "KeyError: 'DATABASE'" in refusal(f"{name}:make")


def test_a_queue_may_come_from_a_factory_with_defaults(write: Write) -> None:
    name = write("made", "from sitq import TaskQueue\ndef make(url='memory://'):\n    return TaskQueue(url)")
    assert isinstance(load_queue(f"{name}:make"), TaskQueue)
