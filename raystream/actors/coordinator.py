"""The coordinator actor: groups with offsets, share groups, producers, transactions; all in `__consumer_offsets`.

Calls queue; one thread decides each on the state as it will be, appends all resulting records in one synced batch and
only then answers. If the append fails, the state is thrown away and read anew from the log, so that memory never holds
what the disk does not. `offsets_log` is that log, and keeps it short.

Guarantees. A commit or a change of a group that answers survives a kill -9 of any actor. After RequestTimeout or
ActorLost it may have happened; repeating it is safe.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import ray

from raystream import messages as m
from raystream.actors import logs
from raystream.actors.endpoint import Endpoint, machine
from raystream.actors.handles import RayDirectory
from raystream.actors.markers import Markers
from raystream.actors.metrics import LagMetrics
from raystream.actors.offsets_log import OffsetsLog
from raystream.actors.share_waiting import ShareWaiting
from raystream.actors.writer import Ticket, Writer
from raystream.client.admin import Admin
from raystream.client.loop import BackgroundLoop
from raystream.client.routing import METADATA_TIMEOUT_MS, Routing
from raystream.clock import SystemClock
from raystream.core.assignors import Topics
from raystream.core.compaction import Compaction
from raystream.core.coordinator import Coordinator
from raystream.core.groups import Decision
from raystream.core.offset_expiry import EXPIRY_LOOK_EVERY_MS
from raystream.core.transaction_records import TransactionRecord
from raystream.core.transactions import MAX_EPOCH
from raystream.errors import ConcurrentTransactions, CoordinatorNotAvailable, RaystreamError
from raystream.ports import ControllerPort

logger = logging.getLogger("raystream.coordinator")

CALL_WAIT_MS: Final = 15_000.0
TOPICS_WAIT_MS: Final = 2_500.0
"""Callers give one try not much longer, and what waits here for nobody keeps others' calls from coming in."""
WATCH_WAIT_MS: Final = 5_000
"""A broker that does not answer is found out after so long and METADATA_TIMEOUT_MS."""
LAG_EVERY_S: Final = 5.0
IDLE_MS: Final = 1_000.0
MARKERS_WAIT_MS: Final = 2_000.0
"""An end of a transaction waits so long for its markers, then its producer asks again."""

Operation = Callable[[float], Decision]


class CoordinatorActor:
    """The shell around `core.coordinator.Coordinator`."""

    def __init__(self, namespace: str) -> None:
        logs.begin()
        self._clock = SystemClock()
        self._loop = BackgroundLoop("raystream-coordinator-loop")
        self._routing = Routing(RayDirectory(namespace), self._clock)
        self._state: Coordinator | None = None
        self._topics = Topics({}, {})
        self._topic_ids: dict[str, str] = {}
        self._topics_known = threading.Event()
        self._log = OffsetsLog(self._routing, self._loop, self._clock, Compaction())
        self._markers = Markers(self._routing, self._loop, self._completed)
        self._metrics = LagMetrics()
        self._waiting = ShareWaiting(self._routing, self._loop, self._clock, self._note)
        self._writer: Writer[Operation] = Writer(
            "raystream-coordinator", self._handle, idle_ms=self._idle_ms, broken=self._fail_stop
        )
        self._writer.start()
        served = (
            self.commit,
            self.heartbeat,
            self.fetch_offsets,
            self.add_partitions,
            self.end_transaction,
            self.share_heartbeat,
            self.share_acquire,
            self.share_acknowledge,
        )
        self._endpoint = Endpoint("raystream-coordinator", {method.__name__: method for method in served})
        self._loop.submit(self._watch_topics())
        self._loop.submit(self._publish_lag())
        self._loop.submit(self._look_for_expired_offsets())

    def pid(self) -> int:
        """The process id, by which the broker watches this actor."""
        return os.getpid()

    def stop(self) -> None:
        """Ends the thread; nothing is answered afterwards."""
        self._writer.stop()
        self._endpoint.stop()
        self._loop.stop()

    # Calls ----------------------------------------------------------------------------------------------------------

    def endpoint(self) -> m.EndpointReply:
        """Where callers on this machine may make the frequent calls as well, by the methods' names."""
        return m.EndpointReply(
            node_id=ray.get_runtime_context().get_node_id(),
            address=self._endpoint.address,
            machine=machine(),
            methods=self._endpoint.methods,
        )

    def init_producer(self, request: m.InitProducerRequest) -> m.InitProducerReply:
        """A producer id that nobody else has or had, or that of a transactional id. Raises ConcurrentTransactions while
        what a predecessor left open is being ended."""
        return self._decide(request, lambda state, now: state.init_producer(request))

    def add_partitions(self, request: m.AddPartitionsRequest) -> m.Done:
        """The producer's transaction may write to these once this answers. Raises as `Transactions.add_partitions`."""
        return self._decide(request, lambda state, now: state.transactions.add_partitions(request))

    def end_transaction(self, request: m.EndTransactionRequest) -> m.EndTransactionReply:
        """Commits or aborts, once. Answers when every partition has its marker; raises ConcurrentTransactions where
        that takes longer, and then it is decided: asked again, it gives the same answer.

        That it is complete is written down meanwhile: where that is lost, the markers are written again, and the
        producer's next transaction waits for it."""
        deadline_ms = self._clock.monotonic_ms() + MARKERS_WAIT_MS
        while True:
            rounds = self._markers.rounds
            reply: m.EndTransactionReply = self._decide(request, lambda state, now: state.end_transaction(request))
            if reply.complete:
                return reply
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                raise ConcurrentTransactions("the end is decided; not every partition has heard of it yet: try again")
            decided = (reply.producer_id, reply.producer_epoch)
            if self._markers.wait(rounds, decided, left_ms / 1000) and reply.producer_epoch < MAX_EPOCH:
                return dataclasses.replace(reply, complete=True)

    def heartbeat(self, request: m.HeartbeatRequest) -> m.HeartbeatReply:
        """See `messages.HeartbeatRequest`."""
        self._await_topics()
        return self._decide(request, lambda state, now: state.heartbeat(request, self._topics, now))

    def share_heartbeat(self, request: m.ShareHeartbeatRequest) -> m.ShareHeartbeatReply:
        """See `messages.ShareHeartbeatRequest`."""
        self._await_topics()
        return self._decide(request, lambda state, now: state.share_heartbeat(request, self._topics, now))

    def share_acquire(self, request: m.ShareAcquireRequest) -> m.ShareAcquireReply:
        """See `messages.ShareAcquireRequest`."""
        return self._waiting.acquire(
            request, lambda: self._decide(request, lambda state, now: state.shares.acquire(request, now))
        )

    def share_acknowledge(self, request: m.ShareAcknowledgeRequest) -> m.ShareAcknowledgeReply:
        """Durable when it answers."""
        return self._decide(request, lambda state, now: state.shares.acknowledge(request, now))

    def _await_topics(self) -> None:
        if not self._topics_known.wait(TOPICS_WAIT_MS / 1000):
            raise CoordinatorNotAvailable("the coordinator does not know the topics yet")

    def commit(self, request: m.CommitRequest) -> m.Done:
        """Durable when it answers."""
        return self._decide(request, lambda state, now: state.commit(request))

    def fetch_offsets(self, request: m.GroupRequest) -> tuple[m.CommittedOffset, ...]:
        """The group's positions; empty for a group that has none."""
        return self._decide(request, lambda state, now: state.fetch_offsets(request))

    def list_groups(self, request: m.GroupRequest) -> tuple[m.GroupInfo, ...]:
        """Every group."""
        return self._decide(request, lambda state, now: state.list_groups(now))

    def describe_group(self, request: m.GroupRequest) -> m.GroupInfo:
        """One group. Raises GroupNotFound."""
        return self._decide(request, lambda state, now: state.describe_group(request, now))

    def delete_group(self, request: m.GroupRequest) -> m.Done:
        """Forgets a group and its positions. Raises GroupNotEmpty, GroupNotFound."""
        return self._decide(request, lambda state, now: state.delete_group(request))

    def _decide(self, request: Any, operation: Callable[[Coordinator, float], Decision]) -> Any:
        m.check_protocol(request.protocol)

        return self._writer.submit(partial(self._on_state, operation), here=True).wait(CALL_WAIT_MS)

    def _note(self, operation: Callable[[Coordinator, float], Decision]) -> None:
        """Decides in its turn, and nobody waits for it."""
        self._writer.submit(partial(self._on_state, operation))

    def _on_state(self, operation: Callable[[Coordinator, float], Decision], now_ms: float) -> Decision:
        assert self._state is not None
        return operation(self._state, now_ms)

    # On the coordinator's thread ------------------------------------------------------------------------------------

    def _handle(self, tickets: list[Ticket[Operation]]) -> None:
        try:
            state = self._loaded()
            if tickets:
                self._log.confirm()
        except RaystreamError as error:
            self._state = None
            for ticket in tickets:
                ticket.fail(CoordinatorNotAvailable(f"the coordinator is loading: {error}"))
            return
        now_ms = self._clock.monotonic_ms()
        records: list[Any] = []
        answers: list[tuple[Ticket[Operation], Any]] = []
        for ticket in tickets:
            try:
                decision = ticket.work(now_ms)
            except Exception as error:
                ticket.fail(error)
                continue
            self._replay(state, decision, records)
            answers.append((ticket, decision.reply))
        self._replay(state, state.expire(now_ms), records)
        try:
            if records:
                self._log.append(state.encode(records))
        except Exception as error:
            self._state = None
            failure = CoordinatorNotAvailable(f"the coordinator could not write its log: {error}")
            for ticket, _ in answers:
                ticket.fail(failure)
            return
        for ticket, reply in answers:
            if isinstance(reply, Exception):
                ticket.fail(reply)
            else:
                ticket.answer(reply)
        self._markers.carry_out(state.transactions.prepared())
        self._waiting.wake(state.shares.awakened())
        self._compact(state)

    def _compact(self, state: Coordinator) -> None:
        """After the answers: nobody's call waits for a snapshot, nor fails with it."""
        try:
            self._log.compact(state)
        except Exception as error:
            logger.warning("a snapshot of the groups has to wait: %s", error)
            self._state = None  # the log may hold a piece or not

    def _replay(self, state: Coordinator, decision: Decision, records: list[Any]) -> None:
        for record in decision.records:
            state.replay(record, self._clock.monotonic_ms())
        records.extend(decision.records)

    def _idle_ms(self) -> float | None:
        if self._state is None:
            return IDLE_MS
        if self._log.snapshot_under_way:
            return 0.0
        due_ms = self._state.next_expiry_ms()
        if due_ms is None:
            return IDLE_MS if self._log.deletion_under_way else None
        return min(IDLE_MS, due_ms - self._clock.monotonic_ms())

    def _loaded(self) -> Coordinator:
        if self._state is None:
            state = self._log.load()
            own = state.init_producer(m.InitProducerRequest())
            records: list[Any] = []
            self._replay(state, own, records)
            if records:
                self._log.append(state.encode(records))
            self._log.use(own.reply.producer_id)
            self._markers.forget()
            self._state = state
            if self._topics_known.is_set():
                self._writer.submit(self._know_topics)
        return self._state

    def _completed(self, record: TransactionRecord) -> None:
        """On the loop: every partition has the marker. Where this cannot be written down, the next load begins anew."""

        def on_state(_now_ms: float) -> Decision:
            assert self._state is not None
            return self._state.transactions.complete(record)

        self._writer.submit(on_state)

    def _fail_stop(self, error: BaseException) -> None:
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)  # the broker starts a successor, which reads the log

    # On the loop ----------------------------------------------------------------------------------------------------

    async def _watch_topics(self) -> None:
        """Keeps the partition counts up to date; positions in topics that are gone are dropped."""
        version = -1
        while True:
            waits_ms = WATCH_WAIT_MS if self._topics_known.is_set() else 0
            request = m.MetadataRequest(known_version=version, max_wait_ms=waits_ms)
            try:
                reply = await self._routing.call_controller(partial(_metadata, request))
            except RaystreamError as error:
                logger.debug("no metadata at the moment: %s", error)
                await asyncio.sleep(0.5)
                continue
            version = reply.version
            if reply.topics is None:
                continue
            self._topic_ids = {topic.name: topic.topic_id for topic in reply.topics}
            self._topics = Topics(
                {topic.name: len(topic.partitions) for topic in reply.topics},
                {(topic.name, p.partition): p.node_id for topic in reply.topics for p in topic.partitions},
            )
            self._topics_known.set()
            self._writer.submit(self._know_topics)

    def _know_topics(self, _now_ms: float) -> Decision:
        assert self._state is not None
        return self._state.know_topics(self._topic_ids)

    async def _look_for_expired_offsets(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_LOOK_EVERY_MS / 1000)
            self._writer.submit(self._expire_offsets)

    def _expire_offsets(self, _now_ms: float) -> Decision:
        assert self._state is not None
        return self._state.expire_offsets(self._clock.now_ms())

    async def _publish_lag(self) -> None:
        admin = Admin(self._routing)
        while True:
            await asyncio.sleep(LAG_EVERY_S)
            try:
                for group in await admin.groups():
                    for row in group.partition_list:
                        if row.lag is not None:
                            self._metrics.publish(group.name, row.topic, row.partition, row.lag)
            except RaystreamError as error:
                logger.debug("no lag at the moment: %s", error)


async def _metadata(request: m.MetadataRequest, controller: ControllerPort, left_ms: float) -> m.MetadataReply:
    timeout_ms = min(left_ms, request.max_wait_ms + METADATA_TIMEOUT_MS)  # another broker may answer
    return await controller.metadata(request, timeout_ms=timeout_ms)
