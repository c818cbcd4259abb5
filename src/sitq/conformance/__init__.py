"""A public test suite that proves a store: what its six methods must do, and every capability it claims.

A backend's author subclasses `BackendSuite` in a test file and says how to make the backend:

    import functools
    import pytest
    from mypackage import MyBackend
    from sitq.conformance import BackendSuite

    class TestMyBackend(BackendSuite):
        @pytest.fixture
        def make_backend(self, tmp_path):
            return functools.partial(MyBackend, tmp_path / "store")

It needs `sitq-queue[conformance]` (pytest, pytest-asyncio, hypothesis) and works in any asyncio mode. Tests are skipped
by claim only: a capability the backend does not claim is replaced by a test of how queue and worker do without it.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sitq.conformance._kit import requires, without
    from sitq.conformance.suite import BackendSuite

__all__ = ["BackendSuite", "requires", "without"]


def __getattr__(name: str) -> Any:
    """Import the suite when it is asked for: the processes it starts, and the report, need no pytest to be loaded."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest
    except ImportError as error:
        raise ImportError("the conformance suite needs pytest: pip install 'sitq-queue[conformance]'") from error
    pytest.register_assert_rewrite(*(module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")))
    from sitq.conformance import _kit, suite

    return getattr(suite if name == "BackendSuite" else _kit, name)
