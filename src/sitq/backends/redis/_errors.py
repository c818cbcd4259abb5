"""What the errors of the driver and of the server mean, and what to do about them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

from redis import exceptions as driver
from redis.asyncio.sentinel import MasterNotFoundError

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
    "ASK": "the cluster is moving this namespace to another node",
    "MOVED": "its cluster sends from one node to another: wait until all nodes agree on who has which slots",
    "BUSY": "another script keeps it busy: find it with CLIENT LIST, end it with SCRIPT KILL",
    "UNKILLABLE": "another script keeps it busy and cannot be ended",
}
_PASSING = frozenset({"READONLY", "LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "ASK", "MOVED", "BUSY"})
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
    (driver.MovedError, "MOVED"),
    (driver.AskError, "ASK"),
)
_CUT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def word_of(error: BaseException) -> str:
    """Return the server's word for an error. The driver takes some of them off and gives them a class."""
    for kind, word in _BY_CLASS:
        if isinstance(error, kind):
            return word
    text = str(error)
    if "no permissions" in text or "can't run this command" in text:  # how a script is told
        return "NOPERM"
    return next((word for word in _WORD.findall(text) if word in _ADVICE), "")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _tls_advice(error: BaseException) -> str | None:
    """Say what is wrong with the TLS of a connection. To be cut is not."""
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                "its TLS certificate is not trusted: name the file of the authority that signed it by ssl_ca_certs, "
                "and the host as the certificate has it"
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, _CUT):
            if cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                return "it does not speak TLS on this port: write redis://, or the port that does"
            return "it does not agree to the TLS connection: look at the ssl_ options of the URL, and at its own"
        if isinstance(cause, FileNotFoundError):
            return "a file that the ssl_ options of the URL name is not there"
    return None


def is_passing(error: BaseException) -> bool:
    """Say whether the same may succeed in a moment: after a reconnect, a failover, a restart."""
    if isinstance(error, driver.AuthenticationError) or _tls_advice(error):
        return False
    if isinstance(error, (driver.ConnectionError, driver.TimeoutError, OSError)):
        return True
    return word_of(error) in _PASSING


def explain(error: BaseException, where: str) -> BackendError:
    """Return the `BackendError` for an error of driver or server, its cause attached."""
    advice = _ADVICE.get(word_of(error)) or _tls_advice(error)
    if advice is None and isinstance(error, MasterNotFoundError):
        tls = "speak TLS" if where.startswith("rediss") else "want TLS"
        advice = "no sentinel names a primary: check their addresses, the service, "
        advice += f"and whether they {tls}, or wait for the failover"
    if advice is None and isinstance(error, (driver.ConnectionError, OSError)):
        advice = "it cannot be reached: check that it runs and that the address is right"
        if where.startswith("rediss"):  # one that misses a certificate may just hang up
            advice += ", and whether it asks for a client's certificate (ssl_certfile)"
    if advice is None and isinstance(error, driver.TimeoutError):
        advice = "it did not answer in time: check the network, and that nothing keeps the server busy"
        if where.startswith("rediss"):  # one that knows nothing of it waits for the end of the line
            advice += ", and that it speaks TLS on this port"
    explained = BackendError(f"{where}: {advice or 'the server says'} ({error})")
    explained.__cause__ = error
    return explained
