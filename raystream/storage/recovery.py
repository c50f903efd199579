"""What opening a log does: find out, from the files alone, where the log ends and what its writer must remember.

Everything below the checkpoint's recovery point is taken as it is. What lies past it is checked batch by batch. A bad
batch is *corruption*, and refused, where anything says that records at or past its offset were published: the
checkpoint, the header of a later batch, or a later segment (which is made only once the one before it is synced).
Otherwise it is a *torn tail*, which nobody was told about, and is cut.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Final

from raystream import batch as b
from raystream.clock import Clock
from raystream.errors import CorruptBatch, CorruptLog, NewerFormat
from raystream.storage import aborted
from raystream.storage.aborted import AbortedTransactions
from raystream.storage.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint
from raystream.storage.epochs import Epochs
from raystream.storage.files import TEMPORARY_SUFFIX, Files
from raystream.storage.index import Index
from raystream.storage.producer_state import ProducerState
from raystream.storage.segment import (
    INDEX_SUFFIX,
    LOG_SUFFIX,
    Identity,
    Segment,
    SegmentName,
    Tail,
    after,
    segment_name,
    tail_of,
)

SNAPSHOT_SUFFIX: Final = ".producers"
_SCAN_BYTES: Final = 4 << 20


@dataclass(slots=True)
class Recovered:
    """A log as it stands on the disk. `changed` says that something was scanned, cut or removed."""

    segments: tuple[Segment, ...]
    start_offset: int
    end_offset: int
    high_watermark: int
    producers: ProducerState
    epochs: Epochs
    snapshot_offset: int
    changed: bool
    cleaned_to: int
    compacted: bool


def offset_in_name(name: str, suffix: str) -> int | None:
    """The offset that a file of the log is named by, or None where it is no such file."""
    stem = name.removesuffix(suffix)
    return int(stem) if name.endswith(suffix) and len(stem) == 20 and stem.isascii() and stem.isdigit() else None


def segment_in_name(name: str) -> SegmentName | None:
    """The segment whose file has that name, or None where it is no such file."""
    offset, dash, generation = name.removesuffix(LOG_SUFFIX).partition("-")
    base_offset = offset_in_name(offset + LOG_SUFFIX, LOG_SUFFIX) if name.endswith(LOG_SUFFIX) else None
    if base_offset is None or (dash and not (len(generation) == 6 and generation.isascii() and generation.isdigit())):
        return None
    return SegmentName(base_offset, int(generation or 0))


def holds_log(files: Files, directory: str) -> bool:
    """Whether anything of a log is there, which it is from its first opening on."""
    parent, name = posixpath.split(directory)
    there = name in files.directories(parent)
    return there and any(n == CHECKPOINT_NAME or segment_in_name(n) is not None for n in files.listdir(directory))


class Recovery:
    """One opening of one directory, which must be locked. `run` once."""

    def __init__(self, files: Files, directory: str, identity: Identity, clock: Clock) -> None:
        self._files = files
        self._directory = directory
        self._identity = identity
        self._clock = clock
        self._names = files.listdir(directory)
        self._changed = False
        self._high_watermark = 0
        self._epochs = Epochs()
        self._producers = ProducerState(clock)
        self._producers_from = 0  # batches at or past this offset are still to be recorded
        self._replaced: list[SegmentName] = []  # by what compaction wrote, which stands beside them
        self._compacted = False

    def run(self) -> Recovered:
        """Raises CorruptLog or NewerFormat, and then leaves the files as they were."""
        checkpoint = self._read_checkpoint()
        bases = self._segment_names()
        if checkpoint is not None:
            self._check_against(checkpoint, bases)
            self._high_watermark = checkpoint.high_watermark
            self._epochs = Epochs(checkpoint.epochs)
            bases = self._without_deleted(checkpoint, bases)
        snapshot_offset = self._load_snapshot(checkpoint)
        known_aborted = aborted.load(self._files, self._directory, checkpoint.aborted) if checkpoint else None
        self._producers.aborted = known_aborted or AbortedTransactions()
        segments = self._open_segments(checkpoint, bases)
        end_offset = segments[-1].tail.end_offset if segments else self._end_without_segments(checkpoint, bases)
        start_offset = max(checkpoint.start_offset if checkpoint else 0, segments[0].base_offset if segments else 0)
        start_offset = start_offset if segments else end_offset
        if snapshot_offset < 0 or known_aborted is None:
            self._rebuild_producers(segments, end_offset, known_aborted)
        self._producers.settled_from = end_offset
        cleaned_to = min(checkpoint.cleaned_to, end_offset) if checkpoint is not None else 0
        rewritten_to = max((s.tail.end_offset for s in segments if s.generation), default=0)
        self._producers.settle(max(cleaned_to, rewritten_to))
        segments = self._remove_leftovers(segments, start_offset, end_offset)
        if self._changed:
            self._files.sync_dir(self._directory)
        return Recovered(
            segments,
            start_offset,
            end_offset,
            min(self._high_watermark, end_offset),
            self._producers,
            self._epochs,
            snapshot_offset,
            self._changed or checkpoint is None,
            cleaned_to,
            self._compacted or (checkpoint is not None and checkpoint.compacted),
        )

    def _segment_names(self) -> list[SegmentName]:
        """The log's segments in order, without those that compaction had replaced and not yet removed: a segment of a
        generation stands for all that begins in it."""
        names = [found for name in self._names if (found := segment_in_name(name)) is not None]
        latest = {name.base_offset: name for name in sorted(names)}
        current: list[SegmentName] = []
        covered_to = -1
        for name in latest.values():
            if name.base_offset >= covered_to:
                current.append(name)
                covered_to = self._end_of(name) if name.generation else -1
        self._compacted = any(name.generation for name in current)
        self._replaced = [name for name in names if name not in current]
        return current

    def _end_of(self, name: SegmentName) -> int:
        segment = Segment(self._files, self._directory, name.base_offset, self._identity, name.generation)
        loaded = segment.load_index_file()
        if loaded is not None and loaded[1].log_bytes == self._files.size(segment.path):
            return loaded[1].end_offset
        data = self._files.map(segment.path)
        return segment.scan(data, segment.read_head(data))[1].end_offset

    # Checkpoint and snapshot ----------------------------------------------------------------------------------------

    def _read_checkpoint(self) -> Checkpoint | None:
        path = f"{self._directory}/{CHECKPOINT_NAME}"
        try:
            checkpoint = read_checkpoint(self._files.read(path))
        except FileNotFoundError:
            return None
        except NewerFormat as error:
            raise NewerFormat(f"{path}: {error}", path=path) from None
        except CorruptBatch:
            return None  # everything is scanned instead
        if (checkpoint.topic_id, checkpoint.partition) != self._identity:
            raise CorruptLog(
                f"{path} is of partition {checkpoint.partition} of topic {checkpoint.topic_id}: the directory holds "
                "another log",
                path=path,
                position=0,
                offset=None,
            )
        return checkpoint

    def _check_against(self, checkpoint: Checkpoint, bases: list[SegmentName]) -> None:
        there = checkpoint.segment < 0 or any(name.base_offset == checkpoint.segment for name in bases)
        if not there or (checkpoint.segment >= 0 and bases[0].base_offset > checkpoint.start_offset):
            raise self._missing(checkpoint, "a segment file is missing")

    def _without_deleted(self, checkpoint: Checkpoint, bases: list[SegmentName]) -> list[SegmentName]:
        """A checkpoint of a log without segments: those that begin below its end were about to be removed, and another
        is begun only once they are."""
        if checkpoint.segment >= 0 or not bases or bases[0].base_offset >= checkpoint.offset:
            return bases
        for name in bases:
            self._files.unlink(f"{self._directory}/{segment_name(*name)}{LOG_SUFFIX}")
        self._changed = True
        return []

    def _missing(self, checkpoint: Checkpoint, what: str) -> CorruptLog:
        path = f"{self._directory}/{segment_name(max(checkpoint.segment, 0))}{LOG_SUFFIX}"
        return CorruptLog(
            f"{path}: {what}, although everything up to offset {checkpoint.offset} (position {checkpoint.position}) "
            f"was synced and up to {checkpoint.high_watermark} published",
            path=path,
            position=checkpoint.position,
            offset=checkpoint.offset,
        )

    def _load_snapshot(self, checkpoint: Checkpoint | None) -> int:
        """Takes over the newest good snapshot; the offset it was taken at, or -1 where the log must be read for it."""
        if checkpoint is None:
            return -1
        if checkpoint.producers < 0:
            self._producers_from = checkpoint.offset
            return checkpoint.offset
        loaded = self._read_snapshot(checkpoint.producers)
        if loaded is None:
            self._producers_from = 2**63
            return -1
        self._producers, self._producers_from = loaded
        return self._producers_from

    def _read_snapshot(self, offset: int) -> tuple[ProducerState, int] | None:
        path = f"{self._directory}/{segment_name(offset)}{SNAPSHOT_SUFFIX}"
        try:
            state, taken_at = ProducerState.from_bytes(self._files.read(path), self._clock)
        except (FileNotFoundError, CorruptBatch):
            return None
        except NewerFormat as error:
            raise NewerFormat(f"{path}: {error}", path=path) from None
        return (state, taken_at) if taken_at == offset else None

    def _rebuild_producers(
        self, segments: tuple[Segment, ...], end_offset: int, known_aborted: AbortedTransactions | None
    ) -> None:
        if known_aborted is None:
            known_aborted = self._replayed(ProducerState(self._clock), segments, 0).aborted
        self._producers = self.producers_at(segments, end_offset, known_aborted)
        self._changed = True

    def producers_at(
        self, segments: tuple[Segment, ...], end_offset: int, known_aborted: AbortedTransactions
    ) -> ProducerState:
        """What is known of the producers of a log that ends at `end_offset`: from the newest good snapshot and the
        batches after it. `known_aborted` are those of the log up to a later offset than any snapshot's."""
        offsets = [o for name in self._names if (o := offset_in_name(name, SNAPSHOT_SUFFIX)) is not None]
        since = 0
        producers = ProducerState(self._clock)
        for offset in sorted(offsets, reverse=True):
            loaded = self._read_snapshot(offset) if offset <= end_offset else None
            if loaded is not None:
                producers, since = loaded
                break
        known_aborted.cut(end_offset)
        producers.aborted = known_aborted
        producers.settled_from = end_offset
        return self._replayed(producers, segments, since)

    @staticmethod
    def _replayed(producers: ProducerState, segments: tuple[Segment, ...], since: int) -> ProducerState:
        for segment in segments:
            if segment.tail.end_offset > since and len(segment.index):
                base_offset, position = segment.index.at_offset(since)
                for _, header in segment.walk(position, base_offset):
                    if header.base_offset >= since:
                        producers.record(header, header.base_offset, header.append_time_ms)
        return producers

    # Segments -------------------------------------------------------------------------------------------------------

    def _open_segments(self, checkpoint: Checkpoint | None, bases: list[SegmentName]) -> tuple[Segment, ...]:
        trusted_below = checkpoint.segment if checkpoint is not None else -1
        segments: list[Segment] = []
        expected = checkpoint.offset if checkpoint is not None else None
        for place, (base, generation) in enumerate(bases):
            segment = Segment(self._files, self._directory, base, self._identity, generation)
            if base < trusted_below:
                end = bases[place + 1].base_offset
                size = self._files.size(segment.path)
                segments.append(segment.as_sealed(end_offset=end, size=size))
                continue
            point = checkpoint if checkpoint is not None and base == checkpoint.segment else None
            if point is None and expected is not None and base != expected:
                raise segment.corrupt(
                    0, expected, f"the segment begins at offset {base}, the one before ends elsewhere"
                )
            if self._scan(segment, point, last=place == len(bases) - 1):
                segments.append(segment)
                expected = segment.tail.end_offset
        return tuple(segments)

    def _end_without_segments(self, checkpoint: Checkpoint | None, bases: list[SegmentName]) -> int:
        return max(checkpoint.offset if checkpoint is not None else 0, bases[-1].base_offset if bases else 0)

    def _scan(self, segment: Segment, point: Checkpoint | None, *, last: bool) -> bool:
        """Checks a segment from the recovery point `point` (None: from its head) on, and cuts what is torn. False where
        nothing is left of it."""
        data = self._files.map(segment.path)
        checked_to = 0 if point is None else point.position
        if len(data) < checked_to and point is not None:
            raise self._missing(point, f"the file has only {len(data)} bytes")
        try:
            head_bytes = segment.read_head(data)
        except CorruptLog as bad:
            self._refuse_or_cut(segment, data, bad, 0, point, last=last)
            return False
        self._compacted = self._compacted or segment.explicit
        index, tail = self._known_part(segment, point)
        position = tail.size or head_bytes
        try:
            for placed in segment.walk(position, tail.end_offset, check_bodies_from=checked_to, data=data):
                header = placed.header
                index.offer(header.base_offset, placed.position, tail.max_timestamp_ms)
                position = placed.position + header.message_bytes
                tail = after(tail, header, position)
                self._changed = self._changed or placed.position >= checked_to
                self._note(header)
        except CorruptLog as bad:
            self._refuse_or_cut(segment, data, bad, position, point, last=last)
        segment.adopt(index, tail._replace(size=position))
        if tail.end_offset > segment.base_offset:
            return True
        if not last:
            raise segment.corrupt(position, segment.base_offset, "it holds no batch, although a later segment exists")
        self._files.unlink(segment.path)  # a head without a batch; the next append writes it again
        self._changed = True
        return False

    def _known_part(self, segment: Segment, point: Checkpoint | None) -> tuple[Index, Tail]:
        """Where the index file spares reading the part below the recovery point."""
        loaded = segment.load_index_file() if point is not None else None
        if point is None or loaded is None or loaded[1].log_bytes < point.position or not len(loaded[0]):
            return Index(), Tail(segment.base_offset, 0)
        index, coverage = loaded
        index.cut(point.position)
        return index, tail_of(coverage)._replace(end_offset=point.offset, size=point.position)

    def _note(self, header: b.BatchHeader) -> None:
        self._high_watermark = max(self._high_watermark, header.high_watermark)
        self._epochs.note(header.leader_epoch, header.base_offset)
        self._compacted = self._compacted or header.is_control
        if header.base_offset >= self._producers_from:
            self._producers.record(header, header.base_offset, header.append_time_ms)

    def _refuse_or_cut(
        self,
        segment: Segment,
        data: memoryview,
        bad: CorruptLog,
        position: int,
        point: Checkpoint | None,
        *,
        last: bool,
    ) -> None:
        """Raises `bad` where the damage lies below what was published or synced, else cuts the file at `position`."""
        offset = segment.base_offset if bad.offset is None else int(bad.offset)
        if not last or (point is not None and position < point.position):
            raise bad
        published = max(self._high_watermark, self._stated_later(data, position, offset))
        if published > offset:
            raise CorruptLog(
                f"{bad}; it lies below the high watermark {published}, so it is not cut",
                path=segment.path,
                position=position,
                offset=offset,
            )
        self._changed = True
        if position == 0:
            self._files.unlink(segment.path)
        else:
            self._files.truncate(segment.path, position)

    def _stated_later(self, data: memoryview, position: int, offset: int) -> int:
        """The greatest high watermark that a batch past the bad one states."""
        greatest = 0
        while position < len(data):
            for header in b.find_headers(data[position : position + _SCAN_BYTES + b.ZONE_BYTES]):
                if (header.topic_id, header.partition) == self._identity and header.base_offset > offset:
                    greatest = max(greatest, header.high_watermark)
            position += _SCAN_BYTES
        return greatest

    def _remove_leftovers(
        self, segments: tuple[Segment, ...], start_offset: int, end_offset: int
    ) -> tuple[Segment, ...]:
        """Finishes what a crash interrupted: a deletion, a truncation, a file that was being replaced."""
        kept = tuple(s for s in segments if s.tail.end_offset > start_offset or s is segments[-1])
        for segment in segments:
            if segment not in kept:
                self._files.unlink(segment.path)
                self._changed = True
        for replaced in self._replaced:
            self._files.unlink(f"{self._directory}/{segment_name(*replaced)}{LOG_SUFFIX}")
            self._changed = True
        stems = {segment_name(segment.base_offset, segment.generation) for segment in kept}
        for name in self._names:
            orphan = name.endswith(INDEX_SUFFIX) and name.removesuffix(INDEX_SUFFIX) not in stems
            taken_at = offset_in_name(name, SNAPSHOT_SUFFIX)
            of_the_future = taken_at is not None and taken_at > end_offset
            if name.endswith(TEMPORARY_SUFFIX) or orphan or of_the_future:
                self._files.unlink(f"{self._directory}/{name}")
        return kept
