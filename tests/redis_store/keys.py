"""Does a namespace hold what the page on Redis says, and nothing else? Looked at after every test."""

from __future__ import annotations

from typing import Any

import redis

__all__ = ["keys_out_of_place"]

_TABLES = (
    "due", "expiring", "leases", "done", "all", "queues", "paused", "workers", "seen", "waiting",
)  # fmt: skip


def keys_out_of_place(url: str, namespace: str) -> list[str]:
    """Return what is wrong with the keys of a namespace: strangers, tasks in no set or in two, entries of no task."""
    with redis.Redis.from_url(url, decode_responses=False) as client:
        return _Keys(client, f"{{sitq:{namespace}}}").problems()


class _Keys:
    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        names = (key.decode() for key in client.scan_iter(f"{prefix}*", count=1000))
        self._names = {name[len(prefix) :].lstrip(":") for name in names}

    def problems(self) -> list[str]:
        """Return what is wrong, in words."""
        found = [f"what is {name!r}?" for name in self._names if not self._is_known(name)]
        tasks = self._tasks()
        places: dict[str, list[str]] = {task_id: [] for task_id in tasks}
        for place, members in self._members().items():
            for member in members:
                if member not in places:
                    found.append(f"{member} in {place} is no task")
                else:
                    places[member].append(place.split(":")[0])
        for task_id, where in places.items():
            status = tasks[task_id]
            allowed = {"0": ("ready", "due"), "1": ("leases", "ready"), "2": ("done",), "3": ("done",)}[status]
            main = [place for place in where if place in ("ready", "due", "leases", "done")]
            if len(main) != 1 or main[0] not in allowed:
                found.append(f"{task_id} of status {status} is in {where}")
            if ("held" in where) != (status == "1") or "all" not in where or ("expiring" in where and status != "0"):
                found.append(f"{task_id} of status {status} is in {where}")
            expires = self._client.ttl(self._key(f"task:{task_id}")) >= 0
            if expires != (status in "23"):
                found.append(f"{task_id} of status {status} {'expires' if expires else 'stays for ever'}")
        return found

    def _is_known(self, name: str) -> bool:
        return name in ("", *_TABLES) or name.split(":", maxsplit=1)[0] in ("task", "ready", "held", "unique")

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def _tasks(self) -> dict[str, str]:
        ids = [name.removeprefix("task:") for name in self._names if name.startswith("task:")]
        return {task_id: self._client.hget(self._key(f"task:{task_id}"), "s").decode() for task_id in ids}

    def _members(self) -> dict[str, list[str]]:
        found = {}
        for name in self._names:
            if name.startswith("ready:"):
                found[name] = [member.decode()[31:] for member in self._client.zrange(self._key(name), 0, -1)]
            elif name in ("due", "leases", "done", "all", "expiring"):
                found[name] = [member.decode() for member in self._client.zrange(self._key(name), 0, -1)]
            elif name.startswith("held:"):
                found[name] = [member.decode() for member in self._client.smembers(self._key(name))]
            elif name.startswith("unique:"):
                found[name] = [self._client.get(self._key(name)).decode()]
        return found
