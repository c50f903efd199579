"""The controller's part of a broker: decides, one thing at a time, while the broker's Raft node leads.

Every change is *decide, append, replay*: a decision is made on an image in which all earlier ones are replayed, its
records are committed to the metadata log, and what replays them is the log. Where the outcome of an append is unknown,
nothing is decided until it is known.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final

from raystream import messages as m
from raystream.actors.metadata import Metadata, encode
from raystream.actors.raft_node import RaftNode
from raystream.actors.writer import Ticket, Writer
from raystream.clock import Clock
from raystream.core.controller import Controller
from raystream.core.liveness import Liveness
from raystream.core.metadata import MetadataImage
from raystream.core.raft_messages import Voter
from raystream.core.records import Decision, Record, Removed
from raystream.core.voter_choice import next_voters
from raystream.errors import Fenced, NotLeader, RaystreamError, RequestTimeout, Unavailable

logger = logging.getLogger("raystream.controller")

SESSION_TIMEOUT_MS: Final = 2_000.0
"""A broker that is not heard for so long is fenced."""
LEASE_MS: Final = 1_800.0
"""Shorter than the session by more than clocks may differ in rate."""
COMMIT_TIMEOUT_MS: Final = 5_000.0
DECIDE_TIMEOUT_MS: Final = 10_000.0
TICK_S: Final = 0.1
TEND_MS: Final = 1_000.0
CAUGHT_UP_ENTRIES: Final = 100

Make = Callable[[Controller], "Decision | list[Record | Removed]"]


class Controlling:
    """Made once per broker; does something only while the node leads. `tended` is called now and then while it does."""

    def __init__(self, node: RaftNode, metadata: Metadata, clock: Clock, tended: Callable[[], None]) -> None:
        self._node = node
        self._metadata = metadata
        self._clock = clock
        self._tended = tended
        self._liveness = Liveness(SESSION_TIMEOUT_MS)
        self._liveness_lock = threading.Lock()
        self._term = -1
        self._fenced_since: dict[int, float] = {}
        self._next_tend_ms = 0.0
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self.free_bytes: dict[int, int] = {}
        self._decider: Writer[Make] = Writer("raystream-controller", self._decide, broken=self._broken)
        self._thread = threading.Thread(target=self._run, name="raystream-controller-tick", daemon=True)

    def start(self) -> None:
        self._decider.start()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        self._decider.stop()

    @property
    def leads(self) -> bool:
        """Whether this broker is the controller, and has replayed all that earlier ones have decided."""
        return self._node.status.ready_to_lead

    def wake(self) -> None:
        """Something has changed that the controller may have to act on at once."""
        self._next_tend_ms = 0.0
        self._wake.set()

    # Decisions ------------------------------------------------------------------------------------------------------

    def decide(self, make: Make) -> Any:
        """The reply of a decision that is committed and replayed. Raises what `make` raises, NotLeader, Unavailable,
        and RequestTimeout where the outcome is unknown."""
        return self._decider.submit(make, here=True).wait(DECIDE_TIMEOUT_MS)

    def _decide(self, tickets: list[Ticket[Make]]) -> None:
        for ticket in tickets:
            try:
                ticket.answer(self._committed(ticket.work))
            except Exception as error:
                if not isinstance(error, RaystreamError):
                    traceback.print_exc()
                ticket.fail(error)

    def _committed(self, make: Make) -> Any:
        if not self.leads:
            raise NotLeader("this broker is not the controller")
        if self._node.applied_index < self._node.last_index:
            raise Unavailable("the outcome of the last change of the metadata is not known yet: try again")
        with self._metadata.image() as image:
            made = make(Controller(image))
        records, reply = (made.records, made.reply) if isinstance(made, Decision) else (made, None)
        if records:
            self._node.propose(encode(list(records)), COMMIT_TIMEOUT_MS)
        return reply

    def _broken(self, error: BaseException) -> None:
        logger.error("the controller cannot go on: %s", error)
        traceback.print_exception(error)

    # Brokers --------------------------------------------------------------------------------------------------------

    def register(self, request: m.RegisterBrokerRequest) -> m.RegisterBrokerReply:
        """A broker that starts. It is sent the metadata log from now on."""
        if not self._metadata.cluster_id:
            self.decide(lambda controller: controller.format(self._node.cluster_id))
        with self._metadata.image() as image:
            founded = bool(image.brokers)
        if not founded and request.directory_id != self._node.identity.directory_id:
            raise Unavailable("the cluster is being founded: try again")  # the founder has the first id
        reply: m.RegisterBrokerReply = self.decide(lambda controller: controller.register_broker(request))
        with self._liveness_lock:
            self._liveness.heard(reply.broker_id, self._clock.monotonic_ms())
        self._observe(Voter(reply.broker_id, request.directory_id))
        self.wake()
        return reply

    def heartbeat(self, request: m.BrokerHeartbeatRequest) -> m.BrokerHeartbeatReply:
        """Raises Fenced for a broker that has to register again, NotLeader."""
        if not self.leads:
            raise NotLeader("this broker is not the controller")
        with self._metadata.image() as image:
            known = image.brokers.get(request.broker_id)
            if known is None or known.incarnation != request.incarnation:
                raise Fenced(f"broker {request.broker_id} has to register again")
            news = known.fenced or known.coordinator != request.coordinator
        if news:
            self.decide(lambda controller: controller.broker_heard(request))
            self.wake()
        self.free_bytes[request.broker_id] = request.free_bytes
        now_ms = self._clock.monotonic_ms()
        with self._liveness_lock:
            self._liveness.heard(request.broker_id, now_ms)
        lease_until_ms = self._node.lease_until_ms
        sure = lease_until_ms is not None and lease_until_ms > self._clock.monotonic_ms()
        return m.BrokerHeartbeatReply(
            lease_ms=LEASE_MS if sure else 0.0,
            version=self._metadata.version,
            free_bytes=tuple(sorted(self.free_bytes.items())),
        )

    # Upkeep ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(TICK_S)
            self._wake.clear()
            if not self.leads:
                self._term = -1
                continue
            try:
                self._tick()
            except RaystreamError as error:
                logger.info("the controller will try again: %s", error)
            except Exception:
                logger.exception("the controller's upkeep failed")

    def _tick(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if self._term != self._node.status.term:
            self._begin(now_ms)
        with self._liveness_lock:
            expired = self._liveness.expired(now_ms)
        for broker_id in expired:
            self._fence(broker_id)
        if now_ms >= self._next_tend_ms or expired:
            self._next_tend_ms = now_ms + TEND_MS
            self.decide(lambda controller: controller.upkeep())
            self._tend_voters(now_ms)
            self._tended()

    def _begin(self, now_ms: float) -> None:
        """A new lead: everybody has a whole session's time to be heard, and is sent the log."""
        with self._metadata.image() as image:
            brokers = dict(image.brokers)
        with self._liveness_lock:
            self._liveness.started([b.broker_id for b in brokers.values() if not b.fenced], now_ms)
        for broker in brokers.values():
            self._observe(Voter(broker.broker_id, broker.directory_id))
        self._term = self._node.status.term

    def _fence(self, broker_id: int) -> None:
        with self._metadata.image() as image:
            known = image.brokers.get(broker_id)
        if known is not None and not known.fenced:
            logger.warning("broker %d is not heard any more: it is fenced", broker_id)
            self.decide(lambda controller: controller.fence(broker_id))
        with self._liveness_lock:
            self._liveness.forget(broker_id)

    def _observe(self, node: Voter) -> None:
        if node not in self._node.voters and node not in self._node.followers() and node.directory_id:
            try:
                self._node.observe(node)
            except RaystreamError as error:
                logger.info("broker %d is not sent the metadata log yet: %s", node.id, error)

    def _tend_voters(self, now_ms: float) -> None:
        with self._metadata.image() as image:
            brokers = dict(image.brokers)
            for broker in brokers.values():
                if broker.fenced:
                    self._fenced_since.setdefault(broker.broker_id, now_ms)
                else:
                    self._fenced_since.pop(broker.broker_id, None)
            wanted = self._wanted_voters(image, now_ms)
        for broker in brokers.values():
            self._observe(Voter(broker.broker_id, broker.directory_id))
        if wanted is not None and set(wanted) != set(self._node.voters):
            logger.info("the voters become %s", ", ".join(str(voter.id) for voter in wanted))
            try:
                self._node.propose_voters(wanted, COMMIT_TIMEOUT_MS)
            except RequestTimeout as error:
                logger.warning("the change of voters is under way: %s", error)

    def _wanted_voters(self, image: MetadataImage, now_ms: float) -> tuple[Voter, ...] | None:
        caught_up = {
            broker.broker_id
            for broker in image.brokers.values()
            if not broker.fenced and self._is_caught_up(Voter(broker.broker_id, broker.directory_id))
        }
        dead_for_ms = {broker_id: now_ms - since for broker_id, since in self._fenced_since.items()}
        return next_voters(
            self._node.voters, image, caught_up, dead_for_ms=dead_for_ms, controller=self._node.identity.id
        )

    def _is_caught_up(self, node: Voter) -> bool:
        if node == self._node.identity:
            return True
        matched = self._node.match_index(node)
        return matched is not None and self._node.last_index - matched <= CAUGHT_UP_ENTRIES
