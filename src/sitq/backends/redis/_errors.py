"""What the errors of the driver and of the server mean, and what to do about them."""

from __future__ import annotations

import re

from redis import exceptions as driver

from sitq.exceptions import BackendError

__all__ = ["explain", "is_passing", "word_of"]

_ADVICE = {
    "OOM": "it is at its maxmemory and takes nothing new: raise maxmemory, or let workers finish and purge",
    "MISCONF": "it refuses writes because it cannot save to disk: look at its log and its disk",
    "READONLY": "it is a replica: give the address of the primary, or wait for the failover",
    "LOADING": "it is still loading its data from disk: try again when it is done",
    "NOREPLICAS": "it has too few replicas to take writes (min-replicas-to-write): bring them back",
    "NOPERM": "the user of the URL may not do this: the page on Redis lists the permissions that are needed",
    "NOAUTH": "it wants a password: redis://user:password@host:6379/0",
    "WRONGPASS": "user or password are wrong",
    "WRONGTYPE": "a key of this namespace holds something else: choose another namespace",
    "CLUSTERDOWN": "the cluster has no node for this namespace at the moment",
    "MASTERDOWN": "it is a replica that has lost its primary",
    "TRYAGAIN": "the cluster is moving this namespace to another node",
    "BUSY": "another script keeps it busy: find it with CLIENT LIST, end it with SCRIPT KILL",
    "UNKILLABLE": "another script keeps it busy and cannot be ended",
}
_PASSING = frozenset({"READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY"})
_WORD = re.compile(r"(?:^|[\s-])([A-Z]{3,})\b")
_BY_CLASS = (
    (driver.AuthenticationError, "WRONGPASS"),
    (driver.BusyLoadingError, "LOADING"),
    (driver.ReadOnlyError, "READONLY"),
    (driver.OutOfMemoryError, "OOM"),
    (driver.NoPermissionError, "NOPERM"),
    (driver.MasterDownError, "MASTERDOWN"),
    (driver.ClusterDownError, "CLUSTERDOWN"),
    (driver.TryAgainError, "TRYAGAIN"),
)


def word_of(error: BaseException) -> str:
    """Return the server's word for an error. The driver takes some of them off and gives them a class."""
    for kind, word in _BY_CLASS:
        if isinstance(error, kind):
            return word
    text = str(error)
    if "no permissions" in text or "can't run this command" in text:  # how a script is told
        return "NOPERM"
    return next((word for word in _WORD.findall(text) if word in _ADVICE), "")


def is_passing(error: BaseException) -> bool:
    """Say whether the same may succeed in a moment: after a reconnect, a failover, a restart."""
    if isinstance(error, driver.AuthenticationError):
        return False
    if isinstance(error, (driver.ConnectionError, driver.TimeoutError, OSError)):
        return True
    return word_of(error) in _PASSING


def explain(error: BaseException, where: str) -> BackendError:
    """Return the `BackendError` for an error of driver or server, its cause attached."""
    advice = _ADVICE.get(word_of(error))
    if advice is None and isinstance(error, (driver.ConnectionError, OSError)):
        advice = "it cannot be reached: check that it runs and that the address is right"
    if advice is None and isinstance(error, driver.TimeoutError):
        advice = "it did not answer in time: check the network, and that nothing keeps the server busy"
    explained = BackendError(f"{where}: {advice or 'the server says'} ({error})")
    explained.__cause__ = error
    return explained
