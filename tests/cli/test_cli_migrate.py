"""`sitq migrate`: on a store whose schema somebody else brings up to date, and on one that does it itself."""

import pytest

from cli_kit import Cli
from servers.postgres import fresh_postgres, postgres_url


@pytest.fixture(scope="module", autouse=True)
def server() -> str:
    return postgres_url()


def test_it_migrates_once(server: str) -> None:
    cli = Cli(f"{server}?schema={fresh_postgres()()._settings.schema}")
    assert cli("migrate").out == "Migrated to version 1.\nMigrated to version 2.\nMigrated to version 3.\n"
    assert cli("migrate").out == "Nothing to do.\n"
    assert cli("migrate", "--json").data == []


def test_sql_is_printed_and_not_run(server: str) -> None:
    cli = Cli(f"{server}?schema={fresh_postgres()()._settings.schema}")
    assert "CREATE TABLE" in cli("migrate", "--sql", columns=140).out
    assert [step["version"] for step in cli("migrate", "--sql", "--json").data] == [1, 2, 3]
    assert cli("migrate").out == "Migrated to version 1.\nMigrated to version 2.\nMigrated to version 3.\n"


def test_other_stores_need_nothing() -> None:
    assert "Nothing to do" in Cli("memory://")("migrate", columns=140).out
    assert Cli("memory://")("migrate", "--json").data == []


def test_a_server_that_is_not_there() -> None:
    assert "does not answer" in Cli("postgresql://127.0.0.1:1/nowhere")("migrate", code=3).err
