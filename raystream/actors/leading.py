"""The leading side of a replica: takes appends, sends them to the followers, answers when enough disks hold them.

Everything here runs on the partition actor's writer turn. What goes to other actors goes through an `Outbox`, whose
answers come back on a later turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

from raystream import batch as b
from raystream import messages as m
from raystream.actors.writer import Ticket
from raystream.core.leader import Leader
from raystream.core.metadata import PartitionRecord
from raystream.core.reorder import ReorderBuffer
from raystream.core.replication import Answer, IsrChange, Probe, ProbeAnswer, ReplicationSettings, Send, Truncate
from raystream.errors import (
    ActorLost,
    OutOfOrderSequence,
    RaystreamError,
    RequestTimeout,
    StorageError,
    UnexpectedEndOffset,
)
from raystream.storage.producer_state import Duplicate, Fresh
from raystream.storage.stored import Stored

if TYPE_CHECKING:
    from raystream.actors.replica import Replica

T = TypeVar("T")

ACKS_ALL: Final = -1
GROUP_COMMIT_BYTES: Final = 1 << 20
"""A sync waits for no more than this: beyond it, sending the next batches while one is synced gains more."""
REORDER_WAIT_MS: Final = 2_000.0
"""How long an early batch waits for the one before it."""
HOT_BYTES: Final = 8 << 20
"""What was appended last is in the page cache: it is read on the writer's turn, older batches beside it."""
IN_HAND_BYTES: Final = 64 << 10
"""What was appended last is sent from memory up to this size; from the log's files beyond it."""
SETTINGS: Final = ReplicationSettings(max_send_bytes=1 << 20, max_in_flight_batches=4)
"""Few sends in flight: what is appended meanwhile travels together."""
TICK_MS: Final = SETTINGS.heartbeat_interval_ms / 2

Then = Callable[[Any, Exception | None], None]
"""Called with what came of a call, on the writer's turn."""


class Outbox(Protocol):
    """What leaves a leading replica. Nothing here waits; `then` is called on a later turn, once or never."""

    def replicate(
        self, actor: str, request: m.ReplicateRequest, batches: bytes | Stored, timeout_ms: float, then: Then
    ) -> None: ...

    def alter_isr(self, broker: str, request: m.AlterIsrRequest, timeout_ms: float, then: Then) -> None: ...

    def beside(self, work: Callable[[], Any], then: Then) -> None:
        """Runs `work` on another thread."""


@dataclass(frozen=True, slots=True)
class Append:
    """An append as it waits for the writer: checked, not yet placed."""

    replica: Replica
    message: memoryview
    header: b.BatchHeader
    age_ms: int
    acks: int = ACKS_ALL
    expected_offset: int = -1


class _Read(NamedTuple):
    """What a Send carries: batches up to `end_offset`."""

    batches: bytes | Stored
    end_offset: int


class _Waiting(NamedTuple):
    """A batch that stands in the log and is not answered yet."""

    ticket: Ticket[Append]
    reply: m.AppendReply
    end_offset: int


class Leading:
    """One replica's lead in one leader epoch."""

    def __init__(self, replica: Replica, outbox: Outbox) -> None:
        self._replica = replica
        self._log = replica.log
        self._clock = replica.clock
        self._outbox = outbox
        self._reorder: ReorderBuffer[Ticket[Append]] = ReorderBuffer(max_wait_ms=REORDER_WAIT_MS)
        self._staged: list[Ticket[Append]] = []
        self._staged_producers: set[int] = set()
        self._written: list[_Waiting] = []
        self._waiting: list[_Waiting] = []
        self._unsynced_bytes = 0
        self._hot: deque[tuple[int, int]] = deque()
        self._hot_bytes = 0
        self._in_hand: tuple[int, _Read] | None = None
        """The group of batches that was appended last and where it begins, where it is small."""
        self._read_last: tuple[tuple[int, int], _Read | None] | None = None
        self._told: dict[tuple[int, int], int] = {}
        """Of each follower's life: it has been told of the producers of what was compacted below this offset."""
        end = self._log.flush()
        self._log.producers.cut(end)
        spec = replica.spec
        self._actors = dict(spec.actors)
        self.core = Leader(
            spec.broker_id,
            spec.broker_incarnation,
            record_of(spec),
            end_offset=end,
            flushed_end_offset=end,
            high_watermark=replica.high_watermark,
            epochs=tuple(self._log.epochs.starts),
            min_insync_replicas=spec.min_insync_replicas,
            settings=SETTINGS,
            now_ms=self._clock.monotonic_ms(),
            log_start_offset=self._first_batch(),
        )
        self.core.flushed(end)
        self._settle()

    trouble: Final = None
    """Why the replica is of no use; a leader's is, whatever its followers hold."""

    @property
    def alone(self) -> bool:
        """Whether nobody else holds the partition."""
        return not self.core.followers

    def take_over(self, spec: m.ReplicaSpec) -> None:
        """News of the controller within the same epoch."""
        self._actors = dict(spec.actors)
        self.core.committed(record_of(spec))
        self.core.set_min_insync_replicas(spec.min_insync_replicas)
        self._settle()
        self._pump()

    def end(self, error: Exception) -> None:
        """The lead is over. What stands in the log may be committed by whoever leads next: nobody can tell."""
        for ticket in [*self._staged, *self._reorder.clear()]:
            ticket.fail(error)
        for waiting in [*self._written, *self._waiting]:
            waiting.ticket.fail(ActorLost(f"whether the batch will be committed is not known: {error}"))
        self._staged, self._written, self._waiting = [], [], []

    # Appending ------------------------------------------------------------------------------------------------------

    def offer(self, ticket: Ticket[Append]) -> None:
        """Places a batch: stages it, answers a duplicate, or keeps an early one for its turn."""
        work = ticket.work
        producer_id = work.header.producer_id
        if producer_id in self._staged_producers or work.expected_offset >= 0:
            self._write_staged()
        try:
            if work.acks == ACKS_ALL:
                self.core.check_append()
            verdict: Fresh | Duplicate | None = None
            if work.header.is_control:
                verdict = self._marker_verdict(work.header)
            elif producer_id != b.NO_PRODUCER_ID:
                verdict = self._log.producers.check(work.header, age_ms=work.age_ms)
            if verdict is None or not isinstance(verdict, Duplicate):
                self._check_place(work)
        except OutOfOrderSequence as error:
            self._keep_early(ticket, error)
            return
        except Exception as error:
            ticket.fail(error)
            return
        if isinstance(verdict, Duplicate):
            reply = self._reply(verdict.base_offset, verdict.append_time_ms, duplicate=True)
            end = verdict.base_offset + work.header.last_offset_delta + 1
            self._written.append(_Waiting(ticket, reply, end))
            return
        self._staged.append(ticket)
        if producer_id != b.NO_PRODUCER_ID:
            self._staged_producers.add(producer_id)

    def _marker_verdict(self, header: b.BatchHeader) -> Duplicate | None:
        """A marker that stands here already is answered once all of the log is committed, itself among it."""
        if not self._log.producers.marked(header.producer_id, header.producer_epoch):
            return None
        return Duplicate(self._log.end_offset - 1, self._clock.now_ms())

    def _check_place(self, work: Append) -> None:
        if work.expected_offset >= 0 and work.expected_offset != self._log.end_offset:
            raise UnexpectedEndOffset(
                f"the batch was to stand at offset {work.expected_offset}, and the log ends at {self._log.end_offset}"
            )

    def _keep_early(self, ticket: Ticket[Append], error: OutOfOrderSequence) -> None:
        header = ticket.work.header
        displaced = self._reorder.offer(
            header.producer_id,
            header.base_sequence,
            ticket,
            self._clock.monotonic_ms(),
            size_bytes=header.message_bytes,
        )
        for refused in [ticket] if displaced is None else displaced:
            refused.fail(error)

    def _write_staged(self) -> None:
        staged, self._staged = self._staged, []
        self._staged_producers.clear()
        if not staged:
            return
        try:
            results = self._log.append(
                [(ticket.work.message, ticket.work.header) for ticket in staged],
                leader_epoch=self.core.leader_epoch,
                high_watermark=self._replica.high_watermark,
            )
        except Exception as error:
            for ticket in staged:
                ticket.fail(error)
            if isinstance(error, StorageError) and error.retriable:
                return  # the disk is full: the log stands as before, readers go on
            raise
        written = 0
        for ticket, result in zip(staged, results, strict=True):
            reply = self._reply(result.base_offset, result.append_time_ms)
            self._written.append(_Waiting(ticket, reply, result.next_offset))
            written += ticket.work.header.message_bytes
        self._unsynced_bytes += written
        self._in_hand = None
        if written <= IN_HAND_BYTES and not self.alone:
            data = b"".join([piece for result in results for piece in result.pieces])
            self._in_hand = (results[0].base_offset, _Read(data, results[-1].next_offset))
        self.core.appended(self._log.end_offset, held_from=self._hot_from(results[0].base_offset, written))
        if self._unsynced_bytes >= GROUP_COMMIT_BYTES:
            self._publish()
        for ticket in staged:
            header = ticket.work.header
            if header.producer_id != b.NO_PRODUCER_ID:
                early = self._reorder.release_after(header.producer_id, b.advance_sequence(header.last_sequence, 1))
                if early is not None:
                    self.offer(early)

    def _hot_from(self, base_offset: int, size_bytes: int) -> int:
        self._hot.append((base_offset, size_bytes))
        self._hot_bytes += size_bytes
        while self._hot_bytes > HOT_BYTES and len(self._hot) > 1:
            self._hot_bytes -= self._hot.popleft()[1]
        return self._hot[0][0]

    def commit(self) -> None:
        """Writes, sends and syncs what was offered since the last commit; answers whoever need not wait any more."""
        while self._staged:
            self._write_staged()
        for ticket in self._reorder.expired(self._clock.monotonic_ms()):
            ticket.fail(OutOfOrderSequence("the batch before this one did not arrive in time"))
        if self._written:
            self._publish()
        self._pump()

    def _publish(self) -> None:
        self._unsynced_bytes = 0
        self._pump()  # the followers sync meanwhile
        try:
            end = self._log.flush() if self._replica.config.flush == "fsync" else self._log.end_offset
        except Exception as error:
            self.end(error)
            raise
        self.core.flushed(end)
        self._settle()

    def _settle(self) -> None:
        """Publishes the high watermark and answers what it covers, and who asked for less."""
        reached = self.core.high_watermark
        self._replica.publish(reached)
        written, self._written = self._written, []
        for waiting in written:
            if waiting.end_offset <= reached or waiting.ticket.work.acks != ACKS_ALL:
                waiting.ticket.answer(waiting.reply)
            else:
                self._waiting.append(waiting)
        if self._waiting and any(waiting.end_offset <= reached for waiting in self._waiting):
            for waiting in self._waiting:
                if waiting.end_offset <= reached:
                    waiting.ticket.answer(waiting.reply)
            self._waiting = [waiting for waiting in self._waiting if waiting.end_offset > reached]

    def _reply(self, base_offset: int, append_time_ms: int, *, duplicate: bool = False) -> m.AppendReply:
        return m.AppendReply(
            base_offset=base_offset,
            append_time_ms=append_time_ms,
            leader_epoch=self.core.leader_epoch,
            high_watermark=self._replica.high_watermark,
            duplicate=duplicate,
        )

    def next_deadline_ms(self) -> float | None:
        """When `commit` has something to do at the latest, on the monotonic clock."""
        early_ms = self._reorder.next_deadline_ms()
        if self.alone:
            return early_ms
        tick_ms = self._clock.monotonic_ms() + (SETTINGS.watermark_delay_ms if self.core.has_news else TICK_MS)
        return tick_ms if early_ms is None else min(early_ms, tick_ms)

    # Followers ------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Sends every follower what it is to have, and asks the controller for what the ISR is to be."""
        if self.alone:
            return
        now_ms = self._clock.monotonic_ms()
        for follower in self.core.followers:
            actor = self._actors.get(follower)
            while actor and (request := self.core.next_request(follower, now_ms)) is not None:
                self._send(follower, actor, request)
        change = self.core.proposal(now_ms)
        if change is not None:
            self._propose(change)

    def records_deleted(self) -> None:
        """The log begins later: whoever needs what is gone begins there too."""
        self.core.log_start_offset = self._first_batch()

    def _first_batch(self) -> int:
        """Where the first batch begins, in which the log's start offset may lie."""
        start = self._log.start_offset
        spans = self._log.read(start, max_bytes=1, end_offset=self._log.end_offset)
        return self._log.bounds_of(spans[0])[0] if spans else start

    def _send(self, follower: int, actor: str, request: Probe | Truncate | Send) -> None:
        if not isinstance(request, Send):
            self._dispatch(follower, actor, request, self._remembered(request))
        elif request.max_bytes == 0:
            self.core.sent(follower, request, request.offset, 0)
            self._dispatch(follower, actor, request, b"")
        elif request.offset < self._log.cleaned_to > self._told.get((follower, request.incarnation), 0):
            self.core.failed(follower, request.round)  # aligning it again tells it
        elif request.catch_up:
            self._outbox.beside(
                lambda: self._read(request), lambda read, _: self._dispatch_read(follower, request, read)
            )
        else:
            if self._read_last is None or self._read_last[0] != (request.offset, request.leader_end_offset):
                self._read_last = ((request.offset, request.leader_end_offset), self._read(request))
            self._dispatch_read(follower, request, self._read_last[1])  # the other followers are sent the same

    def _remembered(self, request: Probe | Truncate) -> bytes:
        """What a follower cannot learn from the batches that it is about to get: the producers of what was deleted, or
        compacted."""
        cleaned_to = self._log.cleaned_to
        if not isinstance(request, Truncate) or not (request.anew or request.offset < cleaned_to):
            return b""
        below = max(request.offset, cleaned_to)
        return self._log.producers.below(below).to_bytes(below)

    def _read(self, request: Send) -> _Read | None:
        """The batches of a Send; None where they are not there any more."""
        in_hand = self._in_hand
        if in_hand is not None and in_hand[0] == request.offset and len(in_hand[1].batches) <= request.max_bytes:
            return in_hand[1]
        try:
            spans = self._log.read(request.offset, max_bytes=request.max_bytes, end_offset=self._log.end_offset)
            if not spans:
                return None
            stored = self._log.stored(spans)
            begins, end = self._log.bounds_of(spans[-1])
            if len(spans) > 1:
                begins, _ = self._log.bounds_of(spans[0])
            if begins < request.offset:
                return _Read(*self._log.from_inside(request.offset, spans))
            return _Read(stored if len(stored) > IN_HAND_BYTES else stored.read(), end)
        except RaystreamError as error:
            self._replica.note(f"cannot read from offset {request.offset} on for a follower", error)
            return None

    def _dispatch_read(self, follower: int, request: Send, read: _Read | None) -> None:
        actor = self._actors.get(follower)
        if self._replica.role is not self:
            return
        if read is None or actor is None:
            self.core.failed(follower, request.round)
            return
        self.core.sent(follower, request, read.end_offset, len(read.batches))
        self._dispatch(follower, actor, request, read.batches)
        if request.catch_up:
            self._pump()

    def _dispatch(self, follower: int, actor: str, request: Probe | Truncate | Send, batches: bytes | Stored) -> None:
        spec = self._replica.spec
        message = m.ReplicateRequest(
            topic_id=spec.topic_id,
            partition=spec.partition,
            request=request,
            log_start_offset=self._log.start_offset,
        )

        cleaned_to = self._log.cleaned_to

        def then(answer: Any, error: Exception | None) -> None:
            if isinstance(request, Truncate) and isinstance(answer, Answer) and not answer.gap:
                self._told[follower, answer.incarnation] = cleaned_to
            self._answered(follower, request, answer, error)

        self._outbox.replicate(actor, message, batches, SETTINGS.request_timeout_ms, then)

    def _answered(
        self,
        follower: int,
        request: Probe | Truncate | Send,
        answer: Answer | ProbeAnswer | None,
        error: Exception | None,
    ) -> None:
        if self._replica.role is not self:
            return
        if answer is None:
            self._replica.note(f"follower {follower} did not take over", error)
            self.core.failed(follower, request.round)
        elif isinstance(answer, ProbeAnswer):
            self.core.probed(answer)
        elif self.core.on_answer(answer):
            self._settle()
        self._pump()

    def _propose(self, change: IsrChange) -> None:
        spec = self._replica.spec
        request = m.AlterIsrRequest(
            topic_id=spec.topic_id,
            partition=spec.partition,
            leader=change.leader,
            leader_epoch=change.leader_epoch,
            partition_epoch=change.partition_epoch,
            isr=change.isr,
        )

        def then(_: Any, error: Exception | None) -> None:
            if self._replica.role is self and isinstance(error, RaystreamError) and not unknown_outcome(error):
                self._replica.note(f"the controller refuses the ISR {[broker for broker, _ in change.isr]}", error)
                self.core.refused(change, self._clock.monotonic_ms())

        self._outbox.alter_isr(spec.broker, request, SETTINGS.request_timeout_ms, then)

    def check_read(self) -> None:
        """See `Leader.check_read`."""
        self.core.check_read(self._clock.monotonic_ms(), self._replica.lease_until_ms())


def unknown_outcome(error: RaystreamError) -> bool:
    """Whether the call may have been carried out."""
    return isinstance(error, (ActorLost, RequestTimeout))


def record_of(spec: m.ReplicaSpec) -> PartitionRecord:
    """The partition as the controller has it."""
    return PartitionRecord(
        topic_id=spec.topic_id,
        partition=spec.partition,
        replicas=spec.replicas,
        isr=spec.isr,
        leader=spec.leader,
        leader_epoch=spec.leader_epoch,
        incarnation=spec.incarnation,
        elr=spec.elr,
        partition_epoch=spec.partition_epoch,
    )
