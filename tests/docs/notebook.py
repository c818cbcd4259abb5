"""Runs blocks of Python in one process, as a notebook does: one JSON request a line, one JSON answer a line."""

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import sys
import traceback
from typing import Any

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what child processes print is not an answer
sys.path[0] = ""  # the page's folder, as at the prompt
namespace = sys.modules["__main__"].__dict__
namespace.pop("__file__", None)  # as at the prompt: functions travel by value


def run(runner: asyncio.Runner, source: str, name: str) -> dict[str, Any]:
    """Run one block; return what it printed and the error it ended with."""
    printed, error = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        try:
            code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if code.co_flags & inspect.CO_COROUTINE:

                async def block() -> None:
                    await eval(code, namespace)

                runner.run(block())
            else:
                exec(code, namespace)
        except BaseException as caught:  # noqa: BLE001 (the page says which it wants)
            error = [base.__name__ for base in type(caught).__mro__], traceback.format_exc()
    return {"printed": printed.getvalue(), "error": error}


def main() -> None:
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            answers.write(json.dumps(run(runner, *json.loads(line))) + "\n")
            answers.flush()


main()
