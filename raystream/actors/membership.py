"""A broker's place in the cluster: registration, heartbeats, the lease they bring, and the way to the controller."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from raystream import messages as m
from raystream.actors.finding import nodes
from raystream.actors.lease import Lease
from raystream.actors.metadata import Metadata
from raystream.actors.peers import Peers
from raystream.actors.raft_node import RaftNode
from raystream.clock import Clock
from raystream.core.liveness import Grants, lease_until_ms
from raystream.errors import Fenced, NotLeader, RaystreamError

logger = logging.getLogger("raystream.broker")

REGISTER_TIMEOUT_S: Final = 60.0
CONTROLLER_TIMEOUT_MS: Final = 10_000.0
HEARTBEAT_S: Final = 0.4
HEARTBEAT_TIMEOUT_MS: Final = 1_000.0
APPLY_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 0.05


class Membership:
    """`here` answers what this broker is asked where it is the controller itself. `join` gives it its node.

    `look` is called where the controller cannot be found, to look for other brokers.
    """

    def __init__(
        self,
        metadata: Metadata,
        peers: Peers,
        clock: Clock,
        *,
        node_id: str,
        root: Path,
        lease: Lease,
        coordinator: Callable[[], str],
        here: Callable[..., Any],
        look: Callable[[], None],
    ) -> None:
        self._metadata = metadata
        self._peers = peers
        self._clock = clock
        self._node_id = node_id
        self._root = root
        self._lease = lease
        self._coordinator = coordinator
        self._here = here
        self._look = look
        self._node: RaftNode | None = None
        self._beat = threading.Event()
        self._stopping = threading.Event()
        self._registering = threading.Lock()
        self._granting = threading.Lock()
        self._grants = Grants()
        self.incarnation = 0
        self.free_bytes: dict[int, int] = {}

    def start(self, node: RaftNode) -> None:
        """Registers, and begins to be heard. Raises why it cannot."""
        self._node = node
        self._register()
        threading.Thread(target=self._run, name="raystream-heartbeats", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()
        self._beat.set()

    def beat(self) -> None:
        """There is news for the controller, or a new one: the next heartbeat goes out at once."""
        self._beat.set()

    def registration(self, directory_id: str, broker_id: int | None, cluster_id: str | None) -> m.RegisterBrokerRequest:
        """What this broker says of itself when it registers."""
        rack = next((node.rack for node in nodes() if node.node_id == self._node_id), "")
        return m.RegisterBrokerRequest(
            directory_id=directory_id,
            broker_id=broker_id,
            cluster_id=cluster_id,
            actor=self._peers.name,
            node_id=self._node_id,
            node=socket.gethostname(),
            rack=rack,
            data_dir=str(self._root),
            pid=os.getpid(),
        )

    def _register(self) -> None:
        """A new life: until the controller has taken note of it, and this broker's metadata has."""
        assert self._node is not None
        identity = self._node.identity
        deadline = time.monotonic() + REGISTER_TIMEOUT_S
        while not self._stopping.is_set():
            try:
                request = self.registration(identity.directory_id, identity.id, self._node.cluster_id)
                decided = self.ask_controller("register", request)
                self.incarnation = decided.reply.incarnation
                self._send_heartbeat()
                if self._metadata.wait_for_version(decided.version, APPLY_TIMEOUT_S):
                    return
            except RaystreamError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
                logger.info("this broker cannot register yet: %s", error)
                self._look()
            self._stopping.wait(RETRY_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._beat.wait(HEARTBEAT_S)
            self._beat.clear()
            try:
                self._send_heartbeat()
            except Fenced as error:
                logger.warning("this broker registers again: %s", error)
                self._register_again()
            except RaystreamError as error:
                logger.info("a heartbeat was not answered: %s", error)
            except Exception:
                logger.exception("a heartbeat failed")

    def begin_new_life(self) -> None:
        """Registers again: leaders forget what they knew of this broker's replicas. Raises why it cannot."""
        with self._registering:
            with self._granting:
                self._grants.end()
                self._lease.extend(self._grants.until_ms)
            self._register()

    def told(self, version: int) -> None:
        """All replicas here go by the metadata of that version."""
        with self._granting:
            self._grants.told(version)
            self._lease.extend(self._grants.until_ms)

    def _register_again(self) -> None:
        try:
            self.begin_new_life()
        except RaystreamError as error:
            logger.warning("this broker cannot register: %s", error)

    def _send_heartbeat(self) -> None:
        assert self._node is not None
        request = m.BrokerHeartbeatRequest(
            broker_id=self._node.identity.id,
            incarnation=self.incarnation,
            coordinator=self._coordinator(),
            free_bytes=shutil.disk_usage(self._root).free,
        )
        sent_ms = self._clock.monotonic_ms()
        reply = self._at_controller("heartbeat", request, timeout_ms=HEARTBEAT_TIMEOUT_MS)
        self.free_bytes = dict(reply.free_bytes)
        if reply.lease_ms > 0:
            with self._granting:
                self._grants.granted(reply.version, lease_until_ms(sent_ms, reply.lease_ms))
                self._lease.extend(self._grants.until_ms)

    # The controller -------------------------------------------------------------------------------------------------

    def ask_controller(self, method: str, request: Any) -> m.Decided:
        """One decision. Raises what the controller raises, NotLeader where there is none, RequestTimeout, ActorLost."""
        decided: m.Decided = self._at_controller("decide", method, request, timeout_ms=CONTROLLER_TIMEOUT_MS)
        return decided

    def _at_controller(self, method: str, *arguments: Any, timeout_ms: float) -> Any:
        leader = self._node.status.leader if self._node is not None else None
        if self._node is None or leader is None:
            raise NotLeader("the brokers have no controller at the moment: try again")
        if leader.id == self._node.identity.id:
            return self._here(method, *arguments)
        return self._peers.call(leader.id, method, *arguments, timeout_ms=timeout_ms)
