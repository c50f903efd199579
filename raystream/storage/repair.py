"""Puts bytes that have gone bad right again, from another replica's log.

Replicas hold the same batches byte for byte, so a repair changes no length: a segment's repaired file differs from the
old one only where that was damaged, and every index, position and span stays right. It is a new file that takes the
old one's name; whoever has the old one mapped keeps it.

Compaction is each replica's own, so of what was compacted another replica may have other batches. Those cannot be
taken over in a part of the log: they may hold an old value of a key whose tombstone this log has let go already. Then
the whole replica has to be filled anew, which `DifferentlyCompacted` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Final, NamedTuple

from raystream import batch as b
from raystream.config import MIN_FREE_BYTES
from raystream.errors import CorruptBatch, CorruptLog, DiskFull, StorageError
from raystream.storage.files import TEMPORARY_SUFFIX, Files
from raystream.storage.log import Log
from raystream.storage.scrubbing import Damage
from raystream.storage.segment import Segment

Fetch = Callable[[int, int], bytes]
"""Whole batches of another replica, from an offset on and below an end: some at least. Raises RaystreamError."""

_COPY_BYTES: Final = 4 << 20


class DifferentlyCompacted(CorruptBatch):
    """The other replica holds the damaged range whole, in batches that do not belong into this log."""


class Patch(NamedTuple):
    """Bytes that belong at a position of a segment file."""

    position: int
    data: bytes


def find_segment(log: Log, path: str) -> Segment | None:
    """The segment in that file, as long as the log has it."""
    return next((segment for segment in log.segments if segment.path == path), None)


def patch_for(log: Log, segment: Segment, damage: Damage, fetch: Fetch) -> Patch:
    """What belongs in the place of the damaged bytes, checked. On any thread.

    Raises what `fetch` raises, CorruptBatch where what it gives is no better, or is another log's, and
    DifferentlyCompacted.
    """
    schema_id = segment.header_at(damage.end_position).schema_id if damage.offset == damage.end_offset else 0
    explicit = segment.header_at(damage.end_position).is_explicit if damage.offset == damage.end_offset else False
    data = bytearray()
    parts = False
    offset = damage.offset
    while offset < damage.end_offset:
        batches = fetch(offset, damage.end_offset)
        if not len(batches):
            raise CorruptBatch(f"the other replica gives nothing at offset {offset}")
        for header, message in b.walk(batches):
            compacted = explicit or header.is_explicit or segment.generation > 0
            parts = _parts(log, segment, header, message, offset, compacted=compacted) or parts
            offset = header.next_offset
            schema_id, explicit = schema_id or header.schema_id, explicit or header.is_explicit
        data += batches
    if damage.position == 0:
        data[:0] = log.heads.head(schema_id, explicit=explicit)  # every replica makes the same for itself
    if parts or offset != damage.end_offset or len(data) != damage.end_position - damage.position:
        raise (DifferentlyCompacted if explicit or segment.generation else CorruptBatch)(
            f"the other replica has {len(data)} bytes up to offset {offset}; {damage.end_position - damage.position} "
            f"up to {damage.end_offset} are to be replaced"
        )
    return Patch(damage.position, bytes(data))


def _parts(
    log: Log, segment: Segment, header: b.BatchHeader, message: memoryview, offset: int, *, compacted: bool
) -> bool:
    """Checks a batch of the other replica's. Whether it begins before the offset, as only compacted batches may."""
    b.check_header_crc(message, header)
    b.check_producer_crc(message, header)
    whose = (header.topic_id, header.partition) == segment.identity
    parts = compacted and header.base_offset < offset < header.next_offset
    if not whose or (header.base_offset != offset and not parts):
        raise CorruptBatch(f"the other replica gives a batch at offset {header.base_offset} instead of {offset}")
    epoch = next((start.epoch for start in reversed(log.epochs.starts) if start.start_offset <= offset), None)
    if epoch is not None and epoch != header.leader_epoch:
        raise CorruptBatch(
            f"the other replica's batch at offset {offset} is of epoch {header.leader_epoch}, not {epoch}"
        )
    return parts


def may_be_replaced_beside(log: Log, segment: Segment) -> bool:
    """Whether the segment can neither be appended to nor be truncated any more: something published follows it. The
    others are replaced on the writer's turn only."""
    later = next((other for other in log.segments if other.base_offset > segment.base_offset), None)
    return later is not None and later.base_offset < log.high_watermark


def replace(files: Files, log: Log, segment: Segment, patches: Sequence[Patch]) -> None:
    """Replaces the segment's file by one with the patches in it, durably. Every CRC of it is checked before.

    Raises CorruptLog where it would not be right as a whole, DiskFull, and StorageError; the file then stands as it
    was, or is the repaired one. Takes memory for one segment.
    """
    if segment not in log.segments:
        raise StorageError(f"{segment.path} is not the log's any more", path=segment.path)
    tail = segment.tail
    data = _patched(files, segment.path, tail.size, patches)
    view = memoryview(data)
    end_offset = segment.base_offset
    for placed in segment.walk(segment.read_head(view), end_offset, check_bodies_from=0, data=view):
        end_offset = placed.header.next_offset
    if end_offset != tail.end_offset or len(data) != tail.size:
        raise segment.corrupt(len(data), end_offset, f"repaired it would end there, and not at {tail.end_offset}")
    directory = segment.path.rpartition("/")[0]
    if files.free_bytes(directory) < len(data) + MIN_FREE_BYTES:
        raise DiskFull(f"the disk has no room for a second copy of {segment.path}", path=segment.path)
    try:
        log.replace(segment, data)
    except DiskFull:
        files.unlink(segment.path + TEMPORARY_SUFFIX)
        raise


def _patched(files: Files, path: str, size: int, patches: Sequence[Patch]) -> bytes:
    """The file's bytes with the patches in them. What they replace is not read: it may be unreadable."""
    whole = BytesIO()
    for position, data in [*sorted(patches), Patch(size, b"")]:
        while whole.tell() < position:
            piece = files.read(path, whole.tell(), min(_COPY_BYTES, position - whole.tell()))
            if not piece:
                raise CorruptLog(f"{path} ends at {whole.tell()}", path=path, position=whole.tell(), offset=None)
            whole.write(piece)
        whole.write(data)
    return whole.getvalue()
