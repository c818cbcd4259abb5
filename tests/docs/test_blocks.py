"""Every code block of the documentation runs, page by page; `blocks` says by which conventions."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from docs.blocks import ROOT, blocks_of, pages
from docs.page import Page, fits

REFERENCE = ROOT / "docs" / "reference" / "cli.md"  # its commands stand for any store: parsed here, run by tests/cli
RUN = [page for page in pages() if page != REFERENCE and blocks_of(page)]


def server_of(page: Path) -> str:
    """Return which server a page needs, for conftest to start it before the test."""
    return next((block.text.split()[1] for block in blocks_of(page) if block.kind == "server"), "")


@pytest.mark.parametrize(
    ("page", "backend"), [pytest.param(page, server_of(page), id=str(page.relative_to(ROOT))) for page in RUN]
)
def test_the_blocks_of_a_page_run(page: Path, backend: str, tmp_path: Path) -> None:
    with Page(page, tmp_path) as running:
        running.run()


def test_the_commands_of_the_reference_are_understood() -> None:
    import typer

    from sitq.cli._app import app

    group: Any = typer.main.get_command(app)
    lines = [line for block in blocks_of(REFERENCE) for line in block.text.splitlines() if line.startswith("$ sitq ")]
    assert lines
    for line in lines:
        name, *arguments = shlex.split(line)[2:]
        command = group.commands[name]
        assert command.make_context(name, arguments, resilient_parsing=False), line


def test_every_block_says_what_it_is() -> None:
    unnamed = [f"{page.relative_to(ROOT)}:{b.line}" for page in pages() for b in blocks_of(page) if not b.kind]
    assert not unnamed


def test_what_is_not_run_says_why() -> None:
    silent = [
        f"{page.relative_to(ROOT)}:{block.line}"
        for page in pages()
        for block in blocks_of(page)
        if block.marks.get("not run") == ""
    ]
    assert not silent


@pytest.mark.parametrize(
    "text",
    [
        "```python\n1 / 0\n```\n",
        "```python\nprint(4)  # 5\n```\n",
        "<!-- raises: KeyError -->\n```python\n1 / 0\n```\n",
        "<!-- raises: KeyError -->\n```python\npass\n```\n",
        "```python\nraise SystemExit(0)\n```\n",
        "```console\n$ false\n```\n",
        "```console\n$ echo yes\nno\n```\n",
        "<!-- background -->\n```console\n$ echo yes\nno\n```\n",
        "<!-- exits: 3 -->\n```console\n$ true\n```\n",
        "<!-- let 1234 = echo 4321 -->\n```console\n$ echo 1234\n1234 \n```\n\n```console\n$ echo 1234\n5\n```\n",
        "```python\n# app.py\nx = 1\n```\n```console\n$ python -c 'import app; assert app.x == 2'\n```\n",
        "<!-- hidden\nx = 1\n-->\n```python\nassert x == 2\n```\n",
        '```json\n{"a": 1\n```\n',
    ],
)
def test_a_page_that_is_wrong_fails(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    page = tmp_path / "wrong.md"
    page.write_text(text)
    monkeypatch.setattr("docs.page.ROOT", tmp_path)
    with Page(page, tmp_path / "folder") as running, pytest.raises((AssertionError, ValueError)):
        running.run()


def test_an_ellipsis_fits_anything() -> None:
    assert fits(["a … c", "…", "z"], ["a b c", "d", "e", "z  "])
    assert fits(["…"], [])
    assert not fits(["a"], ["a", "b"])
    assert not fits(["a … c"], ["a", "c"])


def test_the_promise_is_the_same_wherever_it_stands() -> None:
    quotes = [
        re.sub(r"\s*\n> ?", " ", found[0])
        for page in pages()
        for found in re.finditer(r"^> An id returned by.*(?:\n>.*)*", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(set(quotes)) == 1, quotes
    assert quotes[0].endswith("A worker that lost its lease can change nothing any more.")


def test_the_page_of_the_spec_is_kept() -> None:
    """Every name, signature and default of the page the project was born from."""
    text = (ROOT / "docs" / "reference" / "api" / "sitq.backends.base.md").read_text(encoding="utf-8")
    for line in SPEC.strip().splitlines():
        assert line in text.splitlines(), line


SPEC = """
# sitq.backends.base
Backend base class for task storage.
.. automodule:: sitq.backends.base
## Backend
.. autoclass:: Backend
Abstract base class for implementing custom backends.
### Abstract Methods
#### `async enqueue_task(task, function, args, kwargs)`
#### `async reserve_task(worker_id, max_tasks=1)`
#### `async get_task(task_id)`
#### `async update_task_status(task_id, status)`
#### `async store_result(task_id, result)`
#### `async get_result(task_id)`
- `task` ([`Task`](sitq.core.md)): Task to store
- `function` (Callable): Function to execute
- `args` (tuple): Positional arguments
- `kwargs` (dict): Keyword arguments
- [`BackendError`](sitq.exceptions.md): If task cannot be stored
- `worker_id` (str): Worker identifier
- `max_tasks` (int, default=1): Maximum tasks to reserve
- [`Task`](sitq.core.md) or `None`: Task object, or None if not found
- `status` (str): New status ("queued", "running", "completed", "failed")
- `result` ([`Result`](sitq.core.md)): Result to store
- [`Result`](sitq.core.md) or `None`: Result object, or None if not found
## Implementing a Custom Backend
## See Also
- [`SQLiteBackend`](sitq.backends.sqlite.md) - SQLite backend implementation
"""
