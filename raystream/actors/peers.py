"""A broker's way to the others: who they are, by their own word, and calls to them.

Addresses come from what brokers say of themselves, and before that from the metadata. A wrong one does no harm: every
message names the disk that it is for.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from raystream import messages as m
from raystream.actors.finding import Node, broker_name, nodes
from raystream.actors.handles import wait_for
from raystream.actors.launch import CONTROL, REPLICATE, find_actor
from raystream.core.raft_messages import Message
from raystream.errors import ActorLost, RaystreamError, Unavailable

logger = logging.getLogger("raystream.broker")

HELLO_TIMEOUT_MS: Final = 1_500.0


class Peers:
    """Used on any thread. `name` and `node_id` are this broker's own."""

    def __init__(self, namespace: str, name: str, node_id: str) -> None:
        self._namespace = namespace
        self.name = name
        self._node_id = node_id
        self._lock = threading.Lock()
        self._actors: dict[int, str] = {}
        self._handles: dict[str, Any] = {}
        self._unknown = threading.Event()

    # Who is there ---------------------------------------------------------------------------------------------------

    def others(self) -> list[Node]:
        """The other nodes that Ray takes for alive."""
        return [node for node in nodes() if node.node_id != self._node_id]

    def ask_all(self, own: m.HelloReply | None = None) -> dict[str, m.HelloReply | None]:
        """What the broker of each other node says of itself; None where there is none, or none that answers. They are
        told who asks: where a broker that starts on another node than before is, nobody else can tell."""
        asked: list[tuple[str, Any]] = []
        for node in self.others():
            try:
                handle = self._handle(broker_name(node.node_id))
                asked.append((node.node_id, handle.hello.options(concurrency_group=REPLICATE).remote(own)))
            except RaystreamError:
                asked.append((node.node_id, None))
        answers: dict[str, m.HelloReply | None] = {}
        for node_id, reference in asked:
            answers[node_id] = None
            try:
                if reference is not None:
                    answers[node_id] = wait_for(reference, HELLO_TIMEOUT_MS)
            except Exception as error:
                logger.debug("the broker of node %s does not answer: %s", node_id, error)
                self._forget(broker_name(node_id))
        for reply in answers.values():
            if reply is not None and reply.broker_id is not None:
                self.learn(reply.broker_id, reply.actor)
        return answers

    def learn(self, broker_id: int, actor: str) -> None:
        """Where a broker is, by its own word."""
        with self._lock:
            self._actors[broker_id] = actor

    def suppose(self, broker_id: int, actor: str) -> None:
        """Where a broker was when the metadata was written, for as long as nothing better is known."""
        if actor:
            with self._lock:
                self._actors.setdefault(broker_id, actor)

    @property
    def unknown(self) -> threading.Event:
        """Set when somebody was to be reached whose address is not known or does not answer."""
        return self._unknown

    # Calls ----------------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """A Raft message, which may be lost."""
        with self._lock:
            actor = self._actors.get(message.to.id)
        if actor is None:
            self._unknown.set()
            return
        try:
            handle = self._handle(actor)
            handle.raft.options(concurrency_group=REPLICATE).remote(self.name, (message,))
        except Exception as error:  # Ray's own: the actor is dead
            logger.debug("a message to broker %d is lost: %s", message.to.id, error)
            self._forget(actor)
            self._unknown.set()

    def call(self, broker_id: int, method: str, *arguments: Any, timeout_ms: float) -> Any:
        """One call to a broker. Raises the other side's error, RequestTimeout, ActorLost, Unavailable."""
        with self._lock:
            actor = self._actors.get(broker_id)
        if actor is None:
            self._unknown.set()
            raise Unavailable(f"broker {broker_id} cannot be found at the moment")
        group = REPLICATE if method == "heartbeat" else CONTROL
        try:
            remote = getattr(self._handle(actor), method).options(concurrency_group=group).remote
            return wait_for(remote(*arguments), timeout_ms)
        except ActorLost:
            self._forget(actor)
            self._unknown.set()
            raise

    def _handle(self, actor: str) -> Any:
        with self._lock:
            handle = self._handles.get(actor)
        if handle is None:
            handle = find_actor(actor, self._namespace)
            with self._lock:
                self._handles[actor] = handle
        return handle

    def _forget(self, actor: str) -> None:
        with self._lock:
            self._handles.pop(actor, None)
