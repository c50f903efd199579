"""The part of a log that any thread may use: where batches stand, and what stands there."""

from __future__ import annotations

from dataclasses import replace

from raystream.errors import OffsetOutOfRange
from raystream.messages import Span
from raystream.storage import reading, rewriting
from raystream.storage.appending import SchemaHeads
from raystream.storage.files import Files
from raystream.storage.segment import Segment
from raystream.storage.stored import Stored, read_span


class ReadableLog:
    """Looks at what the log's writer thread has published."""

    start_offset: int
    end_offset: int
    heads: SchemaHeads
    _files: Files
    _segments: tuple[Segment, ...]
    _time_column: str | None

    @property
    def size_bytes(self) -> int:
        """What the segments take on the disk, without indexes."""
        return sum(segment.tail.size for segment in self._segments)

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._segments

    def read(self, offset: int, *, max_bytes: int, end_offset: int) -> tuple[Span, ...]:
        """Where whole batches stand, from the one that contains `offset` on: one span per segment, those that begin
        below `end_offset`, `max_bytes` at most but one batch at least; () at the end.

        Checks header CRCs of what it looks at, at the edges of the range; the reader of the bytes checks the others.
        Raises OffsetOutOfRange and CorruptLog.
        """
        end_offset = min(end_offset, self.end_offset)

        def look_up() -> tuple[Span, ...]:
            segments = self._segments  # before the check: a deletion moves the start first
            self._check_range(offset)
            if offset >= end_offset:
                return ()
            return reading.spans(segments, offset, max_bytes=max_bytes, end_offset=end_offset)

        return reading.while_there(look_up)

    def read_bytes(self, span: Span) -> bytes:
        """The bytes of a span. Raises OffsetOutOfRange where they were deleted meanwhile."""
        return read_span(self._files, span)

    def stored(self, spans: tuple[Span, ...]) -> Stored:
        """The bytes of spans, for whoever passes them on."""
        return Stored(self._files, spans)

    @property
    def time_column(self) -> str | None:
        """The column that holds records' timestamps."""
        return self._time_column

    def from_inside(self, offset: int, spans: tuple[Span, ...]) -> tuple[bytes, int]:
        """The first of the batches in `spans`, which begins below `offset`: what it holds from there on, as a batch of
        its own, and the offset that follows it. A follower's log may end inside of what its leader has compacted since,
        or has not. Raises OffsetOutOfRange where it was deleted meanwhile, and CorruptBatch.
        """
        segment = next((s for s in self._segments if s.path == spans[0].path), None)
        if segment is None:
            raise OffsetOutOfRange(f"{spans[0].path} was deleted: fetch again")
        header = segment.header_at(spans[0].position)
        message = read_span(self._files, replace(spans[0], length=header.message_bytes))
        schema = self.heads.schemas[header.schema_id - 1]
        shorter = rewriting.from_offset(memoryview(message), header, schema, self._time_column, offset)
        return shorter, header.next_offset

    def bounds_of(self, span: Span) -> tuple[int, int]:
        """The first offset of a span's batches, and the one that follows them. Raises
        OffsetOutOfRange where they were deleted meanwhile."""
        segment = next((s for s in self._segments if s.path == span.path), None)
        if segment is None:
            raise OffsetOutOfRange(f"{span.path} was deleted: fetch again")
        tail, end = segment.tail, span.position + span.length
        after = tail.end_offset if end == tail.size else segment.header_at(end).base_offset
        return segment.header_at(span.position).base_offset, after

    def offset_for_timestamp(self, timestamp_ms: int, *, end_offset: int) -> tuple[int, int] | None:
        """The first record below `end_offset` whose timestamp is `timestamp_ms` or later, as (offset, timestamp)."""
        return reading.while_there(
            lambda: reading.offset_for_timestamp(
                self._segments,
                timestamp_ms,
                start_offset=self.start_offset,
                end_offset=min(end_offset, self.end_offset),
                schemas=self.heads.schemas,
                time_column=self._time_column,
            ),
        )

    def _check_range(self, offset: int) -> None:
        start, end = self.start_offset, self.end_offset
        if not start <= offset <= end:
            raise OffsetOutOfRange(
                f"offset {offset} lies outside {start} to {end}", offset=offset, log_start_offset=start, end_offset=end
            )
