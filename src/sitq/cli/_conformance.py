"""`sitq conformance`: run the public suite against somebody's backend."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from sitq.cli._command import JsonOption, print_json, reporting, usage
from sitq.cli._target import load_module, put_folder_on_path

__all__ = ["conformance"]


def conformance(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="module:make_backend, a factory or a class.")],
    as_json: JsonOption = False,
) -> None:
    """Prove a backend: the six, and all that it claims.

    Example: sitq conformance mypackage:make_backend
    """
    put_folder_on_path()
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        usage(f"{target!r} names no backend: write module:attribute, such as mypackage:make_backend")
    with reporting():
        if not hasattr(load_module(module_name), attribute.partition(".")[0]):
            usage(f"{module_name} has no {attribute!r}")
    try:
        import pytest  # noqa: F401
    except ImportError:
        usage('the conformance suite needs pytest: pip install "sitq-queue[conformance]"')
    from sitq.conformance import report

    if not as_json:
        raise typer.Exit(report.run(target))
    with redirect_stdout(sys.stderr):
        code = report.run(target)
    print_json({"target": target, "passed": code == 0, "exit_code": code})
    raise typer.Exit(code)
