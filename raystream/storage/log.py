"""A partition's log: segments in a directory, appended to by one thread and read by any.

Guarantees. What `append` returned stands in the log; once `flush` has returned, it survives a crash of the machine. An
append that raises has left the log as it was. Whatever `open` returns ends at a batch's end, holds every batch that was
flushed, and none that was not appended. After a StorageError other than DiskFull the log takes no more writes: close
it and open it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Final

import pyarrow as pa

from raystream.batch import LeaderFields
from raystream.clock import Clock
from raystream.config import MIN_FREE_BYTES, TopicConfig
from raystream.errors import DiskFull, InvalidArgument, InvalidRecord, OffsetOutOfRange, StorageError
from raystream.storage import reading
from raystream.storage.appending import (
    AppendResult,
    Batches,
    Run,
    SchemaHeads,
    Stamped,
    as_follower,
    as_leader,
    lay_out,
)
from raystream.storage.checkpointing import Checkpointer, Marks
from raystream.storage.epochs import Epochs
from raystream.storage.files import AppendHandle, Files, LockHandle
from raystream.storage.producer_state import ProducerState
from raystream.storage.readable import ReadableLog
from raystream.storage.recovery import Recovered, Recovery
from raystream.storage.room import Room
from raystream.storage.segment import Identity, Segment

LOCK_NAME: Final = "lock"


class Log(ReadableLog):
    """Use `Log.open`. Methods are for the one writer thread, but for those of `ReadableLog`."""

    def __init__(
        self,
        files: Files,
        directory: str,
        lock: LockHandle,
        recovered: Recovered,
        *,
        identity: Identity,
        heads: SchemaHeads,
        config: TopicConfig,
        clock: Clock,
        time_column: str | None,
        min_free_bytes: int,
    ) -> None:
        self.producers: ProducerState = recovered.producers
        self.epochs: Epochs = recovered.epochs
        self.start_offset = recovered.start_offset
        self.end_offset = recovered.end_offset
        self.flushed_end_offset = recovered.end_offset
        self.high_watermark = recovered.high_watermark
        self.cleaned_to = recovered.cleaned_to
        self.compacted = recovered.compacted
        self._files = files
        self._directory = directory
        self._lock = lock
        self._identity = identity
        self.heads = heads
        self._config = config
        self._clock = clock
        self._time_column = time_column
        self._segments = recovered.segments
        self._handle: AppendHandle | None = None
        self._directory_dirty = False
        self._failure: StorageError | None = None
        self._room = Room(files, directory, min_free_bytes)
        self._checkpoints = Checkpointer(files, directory, identity, clock, recovered.snapshot_offset)

    @classmethod
    def open(
        cls,
        files: Files,
        directory: str,
        *,
        topic_id: str,
        partition: int,
        schemas: Sequence[pa.Schema],
        config: TopicConfig,
        clock: Clock,
        time_column: str | None = None,
        min_free_bytes: int = MIN_FREE_BYTES,
    ) -> Log:
        """Opens the log in `directory`, which is made where it is missing, and recovers it.

        A schema's id is its place in `schemas` plus one. `time_column` names the column that gives a typed topic's
        timestamps; raw topics need none. Raises DataDirectoryInUse while another holds the directory's lock, CorruptLog
        and NewerFormat with the files as they were, and StorageError.
        """
        files.makedirs(directory)
        lock = files.lock(f"{directory}/{LOCK_NAME}")
        try:
            identity = Identity(topic_id, partition)
            recovered = Recovery(files, directory, identity, clock).run()
            heads = SchemaHeads(topic_id, schemas)
            log = cls(
                files,
                directory,
                lock,
                recovered,
                identity=identity,
                heads=heads,
                config=config,
                clock=clock,
                time_column=time_column or heads.raw_time_column(),
                min_free_bytes=min_free_bytes,
            )
        except BaseException:
            lock.release()
            raise
        log._begin(recovered)
        return log

    def _begin(self, recovered: Recovered) -> None:
        try:
            if self._segments:
                self._handle = self._files.open_append(self._segments[-1].path)
                self._handle.sync()  # what a killed process had written may still be in memory alone
            if not recovered.changed:
                self._checkpoints.found(self._marks())
                return
            # Reads go on; the next opening scans as far as this one did. But a new log leaves a trace: see `holds_log`.
            with suppress(DiskFull) if self._segments else nullcontext():
                self.checkpoint()
        except BaseException as error:
            self._failure = StorageError(f"opening failed: {error}")
            self.close()
            raise

    # Appending ------------------------------------------------------------------------------------------------------

    def append(self, batches: Batches, *, leader_epoch: int, high_watermark: int) -> list[AppendResult]:
        """Appends encoded batches as they are, with the leader's fields patched in; does not sync.

        Each comes with its header as parsed; CRC and sequence have been checked by the caller. Raises DiskFull (the log
        stands as before, a later append may succeed), StorageError, InvalidRecord for a schema it does not know.
        """
        self._refuse_if_failed()
        self._room.take(sum(header.message_bytes for _, header in batches))
        now_ms = self._clock.now_ms()
        # A header states only what is on the disk as published: recovery takes it as proof that nothing may be missing.
        leader = LeaderFields(self.end_offset, leader_epoch, min(high_watermark, self.flushed_end_offset), now_ms)
        return self._append(batches, as_leader(batches, leader), leader_epoch)

    def append_as_follower(self, batches: Batches) -> int:
        """Appends batches from the leader's log, byte for byte; does not sync. Returns the new end offset.

        CRCs have been checked by the caller. Raises as `append`, and InvalidRecord where the batches do not go on from
        the log's end, or from its last epoch.
        """
        self._refuse_if_failed()
        expected, epoch = self.end_offset, self.epochs.last
        for _, header in batches:
            if header.base_offset != expected or header.leader_epoch < epoch:
                raise InvalidRecord(
                    f"a batch of epoch {header.leader_epoch} at offset {header.base_offset} does not follow epoch "
                    f"{epoch} at offset {expected}"
                )
            expected, epoch = header.next_offset, header.leader_epoch
        self._room.take(sum(header.message_bytes for _, header in batches))
        self._append(batches, as_follower(batches), None)
        return self.end_offset

    def _append(self, batches: Batches, stamped: Iterable[Stamped], epoch: int | None) -> list[AppendResult]:
        active = self._segments[-1] if self._segments else None
        runs, results = lay_out(stamped, active, heads=self.heads, config=self._config)
        self._write(runs)
        self.compacted = self.compacted or any(h.is_explicit or h.is_control for _, h in batches)
        for (_, header), result in zip(batches, results, strict=True):
            self.producers.record(header, result.base_offset, result.append_time_ms)
            self.epochs.note(header.leader_epoch if epoch is None else epoch, result.base_offset)
        if results:
            self.end_offset = results[-1].next_offset
        return results

    def _write(self, runs: list[Run]) -> None:
        """All runs or none."""
        opened: list[tuple[Segment, AppendHandle]] = []
        handle = self._handle
        try:
            for run in runs:
                if run.opens:
                    if handle is not None:
                        self._make_durable(handle)  # before the next segment exists: recovery relies on it
                    handle = self._open_segment(run, opened)
                assert handle is not None
                handle.writev(run.pieces)
        except StorageError as error:
            self._undo(opened, error)
            raise
        for run, segment in zip(runs, self._targets(runs, opened), strict=True):
            segment.extend(run.placed, run.end)
            self._checkpoints.bytes_since += run.end - run.placed[0].position
        if opened:
            self._rolled(opened)

    def _targets(self, runs: list[Run], opened: list[tuple[Segment, AppendHandle]]) -> list[Segment]:
        new = [segment for segment, _ in opened]
        return new if runs and runs[0].opens else [*self._segments[-1:], *new][: len(runs)]

    def _open_segment(self, run: Run, opened: list[tuple[Segment, AppendHandle]]) -> AppendHandle:
        segment = Segment.new(
            self._files, self._directory, run.base_offset, self._identity, run.schema_id, explicit=run.explicit
        )
        handle = self._files.open_append(segment.path)
        opened.append((segment, handle))
        self._directory_dirty = True
        if handle.size:
            opened.pop()
            handle.close()
            raise StorageError(f"{segment.path} is there already, although the log ends before it", path=segment.path)
        return handle

    def _rolled(self, opened: list[tuple[Segment, AppendHandle]]) -> None:
        for handle in [self._handle, *(h for _, h in opened[:-1])]:
            if handle is not None:
                handle.close()
        for sealed in [*self._segments[-1:], *(s for s, _ in opened[:-1])]:
            sealed.seal()
        self._handle = opened[-1][1]
        self._segments = (*self._segments, *(segment for segment, _ in opened))
        self.flushed_end_offset = max(self.flushed_end_offset, opened[-1][0].base_offset)

    def _undo(self, opened: list[tuple[Segment, AppendHandle]], cause: StorageError) -> None:
        """Brings the files back to what they were before the append: nothing of it was published. Raises StorageError
        where that fails: a part of it may be there when the log is opened again."""
        if not isinstance(cause, DiskFull):
            self._failure = cause
        try:
            for segment, handle in reversed(opened):
                handle.close()
                self._files.unlink(segment.path)
            if opened:
                self._files.sync_dir(self._directory)  # before the cut: a later segment must not outlive it
            if self._handle is not None and self._handle.size > self._segments[-1].tail.size:
                self._handle.truncate(self._segments[-1].tail.size)
                self._handle.sync()
        except StorageError as error:
            self._failure = self._failure or error
            raise StorageError(f"{error}; before that: {cause}") from error

    def flush(self) -> int:
        """Syncs what is not on the disk yet. Returns the end offset up to which everything is."""
        self._refuse_if_failed()
        end = self.end_offset
        if self.flushed_end_offset < end or self._directory_dirty:
            with self._last_write():
                if self._handle is not None:
                    self._make_durable(self._handle)
            self.flushed_end_offset = end
        return end

    def drop_cached(self) -> None:
        """What was appended last and is on the disk will not be read soon: it need not stay in the machine's memory,
        where it would take the place of what is."""
        if self._handle is not None:
            self._handle.drop_cached()

    def _make_durable(self, handle: AppendHandle) -> None:
        """A segment's bytes and its name."""
        handle.sync()
        if self._directory_dirty:
            self._files.sync_dir(self._directory)
            self._directory_dirty = False

    def advance_high_watermark(self, offset: int) -> None:
        """Raises the high watermark; it never goes back, and never past the end."""
        self.high_watermark = max(self.high_watermark, min(offset, self.end_offset))

    @contextmanager
    def _last_write(self) -> Iterator[None]:
        """Nobody knows what a write that failed in here has left: the log takes no more."""
        try:
            yield
        except StorageError as error:
            self._failure = error
            raise

    def _refuse_if_failed(self) -> None:
        if self._failure is not None:
            raise StorageError(f"the log in {self._directory} takes no more writes: {self._failure}")

    # Changing -------------------------------------------------------------------------------------------------------

    def delete_before(self, offset: int, *, active_too: bool = False) -> None:
        """Moves the start offset up and removes the segments that lie below it. Durable when it returns.

        The segment that is appended to stays, unless `active_too`: the next append begins another one then. Raises
        OffsetOutOfRange past the end. A crash half-way leaves files that the next opening removes.
        """
        if offset > self.end_offset:
            raise OffsetOutOfRange(f"cannot delete before offset {offset}: the log ends at {self.end_offset}")
        everything = active_too and offset == self.end_offset and bool(self._segments)
        if offset < self.start_offset or (offset == self.start_offset and not everything):
            return
        before, self.start_offset = self.start_offset, offset
        self.epochs.drop_before(offset)
        self.producers.aborted.drop_before(offset)
        of = self._segments if everything else self._segments[:-1]
        gone = [s for s in of if s.tail.end_offset <= offset]
        try:
            self._checkpoint_making_room(gone, kept=self._segments[len(gone) :])
        except DiskFull:
            self.start_offset = before
            raise
        self._segments = self._segments[len(gone) :]
        if everything and self._handle is not None:
            self._handle.close()
            self._handle = None
        for segment in gone:
            self._files.unlink(segment.path)
            self._files.unlink(segment.index_path)
        if gone:
            self._files.sync_dir(self._directory)

    def truncate(self, offset: int) -> int:
        """Drops the batches that hold `offset` or a later one, for a replica whose log parts from its leader's there.
        Durable when it returns the new end offset. Raises InvalidArgument below the high watermark.

        A crash half-way leaves the log as it was, or less of it that still ends at a batch's end and holds everything
        below `offset`. After a StorageError the log takes no more writes.
        """
        self._refuse_if_failed()
        if offset < self.high_watermark:
            raise InvalidArgument(f"offset {offset} is published: the high watermark is {self.high_watermark}")
        if offset >= self.end_offset:
            return self.end_offset
        place = reading.segment_of(self._segments, offset)
        end, position = self._segments[place].locate(offset)
        whole = place if end == self._segments[place].base_offset else place + 1
        gone = self._segments[whole:]
        kept = self._segments[:place]
        if whole > place:
            kept = (*kept, self._segments[place].shortened(end, position))
        with self._last_write():
            self._shorten(kept, gone, end)
        return end

    def begin_at(self, offset: int, producers: ProducerState | None = None) -> None:
        """Drops everything and goes on at `offset`: for a replica whose leader has deleted what would follow. All below
        counts as published. A crash half-way leaves an empty log. Raises as `truncate`."""
        self._refuse_if_failed()
        if offset < self.high_watermark:
            raise InvalidArgument(f"offset {offset} is published: the high watermark is {self.high_watermark}")
        self.epochs = Epochs()
        with self._last_write():
            self._shorten((), self._segments, self.start_offset)
            self.start_offset = self.end_offset = self.flushed_end_offset = self.high_watermark = offset
            self.cleaned_to = offset
            self.producers = producers or self.producers
            self.checkpoint()

    def _shorten(self, kept: tuple[Segment, ...], gone: tuple[Segment, ...], end: int) -> None:
        """The checkpoint first: from then on nothing past `end` is taken for granted. Then later segments go, the last
        one first, so that what is left is a log at every moment; then the file of the last that stays is cut."""
        if self._handle is not None:
            self._handle.close()
        self._handle = self._files.open_append(kept[-1].path) if kept else None
        recovery = Recovery(self._files, self._directory, self._identity, self._clock)
        remembered = self.producers.up_to(end)  # which batches that were compacted do not tell
        self.producers = recovery.producers_at(kept, end, self.producers.aborted)
        self.producers.update(remembered)
        self.producers.settle(self.cleaned_to)
        self.epochs.cut(end)
        self._segments, self.end_offset = kept, end
        self.flushed_end_offset = min(self.flushed_end_offset, end)
        self.start_offset = min(self.start_offset, end)
        self._checkpoints.forget_past(end)
        self.checkpoint()
        for segment in reversed(gone):
            self._files.unlink(segment.path)
            self._files.unlink(segment.index_path)
            self._files.sync_dir(self._directory)
        if self._handle is not None and self._handle.size > kept[-1].tail.size:
            self._handle.truncate(kept[-1].tail.size)
            self._handle.sync()

    def _checkpoint_making_room(self, gone: list[Segment], kept: tuple[Segment, ...]) -> None:
        """Deleting must work on a disk without a byte of room: index files of what goes can go first."""
        try:
            self._checkpoint(kept)
        except DiskFull:
            for segment in gone:
                self._files.unlink(segment.index_path)
            self._checkpoint(kept)

    def replace(self, segment: Segment, data: bytes) -> None:
        """Gives a segment another file of the same length, durably: `repair.replace` says when, and on which thread."""
        self._refuse_if_failed()  # or closed: others may hold the directory by now
        active = segment in self._segments[-1:]
        with self._last_write() if active else nullcontext():
            self._files.write_atomically(segment.path, data)
            if active and self._handle is not None:
                self._handle.close()
                self._handle = self._files.open_append(segment.path)
        if segment not in self._segments:
            self._files.unlink(segment.path)  # deleted meanwhile

    def swap(self, old: Sequence[Segment], temporary: str, new: Segment) -> bool:
        """Puts a segment that compaction has written and synced as `temporary`, with its index, in the place of those
        it was made of. False where they are not the log's any more; the files are gone then. Durable when it returns.
        The old files are the caller's to remove, beside the writer: it may take long. Until then files overlap; an
        opening takes those of the higher generation.
        """
        assert new.index_saved, "it says where the segment ends, for an opening that finds both"
        self._refuse_if_failed()
        place = next((at for at, segment in enumerate(self._segments) if segment is old[0]), -1)
        if place < 0 or self._segments[place : place + len(old)] != tuple(old) or old[-1] is self._segments[-1]:
            self._files.unlink(temporary)
            self._files.unlink(new.index_path)
            return False
        with self._last_write():
            self._files.rename(temporary, new.path)
        self.compacted = True
        self._segments = (*self._segments[:place], new, *self._segments[place + len(old) :])
        return True

    def cleaned(self, offset: int) -> None:
        """Compaction has gone up to `offset`. Of transactions that were aborted below nothing is left."""
        self.cleaned_to = max(self.cleaned_to, min(offset, self.end_offset))
        self.producers.aborted.drop_before(self.cleaned_to)

    def learn(self, producers: ProducerState) -> None:
        """Takes over, durably, what a leader remembers of producers whose batches it has compacted."""
        self.producers.update(producers)
        self._checkpoints.forget_past(self.end_offset)
        self.checkpoint()

    @property
    def directory(self) -> str:
        return self._directory

    @property
    def snapshot_offset(self) -> int:
        """Up to where producers are remembered without the log: past it, their batches must stay as they are."""
        return self._checkpoints.covered

    def add_schema(self, schema: pa.Schema) -> None:
        """The topic's next schema; its id is one more than the last."""
        self.heads.schemas.append(schema)

    def set_config(self, config: TopicConfig) -> None:
        self._config = config

    def maybe_checkpoint(self) -> None:
        """Writes a checkpoint where 64 MB or 5 s went by since the last and something changed. A full disk is no
        error here: opening would read further back, and it is tried again."""
        if self._checkpoints.due(self._marks()):
            with suppress(DiskFull):
                self.checkpoint()

    def checkpoint(self, *, clean: bool = False) -> None:
        """Syncs, and writes down that everything up to here need not be read on opening. Raises StorageError."""
        self._checkpoint(self._segments, clean=clean)

    def _checkpoint(self, segments: tuple[Segment, ...], *, clean: bool = False) -> None:
        end = self.flush()
        marks = self._marks()._replace(end_offset=end)
        self._checkpoints.write(segments, self.producers, self.epochs, marks, clean=clean)

    def _marks(self) -> Marks:
        return Marks(self.start_offset, self.high_watermark, self.end_offset, self.cleaned_to, self.compacted)

    def close(self) -> None:
        """Flushes, states in the checkpoint that the log was closed in order, and gives the lock back."""
        try:
            if self._failure is None:
                self.checkpoint(clean=True)
        except DiskFull:
            pass  # the next opening reads a little more
        finally:
            if self._handle is not None:
                self._handle.close()
                self._handle = None
            self._failure = self._failure or StorageError("the log is closed")
            self._lock.release()
