"""The envelope and its three formats: round trips, refusals, and what never decodes."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sitq import (
    CloudpickleSerializer,
    JsonSerializer,
    MemoryBackend,
    SerializationError,
    SignatureError,
    SignedSerializer,
    TaskQueue,
    UnresolvableError,
    ValidationError,
    Worker,
    task,
)
from sitq.serialization import MAGIC, Serializer

KEY = b"k" * 32


@task
async def greet(name: str, *, loud: bool = False) -> str:
    return name.upper() if loud else name


def not_registered() -> None: ...


ALL = {
    "pickle": CloudpickleSerializer(),
    "json": JsonSerializer(),
    "signed pickle": SignedSerializer(keys={"a": KEY}),
    "signed json": SignedSerializer(JsonSerializer(), {"a": KEY}),
}
every_format = pytest.mark.parametrize("serializer", ALL.values(), ids=ALL.keys())


@every_format
def test_calls_and_values_come_back(serializer: Serializer) -> None:
    payload = serializer.encode_call("id", "test_serialization:greet", greet, ("ann",), {"loud": True})
    assert payload.startswith(MAGIC)
    assert serializer.recognizes(payload)
    call = serializer.decode_call("id", "test_serialization:greet", payload)
    assert call.function is greet
    assert (call.args, call.kwargs) == (("ann",), {"loud": True})
    value = {"a": [1, 2.5, None, "x", True]}
    assert serializer.decode_result("id", serializer.encode_result("id", value)) == value


@every_format
async def test_every_format_runs_tasks(serializer: Serializer) -> None:
    async with TaskQueue(MemoryBackend(), serializer) as queue, Worker(queue):
        assert await (await queue.enqueue(greet, "ann", loud=True)).result(timeout=60) == "ANN"


@every_format
@given(garbage=st.binary(max_size=200))
def test_garbage_is_an_error_of_the_family(serializer: Serializer, garbage: bytes) -> None:
    for payload in (garbage, MAGIC + garbage, MAGIC + serializer.format + garbage):
        if payload.startswith(MAGIC + b"p"):
            continue  # pickle trusts the store
        with pytest.raises(SerializationError):
            serializer.decode_call("id", "name", payload)


def test_lambdas_and_closures_travel_by_value() -> None:
    serializer, n = CloudpickleSerializer(), 3
    payload = serializer.encode_call("id", "x:<lambda>", lambda x: x + n, (1,), {})
    function, args, _ = serializer.decode_call("id", "", payload)
    assert function(*args) == 4


def test_another_format_is_named() -> None:
    payload = JsonSerializer().encode_result("id", 1)
    assert not CloudpickleSerializer().recognizes(payload)
    with pytest.raises(SerializationError, match=r"format 'j', where 'p' was expected.*same serializer"):
        CloudpickleSerializer().decode_result("id", payload)


def test_a_missing_module_is_unresolvable_and_broken_bytes_are_not() -> None:
    serializer = CloudpickleSerializer()
    gone = MAGIC + b"p" + b"\x80\x05\x8c\x08no_where\x8c\x01f\x93."
    with pytest.raises(UnresolvableError, match="deploy"):
        serializer.decode_call("id", "", gone)
    with pytest.raises(UnresolvableError, match="no_where"):
        serializer.decode_call("id", "", serializer._encode(("no_where:f", (), {}), "x"))
    with pytest.raises(SerializationError) as caught:
        serializer.decode_call("id", "", MAGIC + b"p" + b"\x80\x05K")
    assert not isinstance(caught.value, UnresolvableError)


# --- JSON -------------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(fold=0)),  # ISO 8601 knows no fold
    st.dates(),
    st.times().map(lambda clock: clock.replace(fold=0)),
    st.timedeltas(),
)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text() | st.just("$"), inner, max_size=3),
        st.dictionaries(st.integers(), inner, max_size=2),
    ),
    max_leaves=15,
)


@given(plain)
def test_json_brings_back_the_same_types(value: Any) -> None:
    serializer = JsonSerializer()
    back = serializer.decode_result("id", serializer.encode_result("id", value))
    assert back == value
    assert repr(back) == repr(value)


def test_json_has_its_tagged_types() -> None:
    serializer = JsonSerializer()
    value = [
        {1, 2},
        frozenset({"a"}),
        (1,),
        float("inf"),
        datetime(2026, 1, 1, tzinfo=UTC),
        date(2026, 1, 1),
        time(1, 2),
        timedelta(days=1, microseconds=5),
        Decimal("1.10"),
        UUID(int=5),
        b"\x00\xff",
    ]
    assert serializer.decode_result("id", serializer.encode_result("id", value)) == value


class Odd(int):
    pass


@pytest.mark.parametrize(
    "value",
    [object(), Odd(3), 10**2000, [not_registered], {"a": {object(): 1}}],
    ids=["object", "subclass", "huge", "function", "key"],
)
def test_json_refuses_what_it_would_change(value: Any) -> None:
    with pytest.raises(SerializationError, match="as JSON"):
        JsonSerializer().encode_result("id", value)


def test_json_refuses_deep_nesting() -> None:
    value: Any = 1
    for _ in range(100):
        value = [value]
    with pytest.raises(SerializationError, match="nested"):
        JsonSerializer().encode_result("id", value)
    with pytest.raises(SerializationError):
        JsonSerializer().decode_result("id", MAGIC + b"j" + b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "1" * 2000,
        '{"a":1,"a":2}',
        '{"$":["os.system","ls"]}',
        '{"$":["tuple",1]}',
        '{"$":1,"b":2}',
        "[",
        '{"$":["float","x"]}',
    ],
)
def test_json_refuses_what_it_did_not_write(text: str) -> None:
    with pytest.raises(SerializationError):
        JsonSerializer().decode_result("id", MAGIC + b"j" + text.encode())


@pytest.mark.parametrize("call", [1, [], ["a", [], {"$": ["dict", [[1, 2]]]}], [1, [], {}], ["a", {}, {}]], ids=str)
def test_json_takes_calls_only(call: Any) -> None:
    with pytest.raises(SerializationError, match="not a call"):
        JsonSerializer().decode_call("id", "", MAGIC + b"j" + json.dumps(call).encode())


def test_json_calls_registered_functions_only() -> None:
    serializer = JsonSerializer()
    with pytest.raises(SerializationError, match="decorate it with @task"):
        serializer.encode_call("id", "test_serialization:not_registered", not_registered, (), {})
    for name in ("os:system", "test_serialization:not_registered"):
        with pytest.raises(UnresolvableError, match="no function is registered"):
            serializer.decode_call("id", name, MAGIC + b"j" + json.dumps([name, [], {}]).encode())


# --- signed -----------------------------------------------------------------------------------------------------------


def test_a_payload_counts_only_for_its_task_name_purpose_and_key() -> None:
    serializer = SignedSerializer(keys={"a": KEY})
    call = serializer.encode_call("id", "test_serialization:greet", greet, ("x",), {})
    result = serializer.encode_result("id", 1)
    with pytest.raises(SignatureError):
        serializer.decode_call("other", "test_serialization:greet", call)
    with pytest.raises(SignatureError):
        serializer.decode_call("id", "test_serialization:other", call)
    with pytest.raises(SignatureError):
        serializer.decode_result("id", call)
    with pytest.raises(SignatureError):
        serializer.decode_result("other", result)
    with pytest.raises(SignatureError, match="not known here"):
        SignedSerializer(keys={"b": KEY}).decode_result("id", result)
    with pytest.raises(SignatureError, match="another secret"):
        SignedSerializer(keys={"a": b"z" * 32}).decode_result("id", result)


@given(st.data())
def test_a_changed_byte_never_decodes(data: st.DataObject) -> None:
    serializer = SignedSerializer(keys={"a": KEY})
    payload = bytearray(serializer.encode_result("id", "secret"))
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SerializationError):
        serializer.decode_result("id", bytes(payload))
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(SerializationError):
        serializer.decode_result("id", serializer.encode_result("id", "secret")[:cut])


def test_keys_rotate() -> None:
    old = SignedSerializer(keys={"2025": KEY})
    new = SignedSerializer(keys={"2026": b"n" * 32, "2025": KEY})
    assert new.decode_result("id", old.encode_result("id", 1)) == 1
    with pytest.raises(SignatureError):
        old.decode_result("id", new.encode_result("id", 1))


def test_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SITQ_SECRET_KEY", raising=False)
    with pytest.raises(ValidationError, match="SITQ_SECRET_KEY"):
        SignedSerializer.from_environment()
    monkeypatch.setenv("SITQ_SECRET_KEY", "s" * 32)
    one = SignedSerializer.from_environment()
    monkeypatch.setenv("SITQ_SECRET_KEY", f"b:{'t' * 32},0:{'s' * 32}")
    two = SignedSerializer.from_environment()
    assert two.decode_result("id", one.encode_result("id", 5)) == 5


@pytest.mark.parametrize("keys", [None, {}, {"a": b"short"}, {"": KEY}], ids=str)
def test_bad_keys_are_refused(keys: Any) -> None:
    with pytest.raises(ValidationError, match="key"):
        SignedSerializer(keys=keys)


# --- __main__ ---------------------------------------------------------------------------------------------------------

SCRIPT = """
import asyncio, pickle, sys
from sitq import TaskQueue, Worker, CloudpickleSerializer

class Point:
    def __init__(self, x): self.x = x
async def shift(point): return Point(point.x + 1)
async def main():
    async with TaskQueue("memory://") as queue, Worker(queue):
        handle = await queue.enqueue(shift, Point(1))
        print((await queue.get_task(handle)).name, (await handle.result(timeout=60)).x)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["app.py"], "app:shift"), (["my-script.py"], "__main__:shift"), (["-c", SCRIPT], "__main__:shift")],
    ids=["file", "odd name", "-c"],
)
def test_functions_and_classes_of_the_started_script(arguments: list[str], name: str, tmp_path: Path) -> None:
    for file in ("app.py", "my-script.py"):
        (tmp_path / file).write_text(SCRIPT)
    ran = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.stdout.strip(), ran.returncode) == (f"{name} 2", 0), ran.stderr
