"""How calls and values become bytes and come back: the interface, the envelope, and pickle.

An envelope is `sitq`, a version byte, a format byte and the body. `CloudpickleSerializer` takes nearly anything and
trusts whoever can write to the store. `sitq.JsonSerializer` is inert: decoding it never runs code.
`sitq.SignedSerializer` wraps another one and refuses what was not signed with a known key.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from sitq.exceptions import SerializationError, UnresolvableError
from sitq.functions import is_importable, resolve

__all__ = ["MAGIC", "Call", "CloudpickleSerializer", "Serializer", "open_envelope"]

MAGIC = b"sitq\x01"


class Call(NamedTuple):
    """A function with its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Serializer(ABC):
    """Turns calls and values into bytes and back. Stateless as far as its callers can see, and safe in any thread.

    All four methods raise `SerializationError`. `decode_call` raises `UnresolvableError` when the only trouble is a
    name that leads nowhere in this process, so that the worker waits for a deploy instead of failing the task.
    """

    format: bytes
    """One byte that marks this format in the envelope."""

    @abstractmethod
    def encode_call(
        self, task_id: str, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bytes:
        """Encode a call; `name` is the function's `module:qualname`."""

    @abstractmethod
    def decode_call(self, task_id: str, name: str, payload: bytes) -> Call:
        """Decode a call."""

    @abstractmethod
    def encode_result(self, task_id: str, value: Any) -> bytes:
        """Encode what a task returned."""

    @abstractmethod
    def decode_result(self, task_id: str, payload: bytes) -> Any:
        """Decode what a task returned."""

    def recognizes(self, payload: bytes) -> bool:
        """Say whether an envelope is of this serializer's format; it may still fail to decode."""
        return payload.startswith(MAGIC + self.format)


def open_envelope(payload: bytes, wanted: bytes) -> bytes:
    """Return the body of an envelope of the format `wanted`. Raises `SerializationError` for anything else."""
    header = len(MAGIC)
    if payload[: header + 1] == MAGIC + wanted:
        return payload[header + 1 :]
    if payload[: header - 1] != MAGIC[:-1] or len(payload) <= header:
        raise SerializationError("this is no payload of sitq: was the store written by something else?")
    if payload[header - 1 : header] != MAGIC[-1:]:
        raise SerializationError(f"a payload of version {payload[header - 1]}: upgrade sitq here to read it")
    found = payload[header : header + 1].decode("ascii", "replace")
    raise SerializationError(
        f"a payload of format {found!r}, where {wanted.decode()!r} was expected: "
        "give queue and worker the same serializer"
    )


class CloudpickleSerializer(Serializer):
    """Pickle, with cloudpickle for what plain pickle cannot take: lambdas, closures, classes of the started script.

    Functions that can be imported travel by name. Decoding runs code by design: use it where whoever can write to the
    store may run code in the workers.
    """

    format = b"p"

    def encode_call(
        self, task_id: str, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bytes:
        if is_importable(name, function):
            return self._encode((name, args, kwargs), f"the arguments of {name}")
        return self._encode((function, args, kwargs), f"the call of {name}", by_value=True)

    def decode_call(self, task_id: str, name: str, payload: bytes) -> Call:
        reference, args, kwargs = self._decode(payload)
        return Call(resolve(reference) if type(reference) is str else reference, args, kwargs)

    def encode_result(self, task_id: str, value: Any) -> bytes:
        return self._encode(value, f"the result of task {task_id}")

    def decode_result(self, task_id: str, payload: bytes) -> Any:
        return self._decode(payload)

    def _encode(self, value: Any, what: str, by_value: bool = False) -> bytes:
        """Plain pickle where it will do, for it is far faster; but `__main__` means nothing elsewhere."""
        if not by_value:
            try:
                body = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
            except Exception:  # noqa: BLE001 (whatever the objects' own code raises, cloudpickle has the last word)
                body = b"__main__"
            if b"__main__" not in body:
                return MAGIC + self.format + body
        import cloudpickle  # 15 ms of import, for those who need it

        try:
            return MAGIC + self.format + bytes(cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        except Exception as error:
            raise SerializationError(
                f"cannot pickle {what} ({type(error).__name__}: {error}): pass plain data, such as an id or a path"
            ) from error

    def _decode(self, payload: bytes) -> Any:
        body = open_envelope(payload, self.format)
        try:
            return pickle.loads(body)  # noqa: S301 (documented: this format trusts the store)
        except (ImportError, AttributeError) as error:
            raise UnresolvableError(
                f"cannot unpickle ({type(error).__name__}: {error}): deploy the code that defines it"
            ) from error
        except Exception as error:
            raise SerializationError(f"cannot unpickle ({type(error).__name__}: {error})") from error
