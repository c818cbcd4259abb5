"""The code blocks of a page, and what comments in front of them say about how to run them.

Fenced blocks of a page run from top to bottom, in one folder:

- `python` blocks run in one process, as in a notebook: names stay, and `await` works at the top level. What a line
  `print(…)  # 5` prints must be 5. A block whose first line is a comment with a file's name (`# app.py`) is written to
  that file instead.
- `console` blocks run each line after `$ `. Below it stands the output; `…` fits anything, on a line of its own any
  lines. A command that fails fails the page.
- Other blocks with a name of a file as their first comment are written to it; `toml`, `ini` and `json` must parse.

An HTML comment in front of a block changes that:

- `<!-- hidden` (code) `-->` runs code readers do not see: Python, or commands when it begins with `$ `.
- `<!-- not run: why -->`, `<!-- raises: ValidationError -->`, `<!-- exits: 1 -->`.
- `<!-- background -->`: the command goes on running once it has printed what is below it. `<!-- stop -->` interrupts
  it as Ctrl+C does, `<!-- kill -->` kills it; they stand alone, where that happens.
- `export NAME=value` in a `console` block holds for the commands after it, background or not.
- `<!-- let 9f3c21ab = command -->`: from here on, `9f3c21ab` stands for what the command prints, in code and output.
- `<!-- server postgres = postgresql://shop@db/shop -->`: from here on, this URL leads to a server of the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ROOT", "Block", "blocks_of", "pages"]

ROOT = Path(__file__).parents[2]
_DIRECTIVES = ("hidden", "not run", "raises", "exits", "background", "stop", "kill", "let ", "server ")
_FENCE = re.compile(r"^( *)(`{3,})([^`\n]*)\n(.*?)^\1\2`* *$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- *(.*?)-->", re.DOTALL)
_FILE = re.compile(r"^(?:#|//|--) ([\w/.-]+\.\w+|Dockerfile|crontab)\n")


@dataclass(frozen=True)
class Block:
    """A piece of a page that is run: code, a command session, or a directive that stands alone."""

    kind: str
    text: str
    line: int
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str | None:
        """The file this block is to be written to, if it is one."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def pages() -> list[Path]:
    """Return every page of the documentation."""
    return [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    return list(_blocks(page.read_text(encoding="utf-8")))


def _blocks(text: str) -> Iterator[Block]:
    fences = list(_FENCE.finditer(text))
    inside = [(fence.start(), fence.end()) for fence in fences]
    comments = [c for c in _COMMENT.finditer(text) if not any(start < c.start() < end for start, end in inside)]
    marks: dict[str, str] = {}
    for found in sorted([*fences, *comments], key=re.Match.start):
        line = text.count("\n", 0, found.start()) + 1
        if found.re is _FENCE:
            indent, _, info, body = found.groups()
            code = re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
            yield Block((info.split() or [""])[0], code, line, marks)
            marks = {}
            continue
        comment = found[1].strip("\n ")
        if not comment.startswith(_DIRECTIVES):
            continue
        if comment.startswith("hidden"):
            code = comment.removeprefix("hidden").lstrip("\n") + "\n"
            yield Block("console" if code.startswith("$ ") else "python", code, line, marks)
            marks = {}
        elif comment in ("stop", "kill") or comment.startswith(("let ", "server ")):
            yield Block(comment.split()[0], comment, line)
        else:
            name, _, value = comment.partition(":")
            marks = {**marks, name: value.strip()}
