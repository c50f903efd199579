"""A simulated partition log and its disk: what was not synced before a power cut is lost, from some batch on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from raystream.core.replication import BatchAt
from raystream.storage.epochs import Epochs
from tests.sim.world import require


class Batch(NamedTuple):
    """A batch where it stands; `value` is never used twice in a run."""

    base_offset: int
    end_offset: int
    epoch: int
    value: int

    @property
    def place(self) -> BatchAt:
        return BatchAt(self.base_offset, self.end_offset, self.epoch)


class ModelLog:
    """`cells` holds for every offset from `start` on the batch that it belongs to."""

    def __init__(self) -> None:
        self.start = 0
        self.cells: list[Batch] = []
        self.flushed = 0
        self.synced = 0
        """What survives a power cut. Less than `flushed` where that means written only."""
        self.high_watermark = 0
        self.epochs = Epochs()
        self.cuts = 0

    @property
    def end(self) -> int:
        return self.start + len(self.cells)

    def append(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            follows = batch.base_offset == self.end and batch.epoch >= self.epochs.last
            require(follows, f"{batch} does not follow epoch {self.epochs.last} at offset {self.end}")
            self.epochs.note(batch.epoch, batch.base_offset)
            self.cells += [batch] * (batch.end_offset - batch.base_offset)

    def read(self, offset: int, at_most: int) -> list[Batch]:
        """Whole batches; none where they are not there any more."""
        found: list[Batch] = []
        while self.start <= offset < self.end and len(found) < at_most:
            batch = self.cells[offset - self.start]
            require(batch.base_offset == offset, f"offset {offset} stands inside {batch}")
            found.append(batch)
            offset = batch.end_offset
        return found

    def truncate(self, offset: int) -> None:
        """Durable at once, as is all that stays."""
        if offset < self.end:
            at_batch = self.start <= offset and self.cells[offset - self.start].base_offset == offset
            require(at_batch, f"a log that begins at {self.start} cannot be cut at {offset}")
            del self.cells[offset - self.start :]
            self.epochs.cut(offset)
        self.flushed = self.synced = self.end
        self.cuts += 1

    def begin_at(self, offset: int) -> None:
        """Another log, without records."""
        self.start, self.cells, self.epochs = offset, [], Epochs()
        self.flushed = self.synced = self.high_watermark = offset
        self.cuts += 1

    def delete_before(self, offset: int) -> None:
        """At a batch's base or the end."""
        if offset > self.start:
            del self.cells[: offset - self.start]
            self.start = offset
            self.epochs.drop_before(offset)

    def power_cut(self, rng: random.Random) -> bool:
        """Whether something was lost that was said to be flushed."""
        survives = max(rng.randint(min(self.synced, self.end), self.end), self.start)
        promised = self.flushed
        if survives < self.end:
            self.truncate(max(self.cells[survives - self.start].base_offset, self.start))
        self.flushed = self.synced = self.end
        self.high_watermark = min(rng.randint(self.start, max(self.high_watermark, self.start)), self.end)
        return self.end < promised
