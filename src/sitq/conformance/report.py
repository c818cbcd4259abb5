"""The suite's verdict in words: feature, capability, verdict, the level reached, and what may go wrong without more.

The target is `module:make_backend`. Called without arguments it gives a new, empty store each time. If it takes an
argument, it is given a folder, and opens the store that is kept there, or named after it: then the tests with several
processes and the crash kit run as well.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sitq.backends.base import Backend, Capability

if TYPE_CHECKING:
    import pytest

__all__ = ["TARGET", "Feature", "Verdicts", "make_of", "run", "takes_folder"]

TARGET = "SITQ_CONFORMANCE_TARGET"
MODEL = "test_the_store_does_what_the_model_says"

_LEVELS: tuple[tuple[str, Capability], ...] = (
    ("six methods", Capability(0)),
    ("order and delay", Capability.QUEUES | Capability.DEFER),
    ("survives its workers", Capability.LEASES | Capability.ATOMIC),
    ("operable", Capability.CANCEL | Capability.INSPECT | Capability.PAUSE),
    ("complete", Capability.UNIQUE | Capability.TRANSACTION),
)
_MISSING = {
    Capability.LEASES: "may strand: what a killed worker holds stays running until an operator queues it again",
    Capability.DEFER: "may forget: retries and later tasks wait inside a worker, and start over when it dies",
    Capability.ATOMIC: "may split: a crash in the middle leaves a part of a batch, or a result without its status",
}


@dataclass(frozen=True)
class Feature:
    """One thing the suite has looked at."""

    text: str
    capability: str
    verdict: str
    detail: str = ""


@dataclass
class Verdicts:
    """A pytest plugin that collects what the suite says."""

    _features: dict[tuple[str, str], Feature] = field(default_factory=dict)
    _claims: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def features(self) -> list[Feature]:
        """What was found, in the order of the suite."""
        return list(self._features.values())

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Remember what each test is about."""
        for item in items:
            test: Any = getattr(item, "function", None)
            needs = [c for c in getattr(test, "sitq_requires", ()) if isinstance(c, Capability)]
            lacks = [c for c in getattr(test, "sitq_without", ()) if isinstance(c, Capability)]
            words = " ".join(f"no {c.name}" for c in lacks) or " ".join(str(c.name) for c in dict.fromkeys(needs))
            first_line = (inspect.getdoc(test) or item.name).partition("\n")[0]
            if item.name == MODEL:  # it goes through whatever is claimed
                words = "the model"
            self._claims[item.nodeid] = (first_line, words or "the six")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Turn an outcome into a verdict."""
        claim = self._claims[report.nodeid]
        before = self._features.get(claim)
        if report.failed:
            self._features[claim] = Feature(
                *claim, "BROKEN", f"{report.nodeid.rpartition('::')[2]}: {_first_line(report)}"
            )
        elif report.skipped and before is None:
            self._features[claim] = Feature(*claim, _why_skipped(report))
        elif report.when == "call" and before is None:
            self._features[claim] = Feature(*claim, "kept")


def run(target: str) -> int:
    """Test the backend that `target` makes and print the verdict; return 0 only if every promise is kept."""
    try:
        import pytest
    except ImportError:
        print("the conformance suite needs pytest: pip install 'sitq-queue[conformance]'")  # noqa: T201
        return 2
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    make = make_of(target)
    with tempfile.TemporaryDirectory(prefix="sitq-") as empty:
        claimed = (make(Path(empty)) if takes_folder(make) else make()).capabilities
    verdicts = Verdicts()
    before = os.environ.get(TARGET)
    os.environ[TARGET] = target
    try:
        with tempfile.TemporaryDirectory(prefix="sitq-") as root:
            options = [
                str(Path(__file__).with_name("_target.py")), "-q", "--tb=short", "-p", "no:cacheprovider",
                "-p", "no:randomly", "-o", "asyncio_default_fixture_loop_scope=function",
                f"--rootdir={root}", "-c", os.devnull, "-o", "python_files=_target.py",
                f"--basetemp={Path(root, 'stores')}",
            ]  # fmt: skip
            with contextlib.redirect_stdout(io.StringIO()) as output:
                code = int(pytest.main(options, plugins=[verdicts]))
    finally:
        os.environ.pop(TARGET)
        if before is not None:
            os.environ[TARGET] = before
    for line in _lines(target, verdicts.features, claimed):
        print(line)  # noqa: T201 (the report)
    if not verdicts.features:
        print(output.getvalue(), "no test ran: pytest could not start", sep="\n")  # noqa: T201
        return 2
    return int(code != 0 or any(feature.verdict == "BROKEN" for feature in verdicts.features))


def make_of(target: str) -> Callable[..., Backend]:
    """Return the factory that `module:attribute` names."""
    module_name, _, name = target.partition(":")
    make: Any = importlib.import_module(module_name)
    for attribute in name.split("."):
        make = getattr(make, attribute)
    return make  # type: ignore[no-any-return]


def takes_folder(make: Callable[..., Backend]) -> bool:
    """Say whether a factory needs an argument: the folder that names its store."""
    parameters = inspect.signature(make).parameters.values()
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _lines(target: str, features: list[Feature], claimed: Capability) -> list[str]:
    width = max((len(feature.capability) for feature in features), default=0)
    lines = [f"{feature.verdict:<13}  {feature.capability:<{width}}  {feature.text}" for feature in features]
    broken = [feature for feature in features if feature.verdict == "BROKEN"]
    kept = sum(feature.verdict == "kept" for feature in features)
    rest = len(features) - kept - len(broken)
    lines += ["", f"{target}: {kept} kept, {len(broken)} broken, {rest} not claimed or not looked at"]
    lines.append(f"claims: {', '.join(str(c.name) for c in claimed) or 'the six methods'}")
    lines.append(f"level reached: {_level(claimed, broken)}")
    lines += [text for capability, text in _MISSING.items() if capability not in claimed]
    for feature in broken:
        lines += ["", f"BROKEN ({feature.capability}): {feature.text}", f"  {feature.detail}"]
    return lines


def _level(claimed: Capability, broken: list[Feature]) -> str:
    """Return the highest level all of whose capabilities are claimed, and all promises up to it kept.

    The model's story does not say whose promise it is: it counts only where no other test says so.
    """
    broken = [feature for feature in broken if feature.capability != "the model"] or broken
    hurt = {word for feature in broken for word in feature.capability.split()}
    reached = "none"
    for number, (name, needs) in enumerate(_LEVELS):
        if needs not in claimed or (number == 0 and broken and {"the", "no"} & hurt):
            break
        if any(str(capability.name) in hurt for capability in needs):
            break
        reached = f"{number} of {len(_LEVELS) - 1}, {name}"
    return reached


def _why_skipped(report: pytest.TestReport) -> str:
    """Tell what is not claimed from what was not looked at, because a hook of the suite is missing."""
    reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
    word = reason.rpartition(" ")[2]
    return "not claimed" if word in Capability.__members__ else "not looked at"


def _first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr).strip().partition("\n")[0]
