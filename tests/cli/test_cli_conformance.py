"""`sitq conformance`: hands the target to the suite's own report."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

import sitq.conformance
from cli_kit import Cli


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A module `mystore` in the current folder, and a report that finds one failure in any "broken" backend."""
    asked: list[str] = []

    def run(target: str) -> int:
        asked.append(target)
        typer.echo("the report")
        return int("broken" in target)

    report = ModuleType("sitq.conformance.report")
    report.__dict__["run"] = run
    monkeypatch.setitem(sys.modules, "sitq.conformance.report", report)
    monkeypatch.setattr(sitq.conformance, "report", report, raising=False)
    (tmp_path / "mystore.py").write_text("from sitq import MemoryBackend\nmake_backend = broken = MemoryBackend\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mystore", raising=False)
    return asked


def test_the_report_and_its_verdict_are_the_commands(calls: list[str]) -> None:
    assert Cli(None)("conformance", "mystore:make_backend").out == "the report\n"
    assert Cli(None)("conformance", "mystore:broken", code=1).out == "the report\n"
    assert calls == ["mystore:make_backend", "mystore:broken"]


def test_json_is_alone_on_stdout(calls: list[str]) -> None:
    answer = Cli(None)("conformance", "mystore:broken", "--json", code=1)
    assert answer.data == {"target": "mystore:broken", "passed": False, "exit_code": 1}
    assert answer.err == "the report\n"


@pytest.mark.parametrize("target", ["mystore", ":x", "mystore:", "mystore:other", "nowhere:make_backend"])
def test_a_target_that_leads_nowhere_is_a_usage_error(calls: list[str], target: str) -> None:
    assert Cli(None)("conformance", target, code=2).err.startswith("sitq: ")
    assert calls == []


def test_without_the_extra_it_says_what_to_install(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    answer = Cli(None)("conformance", "mystore:make_backend", code=2)
    assert 'pip install "sitq-queue[conformance]"' in answer.err
