"""`sitq conformance` in words: what is kept, what is broken, and what may go wrong without more."""

import os
import re
import subprocess
import sys
from pathlib import Path

from sitq.backends.base import Capability
from sitq.conformance.report import Feature, _level

EXAMPLES = Path(__file__).parents[2] / "examples"

BROKEN = """
from dict_store import DictStore

class Broken(DictStore):
    async def enqueue_task(self, task, function, args, kwargs):
        self.tasks.pop(task.id, None)
        await super().enqueue_task(task, function, args, kwargs)
"""


FORGETFUL = """
from sitq import MemoryBackend

class Forgetful(MemoryBackend):
    async def cancel_tasks(self, task_ids):
        answers = await super().cancel_tasks(task_ids)
        for task_id in task_ids:
            if task_id in self._store.rows:
                self._store.rows[task_id].task.reason = None
        return answers
"""


def report(target: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from sitq.conformance.report import run; sys.exit(run({target!r}))"
    path = os.pathsep.join([str(folder), str(EXAMPLES), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "SITQ_MODEL_STEPS": "100"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=150,
        check=False,
    )


def test_a_sound_store(tmp_path: Path) -> None:
    answer = report("dict_store:DictStore", tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "level reached: 0 of 4, six methods" in answer.stdout
    assert "may strand" in answer.stdout
    assert "0 broken" in answer.stdout
    assert re.search(r"^kept +the model +Whatever producers", answer.stdout, re.MULTILINE)
    assert answer.stderr == ""


def test_a_broken_promise(tmp_path: Path) -> None:
    (tmp_path / "mystore.py").write_text(BROKEN)
    answer = report("mystore:Broken", tmp_path)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert "BROKEN (the six): Storing the id of a running or finished task again" in answer.stdout
    assert "level reached: none" in answer.stdout


def test_what_the_model_finds_is_not_laid_on_the_six(tmp_path: Path) -> None:
    (tmp_path / "mystore.py").write_text(FORGETFUL)
    answer = report("mystore:Forgetful", tmp_path)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert "BROKEN (CANCEL): A queued task becomes failed(cancelled)." in answer.stdout
    assert "BROKEN (the six)" not in answer.stdout
    assert "level reached: 2 of 4, survives its workers" in answer.stdout


def test_the_model_counts_where_nothing_else_is_broken() -> None:
    def reached(*hurt: str) -> str:
        return _level(~Capability(0), [Feature("text", words, "BROKEN") for words in hurt])

    assert reached().startswith("4")
    assert reached("the model") == reached("the six") == "none"
    assert reached("the model", "PAUSE").startswith("2")
