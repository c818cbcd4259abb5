"""What `sitq conformance` runs: the suite over the backend named on the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sitq.backends.base import Backend
from sitq.conformance import BackendSuite
from sitq.conformance.report import TARGET, make_of, takes_folder

_make = make_of(os.environ[TARGET])


class TestTarget(BackendSuite):
    """The backend named by the environment."""

    persistent = takes_folder(_make)

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        """Give the factory, bound to a new folder if it takes one."""
        return partial(_make, tmp_path) if self.persistent else _make
