"""Where `send` puts records: per topic one open chunk, cut off by size, by `linger_ms`, or by a flush.

`send` costs a few list appends under one lock; everything else about a record happens a chunk at a time on the loop.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pyarrow as pa

from raystream import batch as b
from raystream import messages as m
from raystream.client.ledger import Ledger
from raystream.client.rows import RowCheck
from raystream.client.sent import Chunk, Piece
from raystream.clock import Clock
from raystream.config import ProducerConfig, TopicConfig
from raystream.errors import RaystreamError, RecordTooLarge

RECORD_BYTES: Final = 24
"""What a raw record costs beside key, value and headers: offsets, validity and timestamp."""
HEADER_BYTES: Final = 12
_RESERVE_BYTES: Final = 16 * 1024
"""Room is taken in steps, so that many topics with little in them do not fill the buffer."""
_PADDING_BYTES: Final = 16
"""Per buffer of a message, for its alignment."""
FRAME_BATCHES: Final = 4
"""A frame's batches hold up to so many times `max_batch_bytes`: large messages move at memory speed."""


class Sink:
    """One topic as a producer writes to it. Its fields are set once, but for the chunks (under the ledger's lock)
    and the number of partitions (by the loop)."""

    def __init__(self, topic: m.TopicMetadata, schema: pa.Schema, config: ProducerConfig, closed: Chunk) -> None:
        self.name = topic.name
        self.topic_id = topic.topic_id
        self.typed = topic.typed
        self.key = topic.key
        self.time = topic.time
        self.schema = schema
        self.schema_id = max(len(topic.schemas), 1)
        self.partitions = len(topic.partitions)
        self.rows = RowCheck(topic.name, schema, topic.time) if topic.typed else None
        settings: Mapping[str, Any] = topic.config
        known = {field.name for field in dataclasses.fields(TopicConfig)}
        self.config = TopicConfig(**{name: value for name, value in settings.items() if name in known})
        self.takes_bytes = not topic.typed and not self.config.compacts
        """Whether any value, with or without a key, is a record."""
        self.attributes = b.ATTR_APPEND_TIME if self.config.timestamp_type == "append" else 0
        room = self.config.max_batch_bytes - _overhead(schema)
        self.max_record_bytes = room
        self.chunk_bytes = min(config.max_batch_bytes, room)
        self.frame_bytes = min(config.max_batch_bytes * FRAME_BATCHES, room)
        self.no_chunk = closed
        """Stands for `open` while there is none: it has no room, so that the next record makes one."""
        self.open = closed
        self.sealed: deque[Chunk | list[Piece]] = deque()
        """What is ready for the loop, in order: chunks to be cut, and pieces of frames."""
        self.gone: RaystreamError | None = None
        """Why the topic takes nothing more: it was deleted, or created anew."""

    def too_large(self, nbytes: int) -> RecordTooLarge:
        return RecordTooLarge(
            f"a record of {nbytes:,} bytes is too large for topic {self.name!r}, whose batches hold up to "
            f"{self.config.max_batch_bytes:,} bytes with their header (max_batch_bytes)"
        )


def _overhead(schema: pa.Schema) -> int:
    """What a message costs beside its rows."""
    empty = pa.record_batch([pa.array([], field.type) for field in schema], schema=schema)
    fields = b.ProducerFields(
        topic_id="0" * 32, partition=0, last_offset_delta=0, first_timestamp_ms=0, max_timestamp_ms=0
    )
    message = b.encode(empty, fields)
    header = int.from_bytes(message[4:8], "little") + b.FRAME_PREFIX_BYTES
    return len(message) + header // 8 + _PADDING_BYTES * 3 * (len(schema) + 1)


class Accumulator:
    """The open chunks of one producer. Thread-safe."""

    def __init__(
        self,
        clock: Clock,
        ledger: Ledger,
        is_loop: Callable[[], bool],
        opened: Callable[[Sink, Chunk], None],
        sealed: Callable[[Sink], None],
    ) -> None:
        self._clock = clock
        self._ledger = ledger
        self._lock = ledger.lock
        self._is_loop = is_loop
        self._opened = opened
        self._sealed = sealed
        self.no_chunk = Chunk(ledger, "", 0.0, is_loop)
        self.transaction = 0
        """The number of the transaction to which belongs what is added now; 0 without transactions."""

    def with_room(self, sink: Sink, nbytes: int) -> Chunk:
        """*lock held* The open chunk, with room for a record: the same one, or a new one. Waits for room.

        Raises RecordTooLarge, BufferFull, Closed, and why the topic is gone.
        """
        if nbytes > sink.max_record_bytes:
            raise sink.too_large(nbytes)
        deadline: float | None = None
        while True:
            self._ledger.check_open()
            if sink.gone is not None:
                raise sink.gone
            chunk = sink.open
            if chunk.left >= nbytes:  # another thread made room
                return chunk
            if chunk is not sink.no_chunk and chunk.charge - chunk.left + nbytes > sink.chunk_bytes:
                self._seal(sink, chunk)
                self._sealed(sink)
                chunk = sink.no_chunk
            held = chunk.charge - chunk.left
            wanted = max(nbytes, min(_RESERVE_BYTES, sink.chunk_bytes - held)) - chunk.left
            if self._ledger.try_reserve(wanted):
                if chunk is sink.no_chunk:
                    now_ms = self._clock.monotonic_ms()
                    chunk = Chunk(self._ledger, sink.name, now_ms, self._is_loop, self.transaction)
                    sink.open = chunk
                    self._ledger.owe(chunk)
                    self._opened(sink, chunk)
                chunk.charge += wanted
                chunk.left += wanted
                return chunk
            if chunk is not sink.no_chunk:
                self._seal(sink, chunk)  # the buffer is full: what is there goes out now
            self._sealed(sink)
            if deadline is None:
                deadline = self._ledger.block_deadline(may_block=not self._is_loop())
            self._ledger.wait_for_room(wanted, deadline)

    def _seal(self, sink: Sink, chunk: Chunk) -> None:
        """*lock held* The chunk takes no more records."""
        sink.open = sink.no_chunk
        self._ledger.release(chunk.left)
        chunk.charge -= chunk.left
        chunk.left = 0
        chunk.open_records = chunk.rows
        sink.sealed.append(chunk)

    def add_pieces(self, sink: Sink, pieces: list[Piece]) -> None:
        """Takes a frame's pieces, for which there is room, behind the records that were added before."""
        with self._lock:
            self._ledger.check_open()
            if sink.open is not sink.no_chunk:
                self._seal(sink, sink.open)
            for piece in pieces:
                piece.transaction = self.transaction
            sink.sealed.append(pieces)
            self._sealed(sink)

    def seal(self, sink: Sink) -> None:
        """What was added so far goes out without lingering."""
        with self._lock:
            if sink.open is not sink.no_chunk:
                self._seal(sink, sink.open)
                self._sealed(sink)

    def end_transaction(self, sinks: Iterable[Sink]) -> int:
        """All that was added so far is of the transactions up to the one whose number is returned; what comes now is
        of the next."""
        with self._lock:
            for sink in sinks:
                if sink.open is not sink.no_chunk:
                    self._seal(sink, sink.open)
                    self._sealed(sink)
            self.transaction += 1
            return self.transaction - 1

    def take(self, sink: Sink, *, open_too: bool) -> list[Chunk | list[Piece]]:
        """*loop* What is ready, in order; with `open_too` also the chunk that is not full."""
        with self._lock:
            if open_too and sink.open is not sink.no_chunk:
                self._seal(sink, sink.open)
            ready = list(sink.sealed)
            sink.sealed.clear()
        return ready
