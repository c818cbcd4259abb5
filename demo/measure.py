"""The demo's queue and its tasks: parse a Python file and measure it."""

from __future__ import annotations

import ast
import os
import tokenize
from pathlib import Path
from typing import TypedDict

from sitq import Retry, TaskQueue, task

queue = TaskQueue(os.environ.get("SITQ_BACKEND", "sqlite:///demo.db"))


class Measures(TypedDict):
    """What is known of one file."""

    lines: int
    functions: int
    classes: int
    longest: int  # lines of the longest function


# A file that is no Python stays one. What is worth a retry is a bug of CPython 3.11: ast in two threads at once now and
# then raises SystemError, "recursion depth mismatch".
@task(queue="files", retry=Retry(max_attempts=5, base=0.05), give_up_on=SyntaxError)
def measure(path: str) -> Measures:
    """Parse one file. One that is no Python fails; its result says so."""
    with tokenize.open(path) as file:
        text = file.read()
    nodes = list(ast.walk(ast.parse(text, path)))
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return Measures(
        lines=text.count("\n"),
        functions=len(functions),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        longest=max(((node.end_lineno or 0) - node.lineno + 1 for node in functions), default=0),
    )


@task(queue="files")
def crash() -> None:
    """End the process that runs it, as a bug in a C extension would."""
    os._exit(1)


def library() -> list[str]:
    """Return every Python file of this machine's standard library."""
    return sorted(str(path) for path in Path(os.__file__).parent.rglob("*.py") if "site-packages" not in path.parts)
