"""A cluster of three nodes on this machine, without replicas."""

from __future__ import annotations

import time
from typing import Any, Self

import redis

from servers.redis import RedisServer
from servers.tls import Fronts

__all__ = ["Cluster"]

SLOTS = 16384
_PATIENCE = 60.0


class Cluster:
    """Three nodes, each with a third of the slots. With `fronts` all are reached by TLS."""

    def __init__(self, kind: str, *settings: str, fronts: Fronts | None = None) -> None:
        self.nodes = [_node(kind, *settings) for _ in range(3)]
        if fronts is not None:
            for node in self.nodes:
                node.front = fronts.add(node.port)
                node.settings += ("--cluster-announce-port", str(node.front))
                node.settings += ("--cluster-announce-bus-port", str(node.port + 10_000))
        self._scheme = "rediss" if fronts else "redis"

    def __enter__(self) -> Self:
        try:
            for number, node in enumerate(self.nodes):
                node.start()
                first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3
                ask(node, "CLUSTER", "ADDSLOTS", *range(first, last))
            for node in self.nodes[1:]:
                ask(self.nodes[0], "CLUSTER", "MEET", "127.0.0.1", node.port)
            self.settle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for node in self.nodes:
            node.remove()

    @property
    def url(self) -> str:
        """Where its nodes are; the first of the addresses is nobody's."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (1, *(node.named_port for node in self.nodes)))
        return f"{self._scheme}+cluster://{hosts}"

    def owner(self, prefix: str) -> RedisServer:
        """Return the node that has the keys of a namespace."""
        slot = int(ask(self.nodes[0], "CLUSTER", "KEYSLOT", prefix))
        for first, last, (_host, port, *_), *_replicas in ask(self.nodes[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.named_port == port)
        raise LookupError(f"nobody has slot {slot}")

    def others(self, prefix: str) -> list[RedisServer]:
        """Return the nodes that have them not."""
        owner = self.owner(prefix)
        return [node for node in self.nodes if node is not owner]

    def move(self, prefix: str) -> RedisServer:
        """Move the slot of a namespace to another node, with all that is in it. Returns the node that has it then."""
        here, there = self.owner(prefix), self.others(prefix)[0]
        slot = ask(here, "CLUSTER", "KEYSLOT", prefix)
        ids = {node: ask(node, "CLUSTER", "MYID") for node in (here, there)}
        ask(there, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[here])
        ask(here, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[there])
        keys = ask(here, "CLUSTER", "GETKEYSINSLOT", slot, 1000)
        ask(here, "MIGRATE", "127.0.0.1", there.port, "", 0, 5000, "KEYS", *keys)
        for node in (there, here):
            ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[there])
        return there

    def settle(self) -> None:
        """Wait until all nodes say that all is well."""
        deadline = time.monotonic() + _PATIENCE
        while not all(self._is_well(node) for node in self.nodes):
            if time.monotonic() > deadline:
                raise TimeoutError("the nodes did not find together")
            time.sleep(0.05)  # they agree among themselves, and tell nobody

    def _is_well(self, node: RedisServer) -> bool:
        try:
            info: bytes = ask(node, "CLUSTER", "INFO")
        except redis.RedisError:  # it loads its file
            return False
        return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info


def _node(kind: str, *settings: str) -> RedisServer:
    return RedisServer(kind, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *settings)


def ask(node: RedisServer, *words: Any) -> Any:
    """Say something to one node, and return what it says."""
    with redis.Redis(port=node.port, socket_timeout=5.0, protocol=2) as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)
