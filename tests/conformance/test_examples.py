"""The conformance suite over the stores of the author's page."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sitq.backends.base import Backend
from sitq.conformance import BackendSuite

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

from dict_store import DictStore  # noqa: E402 (the folder of the examples is no package)


class TestDictStore(BackendSuite):
    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return DictStore


@pytest.mark.parametrize("name", ["dict_store.py"])
def test_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out.split() == ["5"]
