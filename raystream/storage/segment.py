"""One segment: a file that is a plain Arrow IPC stream (a schema message, then batches), and what is known about it.

One thread writes; any thread may look up meanwhile. What a look-up relies on is published in an order that makes this
safe: index and recent batches first, the tail (end offset and size, one object) last; a look-up takes the tail first.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from raystream import batch as b
from raystream.errors import CorruptBatch, CorruptLog, NewerFormat
from raystream.explicit import is_explicit_schema
from raystream.schema import read_schema_message
from raystream.storage.files import Files
from raystream.storage.index import NO_TIMESTAMP, Coverage, Index, read_index

LOG_SUFFIX: Final = ".log"
INDEX_SUFFIX: Final = ".index"
_RECENT_BATCHES: Final = 1024


class Identity(NamedTuple):
    """Whose log it is: every batch and every segment head says so too."""

    topic_id: str
    partition: int


class Tail(NamedTuple):
    """Where a segment ends. `first_append_ms` is the append time of its first batch (0: it has none), `last_append_ms`
    the greatest of its batches."""

    end_offset: int
    size: int
    max_timestamp_ms: int = NO_TIMESTAMP
    first_append_ms: int = 0
    last_append_ms: int = 0


class SegmentName(NamedTuple):
    """What a segment file's name says."""

    base_offset: int
    generation: int = 0


class Placed(NamedTuple):
    """A batch as it stands in a segment."""

    position: int
    header: b.BatchHeader


def segment_name(base_offset: int, generation: int = 0) -> str:
    """The file name without suffix: names sort as offsets do. What compaction writes has a generation from 1 on, so
    that a name never stands for other bytes than before."""
    return f"{base_offset:020d}" if not generation else f"{base_offset:020d}-{generation:06d}"


def timestamp_of(header: b.BatchHeader) -> int:
    """The greatest record timestamp of a batch: its append time where the topic says so."""
    return header.append_time_ms if header.attributes & b.ATTR_APPEND_TIME else header.max_timestamp_ms


class Segment:
    """A segment of one log. Made by `new` or recovery."""

    def __init__(self, files: Files, directory: str, base_offset: int, identity: Identity, generation: int = 0) -> None:
        self.files = files
        self.base_offset = base_offset
        self.identity = identity
        self.generation = generation
        self.path = f"{directory}/{segment_name(base_offset, generation)}{LOG_SUFFIX}"
        self.index_path = f"{directory}/{segment_name(base_offset, generation)}{INDEX_SUFFIX}"
        self.index_saved = False
        self._schema_id = 0
        self._explicit = False
        self._tail = Tail(base_offset, 0)
        self._index: Index | None = None
        self._recent: list[tuple[int, int]] = []
        self._loading = threading.Lock()

    @classmethod
    def new(
        cls,
        files: Files,
        directory: str,
        base_offset: int,
        identity: Identity,
        schema_id: int,
        *,
        explicit: bool = False,
        generation: int = 0,
    ) -> Segment:
        """A segment that is about to be written; its tail is empty until `extend`."""
        segment = cls(files, directory, base_offset, identity, generation)
        segment._schema_id = schema_id
        segment._explicit = explicit
        segment._index = Index()
        return segment

    def as_sealed(self, *, end_offset: int, size: int) -> Segment:
        """Itself, complete on the disk; its index is read when somebody needs it."""
        self._tail = Tail(end_offset, size)
        self.index_saved = True
        return self

    # What it holds --------------------------------------------------------------------------------------------------

    @property
    def tail(self) -> Tail:
        """Where it ends now. Of a sealed segment, the timestamps are right once it is loaded."""
        return self._tail

    @property
    def schema_id(self) -> int:
        if self._schema_id == 0:
            self._load()
        return self._schema_id

    @property
    def explicit(self) -> bool:
        """Whether compaction wrote its batches: their offsets stand in a column."""
        if self._schema_id == 0:
            self._load()
        return self._explicit

    @property
    def index(self) -> Index:
        index = self._index
        return self._load() if index is None else index

    def loaded_tail(self) -> Tail:
        """The tail, with timestamps."""
        if self._index is None:
            self._load()
        return self._tail

    def extend(self, placed: Sequence[tuple[int, int, int, b.BatchHeader]], size: int) -> None:
        """Publishes batches that now stand at the end of the file, which is `size` bytes long.

        Each is (position, base offset, append time, the producer's header).
        """
        index = self.index
        recent = self._recent
        end_offset, _, newest, first_append_ms, last_append_ms = self._tail
        for position, base_offset, append_time_ms, header in placed:
            index.offer(base_offset, position, newest)
            recent.append((base_offset, position))
            newest = max(newest, append_time_ms if header.attributes & b.ATTR_APPEND_TIME else header.max_timestamp_ms)
            end_offset = base_offset + header.last_offset_delta + 1
            first_append_ms = first_append_ms or append_time_ms
            last_append_ms = max(last_append_ms, append_time_ms)
        if len(recent) > 2 * _RECENT_BATCHES:
            self._recent = recent[-_RECENT_BATCHES:]  # a new list: somebody may be looking into the old one
        self.index_saved = False
        self._tail = Tail(end_offset, size, newest, first_append_ms, last_append_ms)

    def seal(self) -> None:
        """Forgets what only an active segment needs."""
        self._recent = []
        self.index_saved = False

    def save_index(self, *, durable: bool) -> None:
        """Writes the index file where it is not written yet. Of an active segment it need not be durable: it can be
        rebuilt, and is written again."""
        tail, index = self._tail, self._index
        if self.index_saved or index is None:
            return
        coverage = Coverage(
            self._schema_id,
            self.base_offset,
            tail.end_offset,
            tail.size,
            tail.max_timestamp_ms,
            tail.first_append_ms,
            tail.last_append_ms,
            self._explicit,
        )
        self.files.write_atomically(self.index_path, index.to_bytes(coverage), durable=durable)
        self.index_saved = True

    def shortened(self, end_offset: int, size: int) -> Segment:
        """The same segment as it will be once its file ends at `size`, a border between batches. Its greatest
        timestamp stays what it was: an upper bound, which is all that look-ups need."""
        segment = Segment(self.files, self.path.rpartition("/")[0], self.base_offset, self.identity, self.generation)
        segment._schema_id, segment._explicit = self.schema_id, self.explicit
        segment._index = Index(bytes(self.index.entries))
        segment._index.cut(size)
        segment._tail = self.loaded_tail()._replace(end_offset=end_offset, size=size)
        return segment

    # Looking up -----------------------------------------------------------------------------------------------------

    def locate(self, offset: int) -> tuple[int, int]:
        """(base offset, position) of the batch that contains `offset`, which must be in this segment."""
        recent = self._recent
        if recent and recent[0][0] <= offset:
            return recent[bisect_right(recent, offset, key=_offset_of) - 1]
        base_offset, position = self.index.at_offset(offset)
        if base_offset == offset:
            return base_offset, position
        for placed in self.walk(position, base_offset):
            if placed.header.next_offset > offset:
                return placed.header.base_offset, placed.position
        raise self.corrupt(self._tail.size, offset, "the segment ends before its last offset")

    def end_of_run(self, start: int, *, max_bytes: int, end_offset: int) -> int:
        """The position up to which whole batches from `start` on fit `max_bytes` and begin below `end_offset`.

        It is `start` itself where not even one batch fits.
        """
        tail = self._tail
        limit = tail.size if end_offset >= tail.end_offset else self._border_from(end_offset, tail)
        if limit - start <= max_bytes:
            return limit
        return self._border_below(start, start + max_bytes)

    def next_border(self, position: int) -> int:
        """Where the batch at `position` ends."""
        return position + self.header_at(position).message_bytes

    def header_at(self, position: int) -> b.BatchHeader:
        """The checked header of the batch at `position`. Raises CorruptLog."""
        return next(self.walk(position, None)).header

    def _border_from(self, offset: int, tail: Tail) -> int:
        """The position of the first batch whose base offset is `offset` or more."""
        recent = self._recent
        if recent and recent[0][0] <= offset:
            place = bisect_left(recent, offset, key=_offset_of)
            return recent[place][1] if place < len(recent) else tail.size
        base_offset, position = self.locate(offset)
        return position if base_offset == offset else self.next_border(position)

    def _border_below(self, start: int, limit: int) -> int:
        """The last border between batches at or below `limit`; `start` is one."""
        recent = self._recent
        if recent and recent[0][1] <= start:
            return recent[bisect_right(recent, limit, key=_position_of) - 1][1]
        base_offset, position = self.index.at_position(limit)
        border = start
        for placed in self.walk(position, base_offset):
            if placed.position > limit:
                break
            border = placed.position
        return max(border, start)

    def walk(
        self, position: int, offset: int | None, *, check_bodies_from: int | None = None, data: memoryview | None = None
    ) -> Iterator[Placed]:
        """The batches from `position` on, where the one with base offset `offset` stands (None: whichever).

        Checks each header's CRC, its topic and partition, and that offsets leave no gap; from the position
        `check_bodies_from` on also the producer's CRC and the Arrow message's structure. Reads up to the tail, or to
        the end of `data` where that is given. Raises CorruptLog with `path`, `position` and `offset`.
        """
        if data is None:
            data = self.files.map(self.path)[: self._tail.size]
        while position < len(data):
            rest = data[position:]
            try:
                header = b.parse(rest)
                b.check_header_crc(rest, header)
                if (header.topic_id, header.partition) != self.identity:
                    raise CorruptBatch(f"it belongs to partition {header.partition} of topic {header.topic_id}")
                if offset is not None and header.base_offset != offset:
                    raise CorruptBatch(f"it states the base offset {header.base_offset}")
                if header.last_offset_delta < 0:
                    raise CorruptBatch("it states less than one offset")
                if check_bodies_from is not None and position >= check_bodies_from:
                    rows = b.row_count(rest[: header.message_bytes], header)
                    if rows > header.last_offset_delta + 1:
                        raise CorruptBatch(f"it holds {rows} rows and states {header.last_offset_delta + 1} offsets")
                    b.check_producer_crc(rest, header)
            except NewerFormat as error:
                raise NewerFormat(f"{self.path}, position {position}: {error}", path=self.path) from None
            except CorruptBatch as error:
                raise self.corrupt(position, offset, str(error)) from None
            yield Placed(position, header)
            position += header.message_bytes
            offset = header.next_offset

    def corrupt(self, position: int, offset: int | None, reason: str) -> CorruptLog:
        """The error that names this file and the place in it."""
        which = "" if offset is None else f" (offset {offset})"
        return CorruptLog(
            f"{self.path} is damaged at position {position}{which}: {reason}",
            path=self.path,
            position=position,
            offset=offset,
        )

    # Loading --------------------------------------------------------------------------------------------------------

    def read_head(self, data: memoryview) -> int:
        """Checks the schema message and returns its size. Raises CorruptLog or NewerFormat."""
        try:
            head = read_schema_message(data)
        except NewerFormat as error:
            raise NewerFormat(f"{self.path}: {error}", path=self.path) from None
        except CorruptBatch as error:
            raise self.corrupt(0, self.base_offset, str(error)) from None
        if head.topic_id != self.identity.topic_id:
            raise self.corrupt(0, self.base_offset, f"it belongs to topic {head.topic_id}")
        self._schema_id = head.schema_id
        self._explicit = is_explicit_schema(head.schema)
        return head.message_bytes

    def _load(self) -> Index:
        """The index of a sealed segment, from its file or rebuilt from the log."""
        with self._loading:
            if self._index is None:
                self._index = self._read_index() or self._rebuild_index()
            return self._index

    def _read_index(self) -> Index | None:
        loaded = self.load_index_file()
        if loaded is None:
            return None
        index, coverage = loaded
        tail = self._tail
        if (coverage.end_offset, coverage.log_bytes) != (tail.end_offset, tail.size) or not len(index):
            return None
        self._adopt(coverage)
        return index

    def load_index_file(self) -> tuple[Index, Coverage] | None:
        """What the index file says, or None where it is missing, damaged, another segment's, a later version's, or of
        an early one that did not state the last append time."""
        try:
            index, coverage = read_index(self.files.read(self.index_path))
        except (FileNotFoundError, CorruptBatch, NewerFormat):
            return None
        whole = coverage.base_offset == self.base_offset and coverage.schema_id and coverage.last_append_ms
        return (index, coverage) if whole else None

    def _adopt(self, coverage: Coverage) -> None:
        self._schema_id, self._explicit = coverage.schema_id, coverage.explicit
        self._tail = tail_of(coverage)

    def _rebuild_index(self) -> Index:
        end_offset, size = self._tail[:2]
        data = self.files.map(self.path)
        if len(data) != size:
            raise self.corrupt(min(len(data), size), end_offset, f"{len(data)} bytes are there instead of {size}")
        index, tail = self.scan(data, self.read_head(data))
        if tail.end_offset != end_offset:
            raise self.corrupt(size, tail.end_offset, f"the segment ends before its last offset, {end_offset - 1}")
        self._tail = tail
        self.index_saved = False
        return index

    def scan(self, data: memoryview, head_bytes: int) -> tuple[Index, Tail]:
        """Index and tail as the log itself has them, from headers alone. Raises CorruptLog."""
        index = Index()
        tail = Tail(self.base_offset, len(data))
        for position, header in self.walk(head_bytes, self.base_offset, data=data):
            index.offer(header.base_offset, position, tail.max_timestamp_ms)
            tail = after(tail, header, len(data))
        return index, tail

    def adopt(self, index: Index, tail: Tail) -> None:
        """Takes over what recovery found."""
        self._index, self._tail = index, tail


def after(tail: Tail, header: b.BatchHeader, size: int) -> Tail:
    """The tail once the batch stands in the segment and the file has `size` bytes."""
    return Tail(
        header.next_offset,
        size,
        max(tail.max_timestamp_ms, timestamp_of(header)),
        tail.first_append_ms or header.append_time_ms,
        max(tail.last_append_ms, header.append_time_ms),
    )


def tail_of(coverage: Coverage) -> Tail:
    """The tail of the part of a segment that an index file covers."""
    return Tail(
        coverage.end_offset,
        coverage.log_bytes,
        coverage.max_timestamp_ms,
        coverage.first_append_ms,
        coverage.last_append_ms,
    )


def _offset_of(entry: tuple[int, int]) -> int:
    return entry[0]


def _position_of(entry: tuple[int, int]) -> int:
    return entry[1]
