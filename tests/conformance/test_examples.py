"""The conformance suite over the stores of the author's page."""

import runpy
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sitq.backends.base import Backend
from sitq.conformance import BackendSuite

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

from dict_store import DictStore  # noqa: E402 (the folder of the examples is no package)
from directory_store import DirectoryStore  # noqa: E402


class TestDictStore(BackendSuite):
    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return DictStore


class TestDirectoryStore(BackendSuite):
    persistent = True
    model_divisor = 10

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return partial(DirectoryStore, tmp_path / "store")

    def sabotage(self, backend: Backend) -> None:
        assert isinstance(backend, DirectoryStore)
        shutil.rmtree(backend.path)
        backend.path.write_text("a file where the folder was")


@pytest.mark.parametrize("name", ["dict_store.py", "directory_store.py"])
def test_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out.split() == ["5"]
