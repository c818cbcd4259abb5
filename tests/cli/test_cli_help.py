"""Every command explains itself on one screen, with an example, and in the reference."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli_kit import WIDTHS, Cli
from sitq.cli._app import app

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
SCREEN = 24


def options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (name for name in parameter.opts if name.startswith("-") and name != "--help")


def section(name: str) -> str:
    text = REFERENCE.read_text(encoding="utf-8")
    found = re.search(rf"^## `sitq {name}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference/cli.md has no section `sitq {name}`"
    return found[1]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_and_has_an_example(name: str, columns: int) -> None:
    out = Cli(None)(name, "--help", columns=columns).out
    assert len(out.splitlines()) <= SCREEN, out
    assert f"Example: sitq {name}" in out


def test_the_overview_has_each_command_in_full() -> None:
    out = Cli(None)("--help").out
    assert set(COMMANDS) == set(re.findall(r"^  (\w+)  ", out.partition("Commands:")[2], re.MULTILINE))
    assert "..." not in out.partition("Commands:")[2]
    assert "Example: sitq worker app:queue" in out
    assert "Exit codes: 0 done" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    text = section(name)
    assert f"$ sitq {name}" in text
    missing = [option for option in options(COMMANDS[name]) if not re.search(rf"`{option}[ `]", text)]
    assert not missing, f"{name}: {missing} not in docs/reference/cli.md"


@pytest.mark.parametrize("name", COMMANDS)
def test_only_options_that_exist_are_documented(name: str) -> None:
    documented = set(re.findall(r"^\| (.*?) \|", section(name), re.MULTILINE))
    named = {option for cell in documented for option in re.findall(r"`(--?[a-z-]+)", cell)}
    assert named <= set(options(COMMANDS[name]))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json(name: str) -> None:
    assert "--json" in set(options(COMMANDS[name]))


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("worker", "conformance")])
def test_without_a_store_each_command_asks_for_one(name: str) -> None:
    needed = {"show": ["x"], "why": ["x"], "pause": ["q"], "resume": ["q"], "retry": ["x"], "cancel": ["x"]}
    answer = Cli(None)(name, *needed.get(name, []), code=2)
    assert answer.err.startswith("sitq: which store?")


def test_the_reference_documents_the_options_of_all() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for option in ("--version", "--install-completion", "--show-completion", "SITQ_BACKEND"):
        assert option in text
