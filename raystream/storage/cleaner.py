"""Compaction of one log: of every key the last record stays, at the offset where it always was.

Reads segments that are not appended to any more, on any thread, and writes what is left of them into new files; the
log puts these in the place of the old on its writer's turn. First a map of each key to its last offset is made, of the
dirty segments, by the keys themselves: bounded in bytes (and one segment), beyond which another pass does the rest.
Then every segment from the log's beginning on is gone over. A row stays if no later one has its key. A tombstone stays
until its batch's horizon, which is `delete_retention_ms` after it was first compacted: whoever reads on meanwhile sees
it. A row without a key stays. What becomes of transactions and their markers, `fates.py` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream import batch as b
from raystream.config import MIN_FREE_BYTES
from raystream.errors import CorruptLog, DiskFull
from raystream.explicit import Rows, explicit_schema, rows_of
from raystream.storage.fates import MARKER_GRACE_MS, Fate, Fates
from raystream.storage.files import TEMPORARY_SUFFIX
from raystream.storage.log import Log
from raystream.storage.rewriting import Kind, Rewriter, Stretch, explicit_rows, kind_of, offsets_of, owner_of
from raystream.storage.segment import Segment
from raystream.tombstones import tombstones, value_columns

WINDOW_BYTES: Final = 8 << 20
"""What is read at a time. Much larger pieces are memory that the system has to find anew for each."""
MAP_BYTES: Final = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningSettings:
    """What of a topic's definition compaction needs. `time_column`: where records keep their timestamps."""

    key_column: str
    time_column: str | None
    raw: bool
    segment_bytes: int
    delete_retention_ms: int
    map_bytes: int = MAP_BYTES
    window_bytes: int = WINDOW_BYTES


@dataclass(slots=True)
class Cleaned:
    """What a cleaning has done. All below `cleaned_to` is clean. At `next_horizon_ms`, by the wall clock, the next
    tombstone or marker can go; None: none is left that waits for its time alone."""

    cleaned_to: int
    next_horizon_ms: int | None = None
    read_bytes: int = 0
    rows: int = 0
    kept_rows: int = 0
    swaps: int = 0


class _Batch(NamedTuple):
    header: b.BatchHeader
    message: memoryview
    rows: Rows
    fate: Fate

    @property
    def alone(self) -> bool:
        """Whether it is not merged with others."""
        return self.fate in ("own", "marker")


class _Group(NamedTuple):
    """What batches that are merged have in common."""

    kind: Kind
    horizon_ms: int
    alone_at: int
    """Where a batch begins that is not merged; -1: it is."""


class _Surveyed(NamedTuple):
    """Which rows of a segment stay, and whether it has to be written anew for its own sake."""

    segment: Segment
    keep: Any
    kept_bytes: int
    changed: bool


class LatestOffsets:
    """Each key's last offset. Exact: keys are compared as they are."""

    def __init__(self, merge_above_bytes: int) -> None:
        self._merge_above_bytes = merge_above_bytes
        self._parts: list[pa.Table] = []
        self._known: Any = None
        """All offsets that were noted, sorted, once they are asked for; int64."""
        self.nbytes = 0

    def add(self, keys: Any, offsets: Any) -> None:
        """Rows in offset order; those without a key do not count."""
        table = pa.table({"key": keys, "offset": offsets})
        if keys.null_count:
            table = table.filter(pc.is_valid(table.column("key")))
        self._parts.append(_latest(table))
        self._known = None
        self.nbytes += self._parts[-1].nbytes
        if self.nbytes > self._merge_above_bytes:
            self.merge()

    def merge(self) -> None:
        """Brings what was added into one table, of which `nbytes` is the size."""
        if len(self._parts) > 1:
            self._parts = [_latest(pa.concat_tables(self._parts))]
        self.nbytes = sum(part.nbytes for part in self._parts)

    def are(self, keys: Any, offsets: Any) -> Any:
        """Of rows that were all added, in offset order: whether each is the last of its key, or has none."""
        if self._known is None:
            self.merge()
            parts = [part.column("offset").to_numpy() for part in self._parts]
            self._known = np.sort(np.concatenate(parts)) if parts else np.array([], np.int64)
        first, end = np.searchsorted(self._known, (offsets[0], offsets[-1] + 1)) if len(offsets) else (0, 0)
        last = np.isin(offsets, self._known[first:end], assume_unique=True)
        return last | keys.is_null().to_numpy() if keys.null_count else last

    def of(self, keys: Any) -> Any:
        """The last offset of each of the keys, int64; -1 where there is none."""
        self.merge()
        if not self._parts or not len(self._parts[0]):
            return np.full(len(keys), -1, np.int64)
        known = self._parts[0].combine_chunks()
        self._parts = [known]
        places = pc.index_in(keys, value_set=known.column("key").chunk(0), skip_nulls=True)
        places = places.fill_null(len(known)).to_numpy()
        return np.append(known.column("offset").to_numpy(), np.int64(-1))[places]


def _latest(table: pa.Table) -> pa.Table:
    found = table.group_by("key", use_threads=False).aggregate([("offset", "max")])
    return pa.table({"key": found.column("key"), "offset": found.column("offset_max")})


class Cleaner:
    """One cleaning of one log. `on_writer` has work done on the writer's turn and waits for it; `breathe` is called
    every few milliseconds of work, with the bytes that were read, written or removed, and may wait, or raise to give
    up."""

    def __init__(
        self,
        log: Log,
        settings: CleaningSettings,
        on_writer: Callable[[Callable[[], Any]], Any],
        fates: Fates,
        *,
        now_ms: int,
        breathe: Callable[[int], None] = lambda _nbytes: None,
    ) -> None:
        self._log = log
        self._settings = settings
        self._on_writer = on_writer
        self._now_ms = now_ms
        self._breathe = breathe
        self._fates = fates
        self._latest = LatestOffsets(settings.map_bytes)
        self._done = Cleaned(log.cleaned_to)

    def run(self, up_to: int) -> Cleaned:
        """Compacts the log up to an offset where a segment ends, or less: as far as the map takes keys, and batches are
        decided. Everything below must be replicated, and remembered in the producer snapshot.

        Raises CorruptLog and StorageError, and FileNotFoundError where records were deleted meanwhile. Whenever it
        ends, the log holds the last record of every key.
        """
        log = self._log
        up_to = min(up_to, self._fates.decided_to)
        segments = [s for s in log.segments[:-1] if s.tail.end_offset <= up_to]
        reached = self._map_keys([s for s in segments if s.tail.end_offset > log.cleaned_to])
        group: list[_Surveyed] = []
        for segment in segments:
            if segment.tail.end_offset > reached:
                break
            surveyed = self._survey(segment)
            if group and not self._fits(group, surveyed):
                if not self._replace(group):
                    return self._done
                group = []
            group.append(surveyed)
        if not self._replace(group):
            return self._done
        if reached > log.cleaned_to:
            self._on_writer(lambda: log.cleaned(reached))
        self._done.cleaned_to = log.cleaned_to
        return self._done

    # Reading --------------------------------------------------------------------------------------------------------

    def _map_keys(self, dirty: Sequence[Segment]) -> int:
        """Notes the last offset of every key. Returns the offset up to which they are noted."""
        reached = self._log.cleaned_to
        for segment in dirty:
            for batches in self._windows(segment):
                self._latest.add(self._keys(batches), _offsets(batches))
            reached = segment.tail.end_offset
            self._latest.merge()
            if self._latest.nbytes >= self._settings.map_bytes:
                break
        return reached

    def _windows(self, segment: Segment) -> Iterator[list[_Batch]]:
        """The segment's batches, checked and decoded, some megabytes at a time. It is read and not mapped: a sector
        that cannot be read is an error here, and would be the end of a process that had it mapped."""
        schema = self._log.heads.schemas[segment.schema_id - 1]
        size = segment.tail.size
        offset, position, _ = segment.index[0]
        wanted = self._settings.window_bytes
        while position < size:
            window = memoryview(segment.files.read(segment.path, position, min(wanted, size - position)))
            found: list[_Batch] = []
            end = 0
            try:
                for placed in segment.walk(0, offset, check_bodies_from=0, data=window):
                    end = placed.position + placed.header.message_bytes
                    found.append(self._decoded(placed.header, window[placed.position : end], schema))
            except CorruptLog:
                if not found and len(window) == size - position:
                    raise
            if not found:
                wanted *= 4  # the window has cut the first batch
                continue
            position, offset = position + end, found[-1].header.next_offset
            self._done.read_bytes += end
            yield found
            self._breathe(end)

    def _decoded(self, header: b.BatchHeader, message: memoryview, schema: pa.Schema) -> _Batch:
        fate = self._fates.of(header)
        if fate in ("void", "marker"):
            return _Batch(header, message, Rows(pa.RecordBatch.from_pylist([], schema=schema)), fate)
        return _Batch(header, message, rows_of(message, header, schema), fate)

    def _keys(self, batches: Sequence[_Batch]) -> Any:
        return pa.chunked_array([batch.rows.rows.column(self._settings.key_column) for batch in batches])

    # Deciding -------------------------------------------------------------------------------------------------------

    def _survey(self, segment: Segment) -> _Surveyed:
        keeps = []
        changed = False
        mapped = segment.tail.end_offset > self._log.cleaned_to
        for batches in self._windows(segment):
            changed = self._survey_transactions(batches) or changed
            offsets = _offsets(batches)
            keys = self._keys(batches)
            keep = self._latest.are(keys, offsets) if mapped else self._latest.of(keys) <= offsets
            if (tombstone := self._tombstones(batches)) is not None:
                counts = [batch.rows.rows.num_rows for batch in batches]
                horizons = np.repeat(np.array([batch.header.delete_horizon_ms for batch in batches], np.int64), counts)
                keep &= ~(tombstone & (horizons > 0) & (horizons <= self._now_ms))
                stay = horizons[tombstone & keep]
                changed = changed or bool((stay == 0).any())
                if len(stay):
                    fresh_ms = self._now_ms + self._settings.delete_retention_ms
                    self._wait_for(int(np.where(stay == 0, fresh_ms, stay).min()))
            keeps.append(keep)
        keep = np.concatenate(keeps)
        kept = int(keep.sum())
        self._done.rows += len(keep)
        self._done.kept_rows += kept
        size = segment.tail.size
        return _Surveyed(segment, keep, size * kept // max(len(keep), 1), changed or kept < len(keep))

    def _survey_transactions(self, batches: Sequence[_Batch]) -> bool:
        """Whether what transactions have left in the batches is to be written otherwise."""
        changed = False
        for header, _, _, fate in batches:
            if fate == "marker":
                changed = changed or header.delete_horizon_ms == 0
                if self._fates.may_go(header):
                    self._wait_for(self._horizon_of(header))
            else:
                changed = changed or header.is_transactional
        return changed

    def _horizon_of(self, marker: b.BatchHeader) -> int:
        grace_ms = max(self._settings.delete_retention_ms, MARKER_GRACE_MS)
        return marker.delete_horizon_ms or self._now_ms + grace_ms

    def _wait_for(self, horizon_ms: int) -> None:
        known = self._done.next_horizon_ms
        self._done.next_horizon_ms = horizon_ms if known is None else min(known, horizon_ms)

    def _tombstones(self, batches: Sequence[_Batch]) -> Any:
        """A mask of the rows that only say that their key is gone; None: none."""
        settings = self._settings
        table = pa.Table.from_batches([batch.rows.rows for batch in batches])
        key, time = settings.key_column, settings.time_column
        values = value_columns(table.column_names, typed=not settings.raw, key=key, time=time)
        dead = tombstones(table, key=key, values=values)
        return None if dead is None else dead.to_numpy()

    def _fits(self, group: Sequence[_Surveyed], surveyed: _Surveyed) -> bool:
        kept_bytes = sum(each.kept_bytes for each in group) + surveyed.kept_bytes
        same = group[0].segment.schema_id == surveyed.segment.schema_id
        return same and kept_bytes <= self._settings.segment_bytes

    # Writing --------------------------------------------------------------------------------------------------------

    def _replace(self, group: Sequence[_Surveyed]) -> bool:
        """Writes what stays of consecutive segments into one, and has it put in their place. False where some of them
        are the log's no more: what follows counts on it that nothing was left as it stood."""
        if not group or (len(group) == 1 and not group[0].changed):
            return True
        log, old = self._log, [each.segment for each in group]
        files = old[0].files
        needed = sum(each.kept_bytes for each in group)
        if files.free_bytes(log.directory) < needed + MIN_FREE_BYTES:
            raise DiskFull(f"{log.directory} has no room for a compacted copy of {needed:,} bytes", path=log.directory)
        new = Segment.new(
            files,
            log.directory,
            old[0].base_offset,
            old[0].identity,
            old[0].schema_id,
            explicit=True,
            generation=max(segment.generation for segment in old) + 1,
        )
        temporary = new.path + TEMPORARY_SUFFIX
        try:
            files.unlink(temporary)
            handle = files.open_append(temporary)
            try:
                rewriter = Rewriter(
                    handle, log.heads.head(new.schema_id, explicit=True), new.identity, new.schema_id, self._breathe
                )
                for each in group:
                    self._write(each, rewriter)
                rewriter.finish()
            finally:
                handle.close()
            new.extend(rewriter.placed, rewriter.size)
            new.seal()
            new.save_index(durable=True)  # beside the writer, for whom appends wait
            swapped: bool = self._on_writer(lambda: log.swap(old, temporary, new))
        except BaseException:
            files.unlink(temporary)  # an index that is left without its file goes with the next opening
            raise
        if swapped:
            self._done.swaps += 1
            for segment in old:
                files.unlink(segment.path)
                files.unlink(segment.index_path)
                self._breathe(segment.tail.size)  # the disk's own work, whenever it gives back what is removed
            files.sync_dir(log.directory)
        return swapped

    def _write(self, surveyed: _Surveyed, rewriter: Rewriter) -> None:
        place = 0
        before: _Group | None = None
        for batches in self._windows(surveyed.segment):
            grouped: list[tuple[_Group, _Batch]] = []
            for batch in batches:
                before = _group(batch, before)
                grouped.append((before, batch))
            for group, run in groupby(grouped, itemgetter(0)):
                some = [batch for _, batch in run]
                count = sum(batch.rows.rows.num_rows for batch in some)
                rewriter.add(self._stretch(some, surveyed.keep[place : place + count], group.kind))
                place += count

    def _stretch(self, batches: Sequence[_Batch], keep: Any, kind: Kind) -> Stretch:
        settings = self._settings
        headers = [batch.header for batch in batches]
        horizon = 0
        if batches[0].fate == "marker":
            horizon = self._horizon_of(headers[0])
        elif (tombstone := self._tombstones(batches)) is not None and (tombstone & keep).any():
            horizon = max(header.delete_horizon_ms for header in headers)
            horizon = horizon or self._now_ms + settings.delete_retention_ms
        schema = batches[0].rows.rows.schema
        rows = explicit_schema(schema).empty_table()
        if keep.any():
            parts = [(batch.header, batch.rows) for batch in batches if batch.rows.rows.num_rows]
            rows = explicit_rows(parts, keep, schema, settings.time_column)
        return Stretch(
            kind,
            rows,
            headers[0].base_offset,
            headers[-1].next_offset,
            max(header.append_time_ms for header in headers),
            max(header.high_watermark for header in headers),
            horizon,
            owner_of(headers[0], headers[0].base_offset) if batches[0].alone else None,
        )


def _group(batch: _Batch, before: _Group | None) -> _Group:
    """What the batch is merged with; one without rows goes with what stands before it."""
    header = batch.header
    kind = kind_of(header, batch.message)
    if batch.alone:
        return _Group(kind, header.delete_horizon_ms, header.base_offset)
    follows = before is not None and before.alone_at < 0 and before.kind.leader_epoch == kind.leader_epoch
    if before is not None and follows and not batch.rows.rows.num_rows:
        return before
    return _Group(kind, header.delete_horizon_ms, -1)


def _offsets(batches: Sequence[_Batch]) -> Any:
    return np.concatenate([offsets_of(batch.header, batch.rows) for batch in batches])


def next_horizon(log: Log) -> int | None:
    """When the first of the tombstones and markers in what was compacted may go, as the headers there say; None: none
    is left. Raises CorruptLog."""
    found = [
        placed.header.delete_horizon_ms
        for segment in log.segments[:-1]
        if segment.explicit and segment.tail.end_offset <= log.cleaned_to
        for placed in segment.walk(*reversed(segment.index[0][:2]))
        if placed.header.delete_horizon_ms
    ]
    return min(found, default=None)
