"""When a log's checkpoint is written, and what is written with it: producer snapshots and indexes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from raystream.clock import Clock
from raystream.config import MIB
from raystream.storage.checkpoint import CHECKPOINT_NAME, Checkpoint
from raystream.storage.epochs import Epochs
from raystream.storage.files import Files
from raystream.storage.producer_state import ProducerState
from raystream.storage.recovery import SNAPSHOT_SUFFIX, offset_in_name
from raystream.storage.segment import Identity, Segment, segment_name

CHECKPOINT_BYTES: Final = 64 * MIB
CHECKPOINT_MS: Final = 5_000


class Marks(NamedTuple):
    """The offsets that a checkpoint states."""

    start_offset: int
    high_watermark: int
    end_offset: int
    cleaned_to: int
    compacted: bool


class Checkpointer:
    """Writes one log's checkpoints. For the log's writer thread."""

    def __init__(self, files: Files, directory: str, identity: Identity, clock: Clock, snapshot_offset: int) -> None:
        self._files = files
        self._directory = directory
        self._identity = identity
        self._clock = clock
        self._snapshot_offset = snapshot_offset
        self._due_ms = clock.monotonic_ms() + CHECKPOINT_MS
        self._written: Marks | None = None
        self.bytes_since = 0
        """Appended since the last checkpoint."""
        self.covered = 0
        """Up to where the checkpoint on the disk spares reading the log."""

    def found(self, marks: Marks) -> None:
        """The checkpoint on the disk states these already."""
        self._written = marks
        self.covered = marks.end_offset

    def due(self, marks: Marks) -> bool:
        """Whether 64 MB or 5 s went by and there is something new to state. Asked again at once, it is not."""
        now_ms = self._clock.monotonic_ms()
        if self.bytes_since < CHECKPOINT_BYTES and now_ms < self._due_ms:
            return False
        self._due_ms = now_ms + CHECKPOINT_MS
        self.bytes_since = 0
        return marks != self._written

    def write(
        self,
        segments: Sequence[Segment],
        producers: ProducerState,
        epochs: Epochs,
        marks: Marks,
        *,
        clean: bool,
    ) -> None:
        """Writes snapshot, indexes and checkpoint; everything below `marks.end_offset` is on the disk already."""
        end = marks.end_offset
        producers.forget_expired()
        taken = self._save_producers(producers, end)
        producers.aborted.save(self._files, self._directory)
        active = segments[-1] if segments else None
        for segment in segments:
            segment.save_index(durable=segment is not active)
        point = Checkpoint(
            topic_id=self._identity.topic_id,
            partition=self._identity.partition,
            segment=-1 if active is None else active.base_offset,
            position=0 if active is None else active.tail.size,
            offset=end,
            high_watermark=min(marks.high_watermark, end),
            start_offset=marks.start_offset,
            producers=taken,
            epochs=epochs.starts,
            clean=clean,
            cleaned_to=marks.cleaned_to,
            compacted=marks.compacted,
            aborted=producers.aborted.last_offset,
        )
        self._files.write_atomically(f"{self._directory}/{CHECKPOINT_NAME}", point.to_bytes())
        self._written = marks
        self.covered = end
        self._due_ms = self._clock.monotonic_ms() + CHECKPOINT_MS
        self.bytes_since = 0
        self._keep_two_snapshots(any_needed=taken >= 0)

    def forget_past(self, offset: int) -> None:
        """Removes snapshots of batches that are about to go: others may take their offsets."""
        self._snapshot_offset = -1
        for taken_at, path in self._snapshots():
            if taken_at > offset:
                self._files.unlink(path)

    def _save_producers(self, producers: ProducerState, end: int) -> int:
        """The offset of a snapshot that holds the present state, or -1 where there is no state."""
        if not len(producers):
            return -1
        if self._snapshot_offset != end or self._written is None:
            path = f"{self._directory}/{segment_name(end)}{SNAPSHOT_SUFFIX}"
            self._files.write_atomically(path, producers.to_bytes(end))
            self._snapshot_offset = end
        return end

    def _keep_two_snapshots(self, *, any_needed: bool) -> None:
        """The newest, and the one before it in case that the newest is damaged."""
        for _, path in self._snapshots()[: -2 if any_needed else None]:
            self._files.unlink(path)

    def _snapshots(self) -> list[tuple[int, str]]:
        found = ((offset_in_name(name, SNAPSHOT_SUFFIX), name) for name in self._files.listdir(self._directory))
        return sorted((offset, f"{self._directory}/{name}") for offset, name in found if offset is not None)
