"""`sitq conformance` in words: what is kept, what is broken, and what may go wrong without more."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"

BROKEN = """
from dict_store import DictStore

class Broken(DictStore):
    async def enqueue_task(self, task, function, args, kwargs):
        self.tasks.pop(task.id, None)
        await super().enqueue_task(task, function, args, kwargs)
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


def test_a_broken_promise(tmp_path: Path) -> None:
    (tmp_path / "mystore.py").write_text(BROKEN)
    answer = report("mystore:Broken", tmp_path)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert "BROKEN (the six): Storing the id of a running or finished task again" in answer.stdout
    assert "level reached: none" in answer.stdout
