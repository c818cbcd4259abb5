"""The other end of the raw latency: a process that waits for the wake file, reserves, and completes."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing

from asyncinotify import Inotify, Mask

from benchmarks import raw

__all__ = ["Ear", "main"]


class Ear:
    """Waits for a file to be written, in the kernel."""

    def __init__(self, path: str) -> None:
        self._inotify = Inotify()
        self._inotify.add_watch(path, Mask.MODIFY)
        os.set_blocking(self._inotify.fd, True)

    def listen(self) -> None:
        """Return after the next write."""
        os.read(self._inotify.fd, 65536)

    def close(self) -> None:
        """Stop listening."""
        self._inotify.close()


def main() -> None:
    """Serve one file until killed."""
    path = sys.argv[1]
    ear, done = Ear(f"{path}-wake"), os.open(f"{path}-done", os.O_WRONLY)
    with closing(raw.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        print("ready", flush=True)
        while True:
            ear.listen()
            connection.execute("BEGIN IMMEDIATE")
            reserved = raw.reserve(connection, 10)
            connection.execute("COMMIT")
            started = time.monotonic()
            connection.execute("BEGIN IMMEDIATE")
            raw.complete(connection, raw.ends(reserved, started))
            connection.execute("COMMIT")
            os.pwrite(done, b"changed\n", 0)


if __name__ == "__main__":
    main()
