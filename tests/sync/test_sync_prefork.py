"""A web server that loads the application once and forks its workers: gunicorn `--preload`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import sitq
from sitq import SQLiteBackend, SyncTaskQueue
from waiting import DEADLINE

APP = """
import os
from sitq import SyncTaskQueue

def add(a, b): return a + b

queue = SyncTaskQueue("sqlite:///tasks.db")
loaded = queue.enqueue(add, 0, 0)  # opens the store before the fork

def app(environ, start_response):
    body = f"{os.getpid()} {queue.enqueue(add, 1, 1)} {loaded}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@contextmanager
def gunicorn(folder: Path) -> Iterator[str]:
    """Run the app with two forked workers; give its address."""
    (folder / "app.py").write_text(APP, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(Path(sitq.__file__).parents[1])}
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers=2", "--threads=2", "--bind=127.0.0.1:0"]
    with subprocess.Popen([*command, "app:app"], cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            yield _address(server.stderr)
        finally:
            drain = threading.Thread(target=server.stderr.read)  # or it could block on a full pipe
            drain.start()
            server.terminate()
            server.wait(DEADLINE)
            drain.join()
    assert server.returncode == 0


def _address(lines: Iterator[str]) -> str:
    said = []
    for line in lines:
        said.append(line)
        found = re.search(r"Listening at: (\S+)", line)
        if found:
            return found[1]
    raise AssertionError("".join(said))


def get(address: str) -> list[str]:
    with urllib.request.urlopen(address, timeout=DEADLINE) as response:
        text: str = response.read().decode()
    return text.split()


def test_workers_forked_from_a_loaded_application_lose_nothing(tmp_path: Path) -> None:
    answers: list[list[str]] = []
    with gunicorn(tmp_path) as address, ThreadPoolExecutor(4) as pool:
        while len({answer[0] for answer in answers}) < 2:  # until both have answered
            answers += pool.map(get, [address] * 20)
    ids = {answer[1] for answer in answers}
    assert len(ids) == len(answers)
    assert len({answer[2] for answer in answers}) == 1
    with SyncTaskQueue(SQLiteBackend(tmp_path / "tasks.db")) as queue:
        assert all(queue.get_task(task_id) is not None for task_id in ids | {answers[0][2]})
