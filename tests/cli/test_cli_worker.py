"""`sitq worker`, as real processes."""

import asyncio
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_kit import SOURCES, Cli, SitqProcess, write_app
from sitq import MemoryBackend, TaskQueue, Worker
from sitq.cli import _serve
from sitq.cli._reload import changed, python_files, worker_command
from sitq.cli._serve import serve
from sitq.core import Task
from sitq.exceptions import UnsupportedError


class App:
    """A folder with an app in it, and this process as its producer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_app(folder)
        self._spec = importlib.util.spec_from_file_location("app", folder / "app.py")

    def _in_queue(self, work: Callable[[TaskQueue, Any], Coroutine[Any, Any, Any]]) -> Any:
        """Do something with the queue, under the name the worker knows the functions by."""
        assert self._spec is not None
        assert self._spec.loader is not None
        module = importlib.util.module_from_spec(self._spec)
        sys.modules["app"] = module
        try:
            self._spec.loader.exec_module(module)

            async def opened() -> Any:
                async with TaskQueue(f"sqlite:///{self.folder / 'tasks.db'}") as queue:
                    return await work(queue, module)

            return asyncio.run(opened())
        finally:
            del sys.modules["app"]

    def enqueue(self, name: str, *args: Any, queue: str = "default", retry: int | None = None) -> str:
        """Enqueue a function of the app."""
        return str(
            self._in_queue(lambda q, app: q.options(queue=queue, retry=retry).enqueue(getattr(app, name), *args))
        )

    def result(self, task_id: str) -> Any:
        """Wait for a value."""
        return self._in_queue(lambda queue, _: queue.get_result(task_id, timeout=60)).value

    def task(self, task_id: str) -> Task:
        """Look at a task."""
        task: Task = self._in_queue(lambda queue, _: queue.get_task(task_id))
        return task


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


def test_it_says_what_runs_and_logs_each_task(app: App) -> None:
    with SitqProcess(app.folder, "worker", "app:queue", "--queues", "default,mail:2") as worker:
        worker.wait_for("sitq 0.")
        assert worker.wait_for("store").split() == ["store", str(app.folder / "tasks.db")]
        assert "full" in worker.wait_for("durability")
        assert "default (10 at once), mail (2 at once)" in worker.wait_for("queues")
        worker.wait_for("started")
        task_id = app.enqueue("add", 1, 2)
        line = worker.wait_for(" done in ")
        assert f"INFO    app:add …{task_id[-8:]} done in" in line
        app.enqueue("boom", queue="mail")
        assert "ERROR   app:boom" in worker.wait_for("failed after")
        worker.signal()
        answer = worker.end()
    assert (answer.exit_code, answer.out) == (0, "")
    assert 'raise ValueError("no")' in answer.err


def test_json_lines_have_all_of_it(app: App) -> None:
    app.enqueue("add", 1, 2)
    app.enqueue("boom")
    with SitqProcess(app.folder, "worker", "app:make_queue", "--json") as worker:
        worker.wait_for('"event": "failed"')
        worker.signal(signal.SIGINT)
        answer = worker.end()
    assert answer.exit_code == 0
    lines = [json.loads(line) for line in answer.err.splitlines()]
    events = {line.get("event"): line for line in lines}
    assert events["starting"]["store"] == str(app.folder / "tasks.db")
    assert events["succeeded"]["task_name"] == "app:add"
    assert "ValueError: no" in events["failed"]["traceback"]
    assert all(line["pid"] and line["time"] and line["level"] for line in lines)


def test_sigterm_lets_a_running_task_finish(app: App) -> None:
    task_id = app.enqueue("until", "go")
    with SitqProcess(app.folder, "worker", "app:queue", "--log-level", "debug") as worker:
        worker.wait_for("app:until")
        worker.signal()
        (app.folder / "go").touch()
        assert worker.end().exit_code == 0
    assert app.task(task_id).status == "completed"


@pytest.mark.parametrize("queues", [[], ["--queues", "default,mail:1"]], ids=["one worker", "two workers"])
def test_a_second_sigterm_gives_the_task_back(app: App, queues: list[str]) -> None:
    task_id = app.enqueue("until", "never")
    with SitqProcess(app.folder, "worker", "app:queue", "--grace", "9999", "--log-level", "debug", *queues) as worker:
        worker.wait_for("app:until")
        worker.signal()
        worker.wait_for("stopping: what runs has 9999 s to finish")
        while not worker.ended(0.02):  # and more of them change nothing
            worker.signal()
        assert worker.end().exit_code == 0
    task = app.task(task_id)
    assert (task.status, task.attempt) == ("queued", 0)


def test_a_capped_queue_runs_no_more_than_its_cap(app: App) -> None:
    capped = [app.enqueue("crowd", queue="mail") for _ in range(6)]
    free = [app.enqueue("crowd", queue="default") for _ in range(6)]
    with SitqProcess(app.folder, "worker", "app:queue", "--queues", "mail:1", "--log-level", "error") as worker:
        assert [app.result(task_id) for task_id in capped] == [1] * 6
        worker.signal()
        assert worker.end().err == ""
    with SitqProcess(app.folder, "worker", "app:queue") as worker:
        assert max(app.result(task_id) for task_id in free) > 1
        worker.signal()
        worker.end()


def test_a_queue_nobody_serves_is_warned_of(app: App) -> None:
    app.enqueue("add", 1, 2, queue="mail")
    with SitqProcess(app.folder, "worker", "app:queue", "-q", "default") as worker:
        line = worker.wait_for("no worker serves it")
        assert "1 task is ready in the queue 'mail'" in line
        assert line.endswith("start one with --queues mail")
        worker.signal()
        worker.end()


async def test_the_warning_comes_once_and_again_after_it_was_over(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskQueue(MemoryBackend()) as queue:
        own = [_serve.Share(("default",), 1)]

        async def look(warned: set[str]) -> set[str]:
            return await _serve._look(queue, own, warned)

        await queue.enqueue(print)  # in the worker's own queue, though the store has not heard of the worker yet
        assert await look(set()) == set()
        task_id = await queue.options(queue="mail").enqueue(print)
        assert await look(await look(set())) == {"mail"}
        assert len(caplog.messages) == 1
        await queue.cancel(task_id)
        assert await look({"mail"}) == set()


def test_reload_starts_again_when_the_code_changes(app: App) -> None:
    with SitqProcess(app.folder, "worker", "app:queue", "--reload") as worker:
        worker.wait_for("started")
        (app.folder / "app.py").write_text("x = (")
        worker.wait_for("app.py changed: starting again")
        worker.wait_for("the worker ended with 2; it starts again when a file changes")
        write_app(app.folder)
        worker.wait_for("started")
        worker.signal()
        assert worker.end().exit_code == 0


def test_reload_sees_new_changed_and_deleted_files(tmp_path: Path) -> None:
    for name in ("a.py", "b.txt", ".hidden/c.py", "venv/d.py", "pkg/e.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before = python_files(tmp_path)
    assert sorted(path.name for path in before) == ["a.py", "e.py"]
    assert changed(before, before) == []
    assert changed(before, {}) == sorted(before)
    assert changed(before, {**before, tmp_path / "a.py": 0, tmp_path / "f.py": 1}) == [
        tmp_path / "a.py",
        tmp_path / "f.py",
    ]
    assert worker_command(["worker", "app:queue", "--reload"])[1:] == ["-m", "sitq", "worker", "app:queue"]


# --- called wrongly ---------------------------------------------------------------------------------------------------


def test_a_wrong_app_ends_with_2_and_one_line(tmp_path: Path) -> None:
    write_app(tmp_path)
    with SitqProcess(tmp_path, "worker", "app:queues") as worker:
        answer = worker.end()
    assert (answer.exit_code, answer.out) == (2, "")
    assert answer.err == "sitq: app has no 'queues': did you mean app:queue?"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which queue?"),
        (["sqlite:///x.db", "--queues", "a:none"], "cannot read the queue 'a:none'"),
        (["sqlite:///x.db", "--concurrency", "0"], "--concurrency"),
        (["sqlite:///x.db", "--log-format", "xml"], "xml"),
        (["mongo://x"], "no backend for mongo://"),
    ],
)
def test_what_makes_no_sense_ends_with_2(arguments: list[str], words: str) -> None:
    answer = Cli(None)("worker", *arguments, code=2)
    assert words in answer.err
    assert "Traceback" not in answer.err


def test_uvloop_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert 'pip install "sitq-queue[uvloop]"' in Cli(None)("worker", "sqlite:///x.db", "--uvloop", code=2).err


def test_a_store_that_cannot_be_opened_ends_with_3(tmp_path: Path) -> None:
    with SitqProcess(tmp_path, "worker", "sqlite:///missing/x.db") as worker:
        answer = worker.end()
    assert answer.exit_code == 3
    assert "create it, or choose another path" in answer.err
    assert "Traceback" not in answer.err


@pytest.fixture
def signals() -> Iterator[None]:
    """Put back what the command takes over for good."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
async def test_one_worker_that_cannot_start_stops_the_others() -> None:
    class Bare(MemoryBackend):
        async def connect(self) -> None:
            self.capabilities = MemoryBackend.capabilities & ~type(self.capabilities).QUEUES

    with pytest.raises(UnsupportedError, match="QUEUES"):
        await serve([Worker(Bare()), Worker(Bare(), queues=["a"])])


# --- around it --------------------------------------------------------------------------------------------------------


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['typer'] = None; from sitq.cli import main; main()"
    with SitqProcess(tmp_path, python=("-c", code)) as process:
        answer = process.end()
    assert (answer.exit_code, answer.out) == (2, "")
    assert answer.err == 'the command line needs typer: pip install "sitq-queue[cli]"'


def test_the_version_is_printed(tmp_path: Path) -> None:
    import sitq

    assert Cli(None)("--version").out == f"{sitq.__version__}\n"
    with SitqProcess(tmp_path, "--version") as process:
        assert process.end().out == f"{sitq.__version__}\n"


def test_importing_sitq_imports_nothing_of_the_command_line() -> None:
    code = "import sys, sitq; print([name for name in sys.modules if name.startswith(('sitq.cli', 'typer', 'rich'))])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SOURCES)}
    )
    assert done.stdout == "[]\n"


def test_processes_are_supervised_and_end_together(app: App) -> None:
    with SitqProcess(app.folder, "worker", "app:queue", "--processes", "2", "--queues", "default,mail:1") as worker:
        assert worker.wait_for("replaced when").split() == ["processes", "2,", "each", "replaced", "when", "it", "ends"]
        for _ in range(4):
            worker.wait_for("started")
        assert app.result(app.enqueue("add", 1, 2)) == 3
        worker.signal()
        answer = worker.end()
    assert answer.exit_code == 0
    assert answer.err.count("stopped") == 4


def test_a_wrong_app_is_said_once_for_all_processes(app: App) -> None:
    with SitqProcess(app.folder, "worker", "app:queues", "--processes", "2") as worker:
        answer = worker.end()
    assert (answer.exit_code, answer.err) == (2, "sitq: app has no 'queues': did you mean app:queue?")
