"""Finds bytes that have gone bad under a log that is in use: every CRC of what was published, read at a bounded rate.

It reads, and never maps: a sector that cannot be read is an error to report here, and would be the end of a process
that had it mapped. Nothing at or past the offset it is given is looked at, for that may still be cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, NamedTuple

from raystream import batch as b
from raystream.clock import Clock
from raystream.errors import CorruptLog, NewerFormat, StorageError
from raystream.messages import Span
from raystream.storage.files import Files
from raystream.storage.segment import Segment

CHUNK_BYTES: Final = 128 << 10
BUSY_SHARE: Final = 0.1
_MAX_HEAD_BYTES: Final = b.FRAME_PREFIX_BYTES + b.MAX_METADATA_BYTES
DAMAGE_NAME: Final = "damaged"


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment file that are not what was written: positions and offsets half-open.

    Both ends are borders between batches, or the segment's end. Where `offset` and `end_offset` are the same, it is the
    schema message at the segment's head.
    """

    path: str
    position: int
    end_position: int
    offset: int
    end_offset: int
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.path} is damaged from position {self.position} to {self.end_position} (offsets {self.offset} to "
            f"{self.end_offset}): {self.reason}"
        )


def before_damage(spans: Sequence[Span], damages: Sequence[Damage]) -> tuple[Span, ...]:
    """The spans, whole batches, up to the first damaged byte in them."""
    healthy: list[Span] = []
    for span in spans:
        end = span.position + span.length
        here = (damage for damage in damages if damage.path == span.path)
        bad = [damage.position for damage in here if damage.position < end and span.position < damage.end_position]
        length = min(bad, default=end) - span.position
        if length > 0:
            healthy.append(replace(span, length=length))
        if bad:
            break
    return tuple(healthy)


class Step(NamedTuple):
    """So many bytes were read, and perhaps this was found."""

    read_bytes: int
    damage: Damage | None = None


class Pace:
    """Bounds a rate: over any time `bytes_per_s` and one step. Time without reading is not saved up.

    It takes no more than a tenth of the time either: many small batches are much work, and others have the processor
    less while it is done.
    """

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        self._clock = clock
        self._bytes_per_ms = bytes_per_s / 1000
        self._free_ms = clock.monotonic_ms()

    def over(self, steps: Iterable[Step]) -> Iterator[tuple[Step, float]]:
        """Each step, with the milliseconds to wait before the next is asked for."""
        began_ms = self._clock.monotonic_ms()
        for step in steps:
            now_ms = self._clock.monotonic_ms()
            least_ms = (now_ms - began_ms) * (1 / BUSY_SHARE - 1)
            self._free_ms = max(self._free_ms, now_ms) + max(step.read_bytes / self._bytes_per_ms, least_ms)
            yield step, self._free_ms - now_ms
            began_ms = self._clock.monotonic_ms()


def scrub(segments: Sequence[Segment], *, end_offset: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Step]:
    """Checks every batch of the segments that begins below `end_offset`. A step reads `chunk_bytes`, or a batch where
    that is longer, or as much as a batch's metadata may take.

    A segment that is deleted meanwhile is left out.
    """
    for segment in segments:
        if segment.base_offset < end_offset:
            try:
                yield from _Scrub(segment, end_offset, chunk_bytes).run()
            except FileNotFoundError:
                continue


class _Scrub:
    """One reading of one segment, as far as it goes now."""

    def __init__(self, segment: Segment, end_offset: int, chunk_bytes: int) -> None:
        self._segment = segment
        self._tail = segment.tail
        self._until = end_offset
        self._chunk_bytes = chunk_bytes
        self._position = 0
        self._offset = segment.base_offset
        self._read_bytes = 0
        self._unreadable = ""

    def run(self) -> Iterator[Step]:
        yield from self._head()
        wanted = self._chunk_bytes
        while self._position < self._tail.size and self._offset < self._until:
            window = self._read(self._position, wanted)
            start = self._position
            bad = self._walk(window)
            yield self._step()
            rest = window[self._position - start :]
            wanted = self._chunk_bytes
            if bad is None or self._offset >= self._until:
                continue
            header = self._header_of(rest)
            no_header = self._chunk_bytes if self._position > start else _MAX_HEAD_BYTES
            needed = no_header if header is None else header.message_bytes
            if len(rest) < needed and start + len(window) < self._tail.size:
                wanted = needed  # the window may have cut it
            elif header is None:
                yield from self._skip_to_health(self._position, bad)
            else:
                yield Step(0, self._damage(self._position + needed, header.next_offset, bad))

    def _head(self) -> Iterator[Step]:
        for length in (self._chunk_bytes, _MAX_HEAD_BYTES):
            data = self._read(0, length)
            yield self._step()
            try:
                self._position = self._segment.read_head(data)
                return
            except (CorruptLog, NewerFormat) as bad:
                reason = self._reason(bad)
        yield from self._skip_to_health(0, reason, head=True)

    def _walk(self, window: memoryview) -> str | None:
        """Goes on to the end of the window, or to the first batch that is bad or goes past it: then says why."""
        start = self._position
        try:
            for placed in self._segment.walk(0, self._offset, check_bodies_from=0, data=window):
                if placed.header.base_offset >= self._until:
                    break
                self._position = start + placed.position + placed.header.message_bytes
                self._offset = placed.header.next_offset
        except (CorruptLog, NewerFormat) as bad:
            return self._reason(bad)
        return None

    def _reason(self, bad: Exception) -> str:
        """The positions in the sentence are the window's: they are left out."""
        if isinstance(bad, NewerFormat):
            return "it claims to be of a later format"
        return str(bad).rpartition(f"(offset {self._offset}): ")[2]

    def _header_of(self, rest: memoryview) -> b.BatchHeader | None:
        """The header of the batch that begins here, where it passes its CRC."""
        for header in b.find_headers(rest[:_MAX_HEAD_BYTES]):
            whose = (header.topic_id, header.partition) == self._segment.identity
            fits = header.message_bytes <= self._tail.size - self._position
            if whose and fits and header.base_offset == self._offset:
                return header
        return None

    def _skip_to_health(self, since: int, reason: str, *, head: bool = False) -> Iterator[Step]:
        """Looks for the next good batch; all before it is damage."""
        first = self._offset if head else self._offset + 1
        position = since
        while position < self._tail.size:
            chunk = self._read(position, self._chunk_bytes + b.ZONE_BYTES)
            for header in b.find_headers(chunk):
                whose = (header.topic_id, header.partition) == self._segment.identity
                if whose and first <= header.base_offset < self._tail.end_offset:
                    start = self._start_of(position + header.zone_at, since, header)
                    if start is not None:
                        yield Step(self._taken(), self._damage(start, header.base_offset, reason))
                        return
            yield self._step()
            position += self._chunk_bytes
        yield Step(self._taken(), self._damage(self._tail.size, self._tail.end_offset, reason))

    def _start_of(self, zone: int, since: int, header: b.BatchHeader) -> int | None:
        """Where the good batch begins whose header zone stands at `zone`; None: it is not good after all."""
        low = max(since, zone - b.MAX_METADATA_BYTES)
        if zone > low:
            before = bytes(self._read(low, zone - low))
            at = before.rfind(b.CONTINUATION)
            while at >= 0:
                message = self._read(low + at, header.message_bytes)
                try:
                    next(self._segment.walk(0, header.base_offset, check_bodies_from=0, data=message))
                    return low + at
                except (CorruptLog, NewerFormat):
                    at = before.rfind(b.CONTINUATION, 0, at)
        return None

    def _damage(self, end_position: int, end_offset: int, reason: str) -> Damage:
        found = Damage(
            self._segment.path, self._position, end_position, self._offset, end_offset, self._unreadable or reason
        )
        self._position, self._offset, self._unreadable = end_position, end_offset, ""
        return found

    # Reading --------------------------------------------------------------------------------------------------------

    def _read(self, position: int, length: int) -> memoryview:
        """Bytes of the segment; zeros in the place of those that the disk does not give."""
        length = min(length, self._tail.size - position)
        data = b""
        try:
            data = self._segment.files.read(self._segment.path, position, length)
            if len(data) < length:
                self._unreadable = f"the file ends at position {position + len(data)}"
        except StorageError as error:
            self._unreadable = str(error)
        self._read_bytes += length
        return memoryview(data.ljust(length, b"\0"))

    def _taken(self) -> int:
        read_bytes, self._read_bytes = self._read_bytes, 0
        return read_bytes

    def _step(self) -> Step:
        return Step(self._taken())


# What is known of a log's damage outlives the process ---------------------------------------------------------------


def remember(files: Files, directory: str, damages: Sequence[Damage]) -> None:
    """Writes down which damage of a log is not repaired yet; where there is none, removes what was written."""
    path = f"{directory}/{DAMAGE_NAME}"
    if damages:
        files.write_atomically(path, json.dumps([asdict(damage) for damage in damages], indent=1).encode())
    else:
        files.unlink(path)
        files.sync_dir(directory)


def remembered(files: Files, directory: str) -> tuple[Damage, ...]:
    """The damage that an earlier process wrote down. What cannot be read is nothing: the next pass finds it again."""
    try:
        return tuple(Damage(**damage) for damage in json.loads(files.read(f"{directory}/{DAMAGE_NAME}")))
    except (FileNotFoundError, StorageError, ValueError, TypeError):
        return ()
