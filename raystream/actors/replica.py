"""One replica of one partition inside a partition actor: its log, its early batches, its waiting readers.

Methods marked *writer* run on the actor's one writer thread, which owns the log; the others may run on any thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from raystream import batch as b
from raystream import messages as m
from raystream.actors.writer import Ticket
from raystream.clock import Clock
from raystream.config import TopicConfig, build
from raystream.core.reorder import ReorderBuffer
from raystream.errors import (
    FencedLeaderEpoch,
    InvalidRecord,
    OffsetOutOfRange,
    OutOfOrderSequence,
    RecordTooLarge,
    SchemaChanged,
    StorageError,
    UnknownLeaderEpoch,
)
from raystream.storage.files import Files
from raystream.storage.log import Log
from raystream.storage.producer_state import Duplicate

GROUP_COMMIT_BYTES: Final = 1 << 20
"""A sync waits for no more than this: beyond it, sending the next batches while one is synced gains more."""
REORDER_WAIT_MS: Final = 2_000.0
"""How long an early batch waits for the one before it."""


@dataclass(frozen=True, slots=True)
class Append:
    """An append as it waits for the writer: checked, not yet placed."""

    replica: Replica
    message: memoryview
    header: b.BatchHeader
    age_ms: int


class Replica:
    """The leader's side of a partition."""

    def __init__(self, spec: m.ReplicaSpec, files: Files, clock: Clock) -> None:
        self.spec = spec
        self.log: Log
        self._files = files
        self._clock = clock
        self._config = build(TopicConfig, spec.config)
        self._reorder: ReorderBuffer[Ticket[Append]] = ReorderBuffer(max_wait_ms=REORDER_WAIT_MS)
        self._staged: list[Ticket[Append]] = []
        self._staged_producers: set[int] = set()
        self._written: list[tuple[Ticket[Append], m.AppendReply]] = []
        self._unsynced_bytes = 0
        self._published = threading.Condition()
        self._parked = 0
        self._high_watermark = 0

    def open(self) -> None:
        """Recovers the log from disk. Raises the storage errors as they are."""
        spec = self.spec
        schemas = [pa.ipc.read_schema(pa.py_buffer(data)) for data in spec.schemas]
        self.log = Log.open(
            self._files,
            spec.directory,
            topic_id=spec.topic_id,
            partition=spec.partition,
            schemas=schemas,
            config=self._config,
            clock=self._clock,
            time_column=spec.time_column,
        )
        self._high_watermark = self.log.flush()
        self.log.advance_high_watermark(self._high_watermark)

    def close(self) -> None:
        """*writer* Ends waiting readers and closes the log cleanly."""
        for ticket in [*self._staged, *self._reorder.clear()]:
            ticket.fail(OutOfOrderSequence("the replica closed while the batch waited for the one before it"))
        self._staged = []
        with self._published:
            self._published.notify_all()
        self.log.close()

    def reconfigure(self, spec: m.ReplicaSpec) -> None:
        """*writer* Takes over a changed config, new schemas and a new epoch."""
        self._config = build(TopicConfig, spec.config)
        self.log.set_config(self._config)
        for data in spec.schemas[len(self.spec.schemas) :]:
            self.log.add_schema(pa.ipc.read_schema(pa.py_buffer(data)))
        self.spec = spec

    # Appending ------------------------------------------------------------------------------------------------------

    def check(self, request: m.AppendRequest, payload: Any) -> Append:
        """Everything about a batch that needs no state of the log: size, place, CRC, timestamps, row count."""
        self._check_epoch(request.leader_epoch)
        message = memoryview(payload).cast("B")
        if len(message) > self._config.max_batch_bytes:
            raise RecordTooLarge(
                f"the batch has {len(message):,} bytes; topic {self.spec.topic!r} takes up to "
                f"{self._config.max_batch_bytes:,} (max_batch_bytes)"
            )
        header = b.parse(message)
        b.check_producer_crc(message, header)
        rows = b.row_count(message, header)
        if header.topic_id != self.spec.topic_id or header.partition != self.spec.partition:
            raise InvalidRecord("the batch was encoded for another topic or partition")
        if rows != header.last_offset_delta + 1 or header.message_bytes != len(message):
            raise InvalidRecord(f"the batch holds {rows} rows and its header counts {header.last_offset_delta + 1}")
        if header.attributes & ~(b.ATTR_APPEND_TIME):
            raise InvalidRecord(f"a producer may not set the batch attributes {header.attributes:#x}")
        newest = len(self.spec.schemas)
        if header.schema_id != newest:
            raise SchemaChanged(f"topic {self.spec.topic!r} has schema {newest}, the batch schema {header.schema_id}")
        ahead_ms = header.max_timestamp_ms - self._clock.now_ms()
        if ahead_ms > self._config.max_timestamp_ahead_ms:
            raise InvalidRecord(
                f"a timestamp lies {ahead_ms:,} ms in the future; topic {self.spec.topic!r} takes up to "
                f"{self._config.max_timestamp_ahead_ms:,} (max_timestamp_ahead_ms)"
            )
        return Append(self, message, header, request.age_ms)

    def offer(self, ticket: Ticket[Append]) -> None:
        """*writer* Places a batch: stages it, answers a duplicate, or keeps an early one for its turn."""
        work = ticket.work
        producer_id = work.header.producer_id
        if producer_id in self._staged_producers:
            self._write_staged()
        try:
            verdict = None
            if producer_id != b.NO_PRODUCER_ID:
                verdict = self.log.producers.check(work.header, age_ms=work.age_ms)
        except OutOfOrderSequence as error:
            self._keep_early(ticket, error)
            return
        except Exception as error:
            ticket.fail(error)
            return
        if isinstance(verdict, Duplicate):
            reply = self._reply(verdict.base_offset, verdict.append_time_ms, duplicate=True)
            self._written.append((ticket, reply))
            return
        self._staged.append(ticket)
        if producer_id != b.NO_PRODUCER_ID:
            self._staged_producers.add(producer_id)

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
            results = self.log.append(
                [(ticket.work.message, ticket.work.header) for ticket in staged],
                leader_epoch=self.spec.leader_epoch,
                high_watermark=self._high_watermark,
            )
        except Exception as error:
            for ticket in staged:
                ticket.fail(error)
            if isinstance(error, StorageError) and error.retriable:
                return  # the disk is full: the log stands as before, readers go on
            raise
        for ticket, result in zip(staged, results, strict=True):
            self._written.append((ticket, self._reply(result.base_offset, result.append_time_ms)))
            self._unsynced_bytes += ticket.work.header.message_bytes
        if self._unsynced_bytes >= GROUP_COMMIT_BYTES:
            self._publish()
        for ticket in staged:
            header = ticket.work.header
            if header.producer_id != b.NO_PRODUCER_ID:
                early = self._reorder.release_after(header.producer_id, b.advance_sequence(header.last_sequence, 1))
                if early is not None:
                    self.offer(early)

    def commit(self) -> None:
        """*writer* Writes and syncs what was offered since the last commit, publishes it and answers its callers."""
        while self._staged:
            self._write_staged()
        for ticket in self._reorder.expired(self._clock.monotonic_ms()):
            ticket.fail(OutOfOrderSequence("the batch before this one did not arrive in time"))
        if self._written:
            self._publish()
        self.log.maybe_checkpoint()

    def _publish(self) -> None:
        written, self._written = self._written, []
        self._unsynced_bytes = 0
        try:
            end = self.log.flush() if self._config.flush == "fsync" else self.log.end_offset
        except Exception as error:
            for ticket, _ in written:
                ticket.fail(error)
            raise
        self.log.advance_high_watermark(end)
        with self._published:
            self._high_watermark = end
            self._published.notify_all()
        for ticket, reply in written:
            ticket.answer(reply)

    def next_deadline_ms(self) -> float | None:
        """*writer* When the next early batch has waited long enough, on the monotonic clock."""
        return self._reorder.next_deadline_ms()

    def _reply(self, base_offset: int, append_time_ms: int, *, duplicate: bool = False) -> m.AppendReply:
        return m.AppendReply(
            base_offset=base_offset,
            append_time_ms=append_time_ms,
            leader_epoch=self.spec.leader_epoch,
            high_watermark=self._high_watermark,
            duplicate=duplicate,
        )

    # Reading --------------------------------------------------------------------------------------------------------

    def fetch(self, request: m.FetchRequest, max_parked: int) -> m.FetchReply:
        """Batches from the offset asked for, below the high watermark; waits for the first where it may."""
        self._check_epoch(request.leader_epoch)
        if request.offset == self._high_watermark and request.max_wait_ms > 0:
            self._await_records(request, max_parked)
        high_watermark = self._high_watermark
        start = self.log.start_offset
        if not start <= request.offset <= high_watermark:
            raise OffsetOutOfRange(
                f"offset {request.offset} of {self.spec.topic}-{self.spec.partition} lies outside "
                f"{start} to {high_watermark}",
                offset=request.offset,
                log_start_offset=start,
                high_watermark=high_watermark,
            )
        end = high_watermark if request.end_offset is None else min(high_watermark, request.end_offset)
        spans: tuple[m.Span, ...] = ()
        if request.offset < end:
            spans = self.log.read(request.offset, max_bytes=request.max_bytes, end_offset=end)
        return m.FetchReply(
            spans=spans if request.mapped else (),
            chunks=() if request.mapped else tuple(self.log.read_bytes(span) for span in spans),
            schema_ids=() if request.mapped else tuple(span.schema_id for span in spans),
            high_watermark=high_watermark,
            last_stable_offset=high_watermark,
            log_start_offset=start,
            leader_epoch=self.spec.leader_epoch,
        )

    def _await_records(self, request: m.FetchRequest, max_parked: int) -> None:
        with self._published:
            if self._parked >= max_parked:
                return
            self._parked += 1
            try:
                self._published.wait_for(
                    lambda: self._high_watermark > request.offset, timeout=request.max_wait_ms / 1000
                )
            finally:
                self._parked -= 1

    def list_offset(self, request: m.ListOffsetsRequest) -> m.OffsetReply:
        """The offset for a timestamp; the high watermark when every record is older."""
        self._check_epoch(request.leader_epoch)
        epoch = self.spec.leader_epoch
        if request.timestamp_ms == m.EARLIEST_TIMESTAMP:
            return m.OffsetReply(offset=self.log.start_offset, leader_epoch=epoch)
        if request.timestamp_ms == m.LATEST_TIMESTAMP:
            return m.OffsetReply(offset=self._high_watermark, leader_epoch=epoch)
        found = self.log.offset_for_timestamp(request.timestamp_ms, end_offset=self._high_watermark)
        if found is None:
            return m.OffsetReply(offset=self._high_watermark, leader_epoch=epoch)
        return m.OffsetReply(offset=found[0], timestamp_ms=found[1], leader_epoch=epoch)

    def delete_before(self, before_offset: int) -> m.OffsetReply:
        """*writer* Moves the log start offset; -1 means up to the high watermark."""
        target = self._high_watermark if before_offset == -1 else before_offset
        if not 0 <= target <= self._high_watermark:
            raise OffsetOutOfRange(
                f"cannot delete before offset {target}: {self.spec.topic}-{self.spec.partition} ends at "
                f"{self._high_watermark}"
            )
        if target > self.log.start_offset:
            self.log.delete_before(target)
        return m.OffsetReply(offset=self.log.start_offset, leader_epoch=self.spec.leader_epoch)

    def status(self) -> m.ReplicaStatus:
        return m.ReplicaStatus(
            topic_id=self.spec.topic_id,
            partition=self.spec.partition,
            leader_epoch=self.spec.leader_epoch,
            start_offset=self.log.start_offset,
            end_offset=self._high_watermark,
            high_watermark=self._high_watermark,
            size_bytes=self.log.size_bytes,
            segments=self.log.segment_count,
        )

    def _check_epoch(self, epoch: int) -> None:
        ours = self.spec.leader_epoch
        if epoch == m.NO_EPOCH or epoch == ours:
            return
        name = f"{self.spec.topic}-{self.spec.partition}"
        if epoch < ours:
            raise FencedLeaderEpoch(f"{name} is at leader epoch {ours}; the request carries {epoch}")
        raise UnknownLeaderEpoch(f"{name} is at leader epoch {ours} here; the request carries {epoch}")
