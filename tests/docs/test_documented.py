"""Everything public is documented: names, methods with their signatures, options, events, settings, variables."""

import ast
import dataclasses
import importlib
import inspect
import re
from enum import Enum
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import sitq
from docs.blocks import ROOT
from sitq import EventName
from sitq.options import OptionValues

API = ROOT / "docs" / "reference" / "api"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(API.glob("*.md"))}
MODULES: dict[str, ModuleType] = {name: importlib.import_module(name) for name in PAGES}
CONFIGURED_BY = (
    "TaskQueue",
    "Worker",
    "SQLiteBackend",
    "MemoryBackend",
    "PostgresBackend",
    "RedisBackend",
    "SignedSerializer",
    "FaultyBackend",
)
MADE_FOR_OURSELVES = {"SITQ_SUPERVISED", "SITQ_CONFORMANCE_TARGET"}
INHERITED = ("Backend", "Serializer")


def classes() -> list[tuple[str, type]]:
    """Return each public class with the page it is on."""
    found = {}
    for page, module in MODULES.items():
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type):
                found[value] = page
    for name in sitq.__all__:
        value = getattr(sitq, name)
        if isinstance(value, type):
            found.setdefault(value, next((page for page, text in PAGES.items() if f"\n## {name}\n" in text), ""))
    return [(page, value) for value, page in found.items()]


def section(page: str, name: str) -> str:
    """Return what a page says under the heading of a name."""
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", PAGES[page], re.MULTILINE | re.DOTALL)
    assert found, f"docs/reference/api/{page}.md has no heading ## {name}"
    return found[1]


def heading(name: str, function: Any) -> str:
    """Return a method's heading as the page of the spec writes it."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1:]
    plain = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
    asynchronous = "async " if inspect.iscoroutinefunction(function) else ""
    return f"#### `{asynchronous}{name}{plain}`"


def methods(kind: type) -> list[str]:
    """Return the headings of a class's own public methods."""
    if any(base.__name__ in INHERITED for base in kind.__mro__[1:]):
        own = {name: value for name, value in vars(kind).items() if not hasattr(kind.__mro__[1], name)}
        own = {name: value for name, value in own.items() if not _is_of(name)}
    else:
        own = dict(vars(kind))
    found = []
    for name, value in own.items():
        function = value.__func__ if isinstance(value, classmethod) else value
        if not name.startswith("_") and isinstance(function, FunctionType):
            found.append(heading(name, function))
    return found


def _is_of(name: str) -> bool:
    """Say whether a method is one of the contract's, which has its own page."""
    from sitq.backends.base import Backend

    return hasattr(Backend, name) or hasattr(sitq.CloudpickleSerializer, name)


@pytest.mark.parametrize("name", sitq.__all__)
def test_each_name_of_sitq_has_a_heading(name: str) -> None:
    assert any(f"\n## {name}\n" in text for text in PAGES.values())


@pytest.mark.parametrize("page", PAGES)
def test_each_name_of_a_module_has_a_heading(page: str) -> None:
    missing = [name for name in MODULES[page].__all__ if f"\n## {name}\n" not in PAGES[page]]
    assert not missing


@pytest.mark.parametrize(("page", "kind"), classes(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_method_is_documented_with_its_signature(page: str, kind: type) -> None:
    if issubclass(kind, Enum) or kind.__name__ == "BackendSuite":
        return
    lines = section(page, kind.__name__).splitlines()
    assert [line for line in methods(kind) if line not in lines] == []


@pytest.mark.parametrize(("page", "kind"), classes(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_field_and_each_word_is_documented(page: str, kind: type) -> None:
    if issubclass(kind, Enum):
        words = [member.name if kind.__name__ in ("Capability", "Fault") else str(member.value) for member in kind]
    elif dataclasses.is_dataclass(kind):
        words = list(inspect.get_annotations(kind))  # a subclass's own
    else:
        words = [name for name, value in vars(kind).items() if isinstance(value, property) and name[0] != "_"]
    text = section(page, kind.__name__)
    assert [word for word in words if f"`{word}`" not in text] == []


@pytest.mark.parametrize(("page", "kind"), classes(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_setting_is_documented(page: str, kind: type) -> None:
    if kind.__name__ not in CONFIGURED_BY:
        return
    text = section(page, kind.__name__)
    for parameter in list(inspect.signature(kind).parameters.values()):
        line = re.search(rf"^- `{parameter.name}` \((.*?)\):", text, re.MULTILINE | re.DOTALL)
        assert line, parameter.name
        if parameter.default not in (inspect.Parameter.empty, *_WRITTEN):
            assert f"default={parameter.default}" in line[1].replace('"', ""), parameter.name


_WRITTEN = (0o600,)  # in octal on the page


@pytest.mark.parametrize("option", OptionValues.__annotations__)
def test_each_option_is_documented(option: str) -> None:
    assert re.search(rf"^\| `{option}` \|", section("sitq.queue", "Options"), re.MULTILINE)


def test_each_setting_of_the_decorator_is_documented() -> None:
    tree = ast.parse(inspect.getsource(MODULES["sitq.functions"]))
    overloads = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "task"]
    names = {argument.arg for node in overloads for argument in node.args.kwonlyargs}
    text = section("sitq.functions", "task")
    assert names >= {"retry", "retry_on"}
    assert [name for name in names if f"`{name}` (" not in text] == []


@pytest.mark.parametrize("event", EventName)
def test_each_event_is_documented(event: EventName) -> None:
    assert re.search(rf"^\| `{event}` \|", section("sitq.events", "EventName"), re.MULTILINE)


def test_each_environment_variable_is_documented() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(sitq.__file__).parent.rglob("*.py"))
    variables = set(re.findall(r"\bSITQ_[A-Z_]+[A-Z]\b", sources)) - MADE_FOR_OURSELVES
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    assert variables >= {"SITQ_BACKEND", "SITQ_SECRET_KEY"}
    assert [name for name in sorted(variables) if f"`{name}`" not in text] == []


def test_only_what_exists_has_a_signature() -> None:
    """The headings of methods on a page are methods of the classes on it."""
    for page, text in PAGES.items():
        known = {line for place, kind in classes() if place == page for line in methods(kind)}
        known |= {f"#### `{n}`" for place, k in classes() if place == page for n in vars(k) if n[0] != "_"}
        assert [line for line in re.findall(r"^#### .*", text, re.MULTILINE) if line not in known] == [], page
