"""The command line, `sitq`: parse, call, print. What is decided is decided elsewhere, in pure functions."""

from __future__ import annotations

import io
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Without typer and rich, say what to install and exit with 2."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        print(f'the command line needs {error.name}: pip install "sitq-queue[cli]"', file=sys.stderr)
        sys.exit(2)
    from sitq.cli._app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    app(prog_name="sitq")
