"""The inert format: JSON with a closed set of tagged types. Decoding it never imports, calls or builds from a name.

A value JSON does not know becomes an object with the single key `$` and the tag before its value; an ordinary dict that
is not keyed by plain strings, or that has the key `$`, is tagged too, so data can never pose as a tag.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sitq.exceptions import SerializationError, UnresolvableError
from sitq.functions import registered
from sitq.serialization import MAGIC, Call, Serializer, open_envelope

__all__ = ["JsonSerializer"]

_MAX_DEPTH = 64
_MAX_DIGITS = 1_000


class JsonSerializer(Serializer):
    """JSON: readable by other programs and harmless to decode.

    Takes None, bool, int, float, str, list, dict, and, tagged, tuple, set, frozenset, bytes, datetime, date, time,
    timedelta, Decimal and UUID. Functions travel by the name `@task` registered them under, and only a registered
    function is ever called. NaN and infinities are tagged; nesting over 64 levels and integers over 1,000 digits are
    refused.
    """

    format = b"j"

    def encode_call(
        self, task_id: str, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bytes:
        if registered(name) is not function:
            raise SerializationError(
                f"JSON carries functions by registered name and {name} is not registered: decorate it with @task "
                "at the top level of a module"
            )
        return self._encode([name, list(args), kwargs], f"the arguments of {name}")

    def decode_call(self, task_id: str, name: str, payload: bytes) -> Call:
        decoded = self._decode(payload)
        match decoded:
            case [str(stored_name), list(args), dict(kwargs)] if all(type(key) is str for key in kwargs):
                pass
            case _:
                raise SerializationError("this JSON payload is not a call")
        function = registered(stored_name)
        if function is None:
            raise UnresolvableError(
                f"no function is registered as {stored_name!r}: import the module that defines it in the worker"
            )
        return Call(function, tuple(args), kwargs)

    def encode_result(self, task_id: str, value: Any) -> bytes:
        return self._encode(value, f"the result of task {task_id}")

    def decode_result(self, task_id: str, payload: bytes) -> Any:
        return self._decode(payload)

    def _encode(self, value: Any, what: str) -> bytes:
        try:
            text = json.dumps(_to_plain(value, 0), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            return MAGIC + self.format + text.encode()
        except (TypeError, ValueError) as error:
            raise SerializationError(f"cannot write {what} as JSON: {error}") from error

    def _decode(self, payload: bytes) -> Any:
        body = open_envelope(payload, self.format)
        try:
            plain = json.loads(body, parse_constant=_refuse_constant, parse_int=_parse_int, object_pairs_hook=_unique)
            return _from_plain(plain, 0)
        except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise SerializationError(f"cannot read JSON: {error}") from error


def _to_plain(value: Any, depth: int) -> Any:
    """Return `value` in JSON's own types. Exact types only: a subclass would come back as something else."""
    kind = type(value)
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested over {_MAX_DEPTH} levels")
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        if value.bit_length() > _MAX_DIGITS * 3.3:
            raise ValueError(f"an integer of more than {_MAX_DIGITS} digits")
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$": ["float", repr(value)]}
    if kind is list:
        return [_to_plain(item, depth + 1) for item in value]
    if kind is dict:
        if "$" not in value and all(type(key) is str for key in value):
            return {key: _to_plain(item, depth + 1) for key, item in value.items()}
        return {"$": ["dict", [[_to_plain(k, depth + 1), _to_plain(v, depth + 1)] for k, v in value.items()]]}
    if kind in (tuple, set, frozenset):
        return {"$": [kind.__name__, [_to_plain(item, depth + 1) for item in value]]}
    if kind in _TO_TEXT:
        return {"$": [kind.__name__, _TO_TEXT[kind](value)]}
    raise TypeError(f"{kind.__name__} is not among its types; pass plain data, or use another serializer")


def _from_plain(plain: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH * 3:  # a tagged value nests three levels of JSON
        raise ValueError(f"nested over {_MAX_DEPTH} levels")
    if type(plain) is list:
        return [_from_plain(item, depth + 1) for item in plain]
    if type(plain) is not dict:
        return plain
    if "$" not in plain:
        return {key: _from_plain(item, depth + 1) for key, item in plain.items()}
    match plain["$"]:
        case [str(tag), body] if len(plain) == 1 and tag in _FROM_TAG:
            return _FROM_TAG[tag](_from_plain(body, depth + 1))
        case _:
            raise ValueError("an unknown tag")


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _parse_int(text: str) -> int:
    if len(text) > _MAX_DIGITS + 1:
        raise ValueError(f"an integer of more than {_MAX_DIGITS} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise ValueError("a key that occurs twice")
    return plain


_TO_TEXT: dict[type, Callable[[Any], Any]] = {
    bytes: lambda value: base64.b64encode(value).decode(),
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    Decimal: str,
    UUID: str,
}
_FROM_TAG: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "dict": dict,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "Decimal": Decimal,
    "UUID": UUID,
}
