"""The commands of `sitq`."""

from __future__ import annotations

from typing import Annotated

import typer

import sitq
from sitq.cli._conformance import conformance
from sitq.cli._doctor import doctor
from sitq.cli._explain import why
from sitq.cli._migrate import migrate
from sitq.cli._operate import cancel, pause, purge, resume, retry
from sitq.cli._status import status
from sitq.cli._tasks import show, tasks
from sitq.cli._worker import worker

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(sitq.__version__)
        raise typer.Exit


@app.callback()
def sitq_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run and operate a sitq task queue.

    \b
    Example: sitq worker app:queue
    Exit codes: 0 done, 1 failed or not found, 2 called wrongly, 3 store trouble.
    """  # noqa: D301 (typer's mark for lines to keep)


for _command in (worker, status, tasks, show, why, retry, cancel, pause, resume, purge, doctor, migrate, conformance):
    app.command()(_command)
