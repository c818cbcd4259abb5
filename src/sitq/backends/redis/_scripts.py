"""The script that runs on the server, put together from the files in `lua/`."""

from __future__ import annotations

import hashlib
from importlib.resources import files

__all__ = ["SCRIPT", "SHA"]

_PARTS = ("state", "work", "operate", "wait")


def _read(part: str) -> str:
    return files("sitq.backends.redis").joinpath("lua", f"{part}.lua").read_text(encoding="utf-8")


SCRIPT = "\n".join(map(_read, _PARTS)).encode()
SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest()  # how the server names it
