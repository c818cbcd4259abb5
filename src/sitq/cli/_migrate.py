"""`sitq migrate`: bring the schema of a store up to date, or print the SQL that does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Protocol, runtime_checkable

import typer

from sitq.backends.base import Backend
from sitq.backends.urls import backend_from_url
from sitq.cli._command import BackendOption, JsonOption, print_json, queue_of, reporting

__all__ = ["migrate"]


class Step(Protocol):
    """One step of a schema."""

    @property
    def version(self) -> int:
        """The version it leads to."""

    @property
    def sql(self) -> str:
        """What it does."""


@runtime_checkable
class Migrates(Protocol):
    """A store whose schema somebody else may have to bring up to date."""

    def migrations(self) -> Sequence[Step]:
        """Return all steps from nothing to the current version."""

    async def migrate(self) -> Sequence[Step]:
        """Take the steps that are left, and return them."""


def migrate(
    backend: BackendOption = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL of all versions, and do nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the schema of a store up to date.

    Example: sitq migrate --backend postgresql://owner@host/app

    Needs a role that may create tables. Workers of the version before go on.
    """
    with reporting():
        store = _store(backend)
        if not isinstance(store, Migrates):
            steps: Sequence[Step] = ()
            said = "Nothing to do: this store brings itself up to date when it is opened."
        elif sql:
            steps = store.migrations()
            said = "\n".join(f"-- version {step.version}\n{step.sql}" for step in steps)
        else:
            steps = asyncio.run(_migrated(store))
            said = "\n".join(f"Migrated to version {step.version}." for step in steps) or "Nothing to do."
    if as_json:
        print_json([{"version": step.version, "sql": step.sql} for step in steps])
    else:
        print(said)


def _store(backend: str | None) -> Backend:
    """Return the store; a URL needs no key to sign with here."""
    return backend_from_url(backend) if backend and "://" in backend else queue_of(backend).backend


async def _migrated(store: Migrates) -> Sequence[Step]:
    return await store.migrate()
