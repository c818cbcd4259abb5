"""Runs the blocks of one page in a folder of its own."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from configparser import ConfigParser
from pathlib import Path
from typing import Any, Self

from docs.blocks import ROOT, Block, blocks_of
from stores import SERVERS
from waiting import DEADLINE

__all__ = ["Page", "fits"]

_EXPORT = re.compile(r"export (\w+)=(.*)")
_PRINTS = re.compile(r"^\s*print\(.*\)  # (.+)$", re.MULTILINE)


class Page:
    """The state of a page while it runs: its folder, its notebook, its background processes."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self._words: dict[str, str] = {}
        self._notebook: subprocess.Popen[str] | None = None
        self._background: list[_Background] = []
        tools = folder / ".tools"
        tools.mkdir()
        _tool(tools / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        _tool(
            tools / "sitq", f"#!{sys.executable}\nimport sys\nfrom sitq.cli import main\nsys.exit(main())\n"
        )  # as pip
        self._env = {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "HOME": str(folder),
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
            **{name: value for name, value in os.environ.items() if name.startswith(("COVERAGE_", "SITQ_TEST_"))},
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._background:
            process.end(signal.SIGKILL)
        if self._notebook is not None:
            self._notebook.communicate()

    def run(self) -> None:
        """Run every block of the page; fail with its line."""
        for block in blocks_of(self.path):
            try:
                self._run(block)
            except AssertionError as error:
                raise AssertionError(f"{self.path.relative_to(ROOT)}:{block.line}: {error}") from None

    def _run(self, block: Block) -> None:
        if "not run" in block.marks:
            return
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._put_words(block.text))
        check = _CHECKS.get(block.kind)
        if check is not None:
            check(block.text)
        elif block.kind == "python" and block.file is None:
            self._python(block)
        elif block.kind == "console":
            self._console(block)
        elif block.kind == "let":
            word, _, command = block.text.removeprefix("let ").partition(" = ")
            self._words[word] = self._shell(command, 0).strip()
        elif block.kind == "server":
            name, _, url = block.text.removeprefix("server ").partition(" = ")
            self._words[url] = SERVERS[name]()
        elif block.kind in ("stop", "kill"):
            self._background.pop().end(signal.SIGINT if block.kind == "stop" else signal.SIGKILL)

    # --- Python -------------------------------------------------------------------------------------------------------

    def _python(self, block: Block) -> None:
        if self._notebook is None:
            self._notebook = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("notebook.py"))], cwd=self.folder, env=self._env,
                text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._notebook.stdin is not None
        assert self._notebook.stdout is not None
        self._notebook.stdin.write(json.dumps([self._put_words(block.text), f"{self.path.name}:{block.line}"]) + "\n")
        self._notebook.stdin.flush()
        line = self._notebook.stdout.readline()
        assert line, "the process ended"
        answer = json.loads(line)
        expected = block.marks.get("raises")
        if expected is None:
            assert answer["error"] is None, answer["error"][1]
        else:
            assert answer["error"] is not None, f"{expected} was not raised"
            assert expected in answer["error"][0], answer["error"][1]
        wanted = _PRINTS.findall(block.text)
        printed = answer["printed"].splitlines()
        assert not wanted or fits(wanted, printed), f"printed {printed}, not {wanted}"

    # --- commands -----------------------------------------------------------------------------------------------------

    def _console(self, block: Block) -> None:
        for command, wanted in _commands(block.text):
            if exported := _EXPORT.fullmatch(command):
                self._env[exported[1]] = self._shell(f"printf %s {exported[2]}", 0)
                continue
            if "background" in block.marks:
                self._background.append(_Background(self._put_words(command), self.folder, self._env, self._fits))
                self._background[-1].wait_for(wanted)
                continue
            output = self._shell(command, int(block.marks.get("exits") or 0))
            assert not wanted or self._fits(wanted, output.splitlines()), f"$ {command}\n{output}"

    def _shell(self, command: str, code: int) -> str:
        done = subprocess.run(
            ["bash", "-c", self._put_words(command)], cwd=self.folder, env=self._env, text=True, timeout=DEADLINE,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"$ {command}\n{done.stdout}exit code {done.returncode}"
        return done.stdout

    def _put_words(self, text: str) -> str:
        for word, value in self._words.items():
            text = text.replace(word, value)
        return text

    def _fits(self, wanted: Sequence[str], lines: Sequence[str]) -> bool:
        return fits([self._put_words(line) for line in wanted], lines)


class _Background:
    """A command that goes on running, and what it printed so far."""

    def __init__(
        self, command: str, folder: Path, env: dict[str, str], fit: Callable[[Sequence[str], Sequence[str]], bool]
    ) -> None:
        self._command = command
        self._fit = fit
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=folder, env=env, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._news.put(line.rstrip())
        self._news.put(None)

    def wait_for(self, wanted: Sequence[str]) -> None:
        """Return once the output is what is wanted."""
        lines: list[str] = []
        while wanted and not self._fit(wanted, lines):
            line = self._news.get(timeout=DEADLINE)
            assert line is not None, f"$ {self._command}\n" + "\n".join(lines)
            lines.append(line)

    def end(self, number: signal.Signals) -> None:
        """Send a signal to the process (SIGKILL: to its children, too) and wait for its end."""
        if number == signal.SIGKILL:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        self._process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        assert self._process.stdout is not None
        self._process.stdout.close()


def fits(wanted: Sequence[str], lines: Sequence[str]) -> bool:
    """Say whether lines of output are what a page shows; `…` stands for anything, alone for any lines."""
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == "…" else re.escape(line.rstrip()).replace("…", ".*") + " *\n" for line in wanted
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def _commands(text: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found and not found[-1][1] and found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0][:-1]}{line.lstrip()}", [])
        elif found:
            found[-1][1].append(line)
    return found


def _tool(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _ini(text: str) -> None:
    ConfigParser(strict=False, interpolation=None).read_string(text)


def _toml(text: str) -> None:
    import tomllib

    tomllib.loads(text)


_CHECKS: dict[str, Callable[[str], Any]] = {"ini": _ini, "toml": _toml, "json": json.loads}
