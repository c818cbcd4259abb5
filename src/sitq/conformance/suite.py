"""The suite as one class: every part of it, in the order in which an author meets them."""

from __future__ import annotations

from sitq.conformance.atomic import AtomicTests
from sitq.conformance.cancel import CancelTests
from sitq.conformance.crash import CrashTests
from sitq.conformance.defer import DeferTests
from sitq.conformance.degraded import DegradedTests
from sitq.conformance.expiry import ExpiryTests
from sitq.conformance.faults import FaultTests
from sitq.conformance.fencing import FencingTests
from sitq.conformance.inspection import InspectTests
from sitq.conformance.leases import LeasesTests
from sitq.conformance.model import ModelTests
from sitq.conformance.pause import PauseTests
from sitq.conformance.queues import QueuesTests
from sitq.conformance.reserving import ReservingTests
from sitq.conformance.six import SixTests
from sitq.conformance.transaction import TransactionTests
from sitq.conformance.unique import UniqueTests
from sitq.conformance.wakeup import WakeUpTests
from sitq.conformance.working import WorkingTests

__all__ = ["BackendSuite"]


class BackendSuite(
    SixTests,
    ReservingTests,
    WorkingTests,
    QueuesTests,
    DeferTests,
    LeasesTests,
    FencingTests,
    AtomicTests,
    UniqueTests,
    CancelTests,
    InspectTests,
    ExpiryTests,
    PauseTests,
    TransactionTests,
    WakeUpTests,
    DegradedTests,
    FaultTests,
    CrashTests,
    ModelTests,
):
    """Everything `sitq` asks of a backend. Subclass it and override the fixture `make_backend`."""
