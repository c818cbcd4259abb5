"""Signed payloads: what was not signed with a known key, for this task and this purpose, is never decoded."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from typing import Any

from sitq.exceptions import SignatureError, ValidationError
from sitq.serialization import MAGIC, Call, CloudpickleSerializer, Serializer, open_envelope

__all__ = ["SignedSerializer", "network_serializer"]

_DIGEST = hashlib.sha256().digest_size
_MIN_KEY = 16


class SignedSerializer(Serializer):
    """HMAC-SHA256 around another serializer, checked before anything is decoded.

    `keys` maps key ids to secrets of at least 16 bytes. The first one signs, all verify: to rotate, put the new key
    first and drop the old one when its last payload is gone. The signature covers the purpose (call or result), the
    task id, the function's name and the body, so that a payload cannot be moved to another task.
    """

    format = b"s"

    def __init__(self, inner: Serializer | None = None, keys: Mapping[str, bytes] | None = None) -> None:
        if not keys:
            raise ValidationError("SignedSerializer needs keys: {key id: secret bytes}, the signing key first")
        for key_id, secret in keys.items():
            if not key_id or len(key_id.encode()) > 255:
                raise ValidationError("a key id has 1 to 255 bytes")
            if len(secret) < _MIN_KEY:
                raise ValidationError(
                    f"the key {key_id!r} is shorter than {_MIN_KEY} bytes: use `openssl rand -hex 32`"
                )
        self._inner = inner or CloudpickleSerializer()
        self._keys = {key_id: bytes(secret) for key_id, secret in keys.items()}
        self._signing_id = next(iter(self._keys))

    @classmethod
    def from_environment(cls, inner: Serializer | None = None, variable: str = "SITQ_SECRET_KEY") -> SignedSerializer:
        """Take the keys from an environment variable: `secret`, or `id:secret,id:secret`, the signing key first."""
        text = os.environ.get(variable, "").strip()
        if not text:
            raise ValidationError(f"set {variable} to a secret of at least {_MIN_KEY} bytes")
        pairs = [part.strip().rpartition(":") for part in text.split(",")]
        return cls(inner, {key_id or "0": secret.encode() for key_id, _, secret in pairs})

    def encode_call(
        self, task_id: str, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bytes:
        return self._sign(b"call", task_id, name, self._inner.encode_call(task_id, name, function, args, kwargs))

    def decode_call(self, task_id: str, name: str, payload: bytes) -> Call:
        return self._inner.decode_call(task_id, name, self._verify(b"call", task_id, name, payload))

    def encode_result(self, task_id: str, value: Any) -> bytes:
        return self._sign(b"result", task_id, "", self._inner.encode_result(task_id, value))

    def decode_result(self, task_id: str, payload: bytes) -> Any:
        return self._inner.decode_result(task_id, self._verify(b"result", task_id, "", payload))

    def _sign(self, purpose: bytes, task_id: str, name: str, body: bytes) -> bytes:
        key_id = self._signing_id.encode()
        digest = self._digest(self._signing_id, purpose, task_id, name, body)
        return MAGIC + self.format + bytes([len(key_id)]) + key_id + digest + body

    def _verify(self, purpose: bytes, task_id: str, name: str, payload: bytes) -> bytes:
        signed = open_envelope(payload, self.format)
        end_of_id = 1 + (signed[0] if signed else 0)
        key_id = signed[1:end_of_id].decode("utf-8", "replace")
        digest, body = signed[end_of_id : end_of_id + _DIGEST], signed[end_of_id + _DIGEST :]
        if key_id not in self._keys:
            raise SignatureError(f"signed with the key {key_id!r}, which is not known here: add it to the keys")
        if not hmac.compare_digest(digest, self._digest(key_id, purpose, task_id, name, body)):
            raise SignatureError("the signature does not fit: changed, moved from another task, or another secret")
        return body

    def _digest(self, key_id: str, purpose: bytes, task_id: str, name: str, body: bytes) -> bytes:
        """Each part goes in behind its length, so that no two divisions of the same bytes sign alike."""
        mac = hmac.new(self._keys[key_id], digestmod=hashlib.sha256)
        for part in (b"sitq 1", purpose, task_id.encode(), name.encode(), body):
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return mac.digest()


def network_serializer(keys: Mapping[str, bytes] | None, store: str) -> SignedSerializer:
    """Return the default serializer of a store that can be reached from other machines: signed cloudpickle.

    `keys` are those of `SignedSerializer`; None takes them from `SITQ_SECRET_KEY`. Raises `ValidationError`, which
    lists the choices, where there are none.
    """
    if keys is not None:
        return SignedSerializer(keys=keys)
    if not os.environ.get("SITQ_SECRET_KEY", "").strip():
        raise ValidationError(
            f"{store} can be written to over the network, so its payloads are signed, and there is no key. Set "
            "SITQ_SECRET_KEY to the same secret everywhere (`openssl rand -hex 32`), pass signing_keys={id: secret}, "
            "or choose a serializer: TaskQueue(…, serializer=JsonSerializer()), which runs no code, or "
            "CloudpickleSerializer() where everybody who can write to the store may run code in the workers."
        )
    return SignedSerializer.from_environment()
