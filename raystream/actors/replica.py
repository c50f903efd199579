"""One replica of one partition inside a partition actor: its log, its waiting readers, and its role, to lead or follow.

Methods marked *writer* run on the actor's one writer thread, which owns the log; the others may run on any thread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa

from raystream import batch as b
from raystream import messages as m
from raystream.actors.following import Following, Replicated
from raystream.actors.leading import Append, Leading, Outbox
from raystream.actors.retention import Retention
from raystream.actors.writer import Ticket
from raystream.clock import Clock
from raystream.config import TopicConfig, build
from raystream.core.replication import Truncate
from raystream.errors import (
    CorruptLog,
    FencedLeaderEpoch,
    InvalidRecord,
    LogLost,
    NotLeader,
    OffsetOutOfRange,
    RaystreamError,
    RecordTooLarge,
    SchemaChanged,
    Unavailable,
    UnknownLeaderEpoch,
)
from raystream.storage.aborted import Aborted, overlapping
from raystream.storage.files import Files
from raystream.storage.log import Log
from raystream.storage.producer_state import ProducerState
from raystream.storage.recovery import holds_log
from raystream.storage.scrubbing import Damage, before_damage, remembered

logger = logging.getLogger("raystream.partition")

_LOOKS: Final = 3
FEW_ABORTED: Final = 32
"""So many are named without a look at where the spans end."""


class Replica:
    """A log and its role. `lease_until_ms` says until when, on the monotonic clock, the broker cannot be fenced."""

    role: Leading | Following

    def __init__(
        self,
        spec: m.ReplicaSpec,
        files: Files,
        clock: Clock,
        outbox: Outbox,
        lease_until_ms: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self.spec = spec
        self.name = f"{spec.topic}-{spec.partition}"
        self.clock = clock
        self.config = build(TopicConfig, spec.config)
        self.high_watermark = 0
        self.last_stable_offset = 0
        self.log: Log
        self.damage: tuple[Damage, ...] = ()
        """What is known to be bad in the log and is not repaired; the scrubber's to set."""
        self.beyond_repair: str | None = None
        """Why the log is to be filled anew from the others; the scrubber's to set."""
        self._files = files
        self._outbox = outbox
        self.lease_until_ms = lease_until_ms
        self._published = threading.Condition()
        self._parked = 0

    def open(self) -> None:
        """Recovers the log from disk. Raises the storage errors as they are, and LogLost where it is gone."""
        spec = self.spec
        if spec.opened and not holds_log(self._files, spec.directory):
            raise LogLost(
                f"{spec.directory} is gone or empty, and with it what this replica held: put it back (it is looked for "
                f"every few seconds), or let go of it with `raystream topic elect {spec.topic} --unclean`",
                path=spec.directory,
            )
        schemas = [pa.ipc.read_schema(pa.py_buffer(data)) for data in spec.schemas]
        self.log = Log.open(
            self._files,
            spec.directory,
            topic_id=spec.topic_id,
            partition=spec.partition,
            schemas=schemas,
            config=self.config,
            clock=self.clock,
            time_column=spec.time_column,
        )
        self.high_watermark = self.log.high_watermark
        self.damage = remembered(self._files, spec.directory)
        self._key_place = b.array_place(schemas[-1], self.key_column) if self.key_column is not None else -1
        self._retention = Retention(self)
        self._begin_role()

    @property
    def key_column(self) -> str | None:
        """The column by which the log is compacted; None: its topic is typed and has none."""
        return "key" if self.log.heads.raw_time_column() is not None else self.spec.key_column

    def close(self) -> None:
        """*writer* Ends waiting readers and closes the log cleanly."""
        self.role.end(NotLeader(f"{self.name} is being closed: try again"))
        with self._published:
            self._published.notify_all()
        self.log.close()

    def reconfigure(self, spec: m.ReplicaSpec) -> None:
        """*writer* Takes over a changed config, new schemas, and what the controller says of leader and ISR."""
        before = self.spec
        if (spec.leader_epoch, spec.partition_epoch) < (before.leader_epoch, before.partition_epoch):
            return  # overtaken on its way
        self.spec = spec
        self.config = build(TopicConfig, spec.config)
        self.log.set_config(self.config)
        for data in spec.schemas[len(before.schemas) :]:
            self.log.add_schema(pa.ipc.read_schema(pa.py_buffer(data)))
        if self.key_column is not None:
            self._key_place = b.array_place(self.log.heads.schemas[-1], self.key_column)
        leads = spec.leader == spec.broker_id
        same_life = (spec.incarnation, spec.broker_incarnation) == (before.incarnation, before.broker_incarnation)
        same_lead = not leads or spec.leader_epoch == before.leader_epoch
        if same_life and same_lead and leads == isinstance(self.role, Leading):
            self.role.take_over(spec)
            return
        self.role.end(NotLeader(f"{self.name} has another leader, or another leader epoch: try again"))
        self._begin_role()

    def _begin_role(self) -> None:
        self.role = Leading(self, self._outbox) if self.spec.leader == self.spec.broker_id else Following(self)
        self.role.commit()
        self.last_stable_offset = max(self.last_stable_offset, self._stable_below(self.high_watermark))

    # Roles ----------------------------------------------------------------------------------------------------------

    def offer(self, ticket: Ticket[Any]) -> None:
        """*writer* An append for a leader, or what a leader sends a follower."""
        wanted = Leading if isinstance(ticket.work, Append) else Following
        if isinstance(self.role, wanted):
            self.role.offer(ticket)
        elif wanted is Leading:
            ticket.fail(NotLeader(f"{self.name} is not led from here"))
        else:
            ticket.fail(FencedLeaderEpoch(f"{self.name} is led from here, since epoch {self.spec.leader_epoch}"))

    def commit(self) -> None:
        """*writer* Makes durable what was offered since the last commit, and answers."""
        self.role.commit()
        if isinstance(self.role, Leading):
            self._retention.turn()
        self.log.maybe_checkpoint()

    def next_deadline_ms(self) -> float | None:
        """*writer* When `commit` has something to do at the latest, on the monotonic clock."""
        return self.role.next_deadline_ms()

    def publish(self, high_watermark: int) -> None:
        """*writer* All below is committed, and on this disk: readers may have it."""
        if high_watermark <= self.high_watermark:
            return
        self.log.advance_high_watermark(high_watermark)
        stable = max(self.last_stable_offset, self._stable_below(high_watermark))
        with self._published:
            self.high_watermark = high_watermark
            self.last_stable_offset = stable
            self._published.notify_all()

    def _stable_below(self, high_watermark: int) -> int:
        return self.log.producers.last_stable_offset(high_watermark, self.log.start_offset)

    def note(self, what: str, error: Exception | None) -> None:
        """Something did not work that will be tried again."""
        logger.info("%s (broker %d): %s: %s", self.name, self.spec.broker_id, what, error)

    # Checking what comes in -----------------------------------------------------------------------------------------

    def check(self, request: m.AppendRequest, payload: Any) -> Append:
        """Everything about a batch that needs no state of the log: size, place, CRC, timestamps, row count."""
        self._check_epoch(request.leader_epoch)
        message = memoryview(payload).cast("B")
        if len(message) > self.config.max_batch_bytes:
            raise RecordTooLarge(
                f"the batch has {len(message):,} bytes; topic {self.spec.topic!r} takes up to "
                f"{self.config.max_batch_bytes:,} (max_batch_bytes)"
            )
        header = b.parse(message)
        b.check_producer_crc(message, header)
        rows = b.row_count(message, header)
        if header.topic_id != self.spec.topic_id or header.partition != self.spec.partition:
            raise InvalidRecord("the batch was encoded for another topic or partition")
        if rows != header.last_offset_delta + 1 or header.message_bytes != len(message):
            raise InvalidRecord(f"the batch holds {rows} rows and its header counts {header.last_offset_delta + 1}")
        transactional = b.ATTR_TRANSACTIONAL if header.producer_id != b.NO_PRODUCER_ID else 0
        if header.attributes & ~(b.ATTR_APPEND_TIME | transactional):
            raise InvalidRecord(f"a producer may not set the batch attributes {header.attributes:#x}")
        newest = len(self.spec.schemas)
        if header.schema_id != newest:
            raise SchemaChanged(f"topic {self.spec.topic!r} has schema {newest}, the batch schema {header.schema_id}")
        if self.config.compacts and self._key_place >= 0 and (nulls := b.null_count(message, self._key_place)):
            raise InvalidRecord(
                f"{nulls} of {rows} records have no key: topic {self.spec.topic!r} is compacted and keeps the last of "
                "each key"
            )
        ahead_ms = header.max_timestamp_ms - self.clock.now_ms()
        if ahead_ms > self.config.max_timestamp_ahead_ms:
            raise InvalidRecord(
                f"a timestamp lies {ahead_ms:,} ms in the future; topic {self.spec.topic!r} takes up to "
                f"{self.config.max_timestamp_ahead_ms:,} (max_timestamp_ahead_ms)"
            )
        return Append(self, message, header, request.age_ms, request.acks, request.expected_offset)

    def marker(self, request: m.WriteMarkerRequest) -> Append:
        """The control batch that a coordinator asks for, as an append."""
        self._check_epoch(request.leader_epoch)
        schemas = self.log.heads.schemas
        message = b.encode_marker(
            schemas[-1],
            topic_id=self.spec.topic_id,
            partition=self.spec.partition,
            schema_id=len(schemas),
            producer_id=request.producer_id,
            producer_epoch=request.producer_epoch,
            commit=request.commit,
            now_ms=self.clock.now_ms(),
        )
        return Append(self, message, b.parse(message), 0)

    def check_replicated(self, request: m.ReplicateRequest, payload: Any) -> Replicated:
        """A leader's batches, taken apart; every CRC is checked before any of them is written. With the order where to
        cut the log may come producers instead."""
        if isinstance(request.request, Truncate):
            data = bytes(payload)
            return Replicated(self, request, (), ProducerState.from_bytes(data, self.clock)[0] if data else None)
        batches = []
        for header, message in b.walk(memoryview(payload).cast("B")):
            b.check_header_crc(message, header)
            b.check_producer_crc(message, header)
            batches.append((message, header))
        return Replicated(self, request, batches)

    # Reading --------------------------------------------------------------------------------------------------------

    def fetch(self, request: m.FetchRequest, max_parked: int) -> m.FetchReply:
        """Batches from the offset asked for, below the high watermark, or the last stable offset; waits for the first
        where it may."""
        self._check_epoch(request.leader_epoch)
        self._check_reads(request.follower)
        if self._readable_below(request) <= request.offset <= self.high_watermark and request.max_wait_ms > 0:
            self._await_records(request, max_parked)
        stable, high_watermark = self.last_stable_offset, self.high_watermark
        aborted = self.log.producers.aborted.entries  # before the look-up: a deletion takes them with their records
        start = self.log.start_offset
        self._check_unparted(request)
        if not start <= request.offset <= high_watermark:
            if request.offset > high_watermark and isinstance(self.role, Following):
                raise NotLeader(f"this follower of {self.name} knows of offsets below {high_watermark} only")
            raise OffsetOutOfRange(
                f"offset {request.offset} of {self.name} lies outside {start} to {high_watermark}",
                offset=request.offset,
                log_start_offset=start,
                high_watermark=high_watermark,
            )
        end = stable if request.committed else high_watermark
        end = end if request.end_offset is None else min(end, request.end_offset)
        spans, chunks = self._found(request, end) if request.offset < end else ((), ())
        return m.FetchReply(
            spans=spans if request.mapped else (),
            chunks=chunks,
            schema_ids=() if request.mapped else tuple(span.schema_id for span in spans),
            high_watermark=high_watermark,
            last_stable_offset=stable,
            log_start_offset=start,
            leader_epoch=self.spec.leader_epoch,
            aborted=tuple((*entry,) for entry in self._aborted(aborted, request, spans, end)),
        )

    def _check_unparted(self, request: m.FetchRequest) -> None:
        """Raises OffsetOutOfRange where the log does not hold what the reader has read before."""
        if request.last_epoch == m.NO_EPOCH or isinstance(self.role, Following):
            return
        parted = self.log.epochs.end_of(request.last_epoch, self.log.end_offset)
        if parted is not None and parted < request.offset:
            raise OffsetOutOfRange(
                f"offset {request.offset} of {self.name} was read in leader epoch {request.last_epoch}, of which this "
                f"log holds what lies below {parted}",
                offset=request.offset,
                diverging_offset=parted,
            )

    def _found(self, request: m.FetchRequest, end: int) -> tuple[tuple[m.Span, ...], tuple[bytes, ...]]:
        """Where the batches stand, and, unless the reader maps them, their bytes; looked for again where compaction has
        put another file in the place of theirs meanwhile."""
        for again in range(_LOOKS):
            spans = self._healthy(self.log.read(request.offset, max_bytes=request.max_bytes, end_offset=end))
            if request.mapped:
                break
            try:
                return spans, tuple(self.log.read_bytes(span) for span in spans)
            except OffsetOutOfRange:
                if again + 1 == _LOOKS or request.offset < self.log.start_offset:
                    raise
        return spans, ()

    def _readable_below(self, request: m.FetchRequest) -> int:
        return self.last_stable_offset if request.committed else self.high_watermark

    def _aborted(
        self, known: tuple[Aborted, ...], request: m.FetchRequest, spans: tuple[m.Span, ...], end: int
    ) -> tuple[Aborted, ...]:
        """The aborted transactions that a reader of the spans has to know."""
        found = overlapping(known, request.offset, end) if request.committed and spans else ()
        if len(found) > FEW_ABORTED:
            with contextlib.suppress(StopIteration, FileNotFoundError, CorruptLog):  # deleted, or bad, meanwhile
                found = overlapping(found, request.offset, min(end, self.log.bounds_of(spans[-1])[1]))
        return found

    def _healthy(self, spans: tuple[m.Span, ...]) -> tuple[m.Span, ...]:
        if not self.damage:
            return spans
        healthy = before_damage(spans, self.damage)
        if spans and not healthy:
            bad = next(damage for damage in self.damage if damage.path == spans[0].path)
            raise self.damaged(CorruptLog(str(bad), path=bad.path, position=bad.position, offset=bad.offset))
        return healthy

    def damaged(self, error: CorruptLog) -> RaystreamError:
        """What a reader is told of bad bytes: to try again where other replicas have them whole."""
        if len(self.spec.replicas) == 1:
            return error
        return Unavailable(f"{self.name} has to be repaired from another replica: try again: {error}")

    def _await_records(self, request: m.FetchRequest, max_parked: int) -> None:
        with self._published:
            if self._parked >= max_parked:
                return
            self._parked += 1
            try:
                self._published.wait_for(
                    lambda: self._readable_below(request) > request.offset, timeout=request.max_wait_ms / 1000
                )
            finally:
                self._parked -= 1

    def list_offset(self, request: m.ListOffsetsRequest) -> m.OffsetReply:
        """The offset for a timestamp; the end of what is read when every record is older."""
        self._check_epoch(request.leader_epoch)
        self._check_reads(follower=False)
        epoch = self.spec.leader_epoch
        if request.timestamp_ms == m.EARLIEST_TIMESTAMP:
            return m.OffsetReply(offset=self.log.start_offset, leader_epoch=epoch, compacted=self.log.compacted)
        end = self.last_stable_offset if request.committed else self.high_watermark
        if request.timestamp_ms == m.LATEST_TIMESTAMP:
            return m.OffsetReply(offset=end, leader_epoch=epoch)
        found = self.log.offset_for_timestamp(request.timestamp_ms, end_offset=end)
        if found is None:
            return m.OffsetReply(offset=end, leader_epoch=epoch)
        return m.OffsetReply(offset=found[0], timestamp_ms=found[1], leader_epoch=epoch)

    def delete_before(self, before_offset: int) -> m.OffsetReply:
        """*writer* Moves the log start offset; -1 means up to the high watermark."""
        self._check_reads(follower=False)
        target = self.high_watermark if before_offset == -1 else before_offset
        if not 0 <= target <= self.high_watermark:
            raise OffsetOutOfRange(f"cannot delete before offset {target}: {self.name} ends at {self.high_watermark}")
        if target > self.log.start_offset:
            self.move_start(target)
        return m.OffsetReply(offset=self.log.start_offset, leader_epoch=self.spec.leader_epoch)

    def move_start(self, offset: int, *, active_too: bool = False) -> None:
        """*writer* Deletes what lies below the offset; the followers hear of it."""
        self.log.delete_before(offset, active_too=active_too)
        if isinstance(self.role, Leading):
            self.role.records_deleted()

    def status(self) -> m.ReplicaStatus:
        return m.ReplicaStatus(
            topic_id=self.spec.topic_id,
            partition=self.spec.partition,
            leader_epoch=self.spec.leader_epoch,
            start_offset=self.log.start_offset,
            end_offset=self.high_watermark,
            high_watermark=self.high_watermark,
            size_bytes=self.log.size_bytes,
            segments=self.log.segment_count,
            leading=isinstance(self.role, Leading),
            error=self.role.trouble or self.beyond_repair,
        )

    def _check_reads(self, follower: bool) -> None:
        if isinstance(self.role, Leading):
            self.role.check_read()
        elif not follower:
            raise NotLeader(f"{self.name} is led by broker {self.spec.leader}, not from here")

    def _check_epoch(self, epoch: int) -> None:
        ours = self.spec.leader_epoch
        if epoch == m.NO_EPOCH or epoch == ours:
            return
        if epoch < ours:
            raise FencedLeaderEpoch(f"{self.name} is at leader epoch {ours}; the request carries {epoch}")
        raise UnknownLeaderEpoch(f"{self.name} is at leader epoch {ours} here; the request carries {epoch}")
