"""What a consumer holds of one partition, and what of it is in its user's hands.

Positions are kept here, because they move when the user asks for more: a record is *processed* once the next one is
asked for. `buffer.py` guards all of it with its lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator

from raystream.client.columns import Shape
from raystream.client.delivered import Batch
from raystream.client.fetched import Fetched
from raystream.client.records import Run
from raystream.errors import RaystreamError
from raystream.messages import NO_EPOCH
from raystream.types import TopicPartition


class Assigned:
    """One partition in the consumer's hands. `generation` grows with every seek, so that late fetches are dropped."""

    def __init__(self, partition: TopicPartition, shape: Shape, topic_id: str, offset: int) -> None:
        self.partition = partition
        self.shape = shape
        self.topic_id = topic_id
        self.epoch = 0
        """The group's epoch in which the partition was assigned."""
        self.begin = offset
        self.fetch_offset = offset
        self.last_epoch = NO_EPOCH
        """The leader epoch of what was fetched before `fetch_offset`, where it is known."""
        self.position = offset
        self.processed = offset
        self.committed: int | None = None
        self.commit_number = 0
        self.due: int | None = None
        """Nothing more is handed out before this position is committed."""
        self.generation = 0
        self.queue: deque[Fetched | Batch] = deque()
        self.buffered_bytes = 0
        self.high_watermark = -1
        self.paused = False
        self.revoking = False
        self.error: RaystreamError | None = None
        self.wanted = asyncio.Event()
        """Set on the loop when there may be room for more."""
        self.let_go = asyncio.Event()
        """Set on the loop when a partition that is being revoked is no longer in the user's hands."""

    @property
    def held_back(self) -> bool:
        """Whether nothing of it is handed out at the moment."""
        return self.paused or self.revoking or self.due is not None

    def drop_buffered(self) -> None:
        self.queue.clear()
        self.buffered_bytes = 0


class Hand:
    """What the user holds: a whole batch, or the record last drawn from a run of one."""

    __slots__ = ("batch", "cut", "generation", "run", "runs", "slot", "thread")

    def __init__(self, slot: Assigned, batch: Batch, runs: Iterator[Run] | None) -> None:
        self.slot = slot
        self.batch = batch
        self.generation = slot.generation
        self.runs = runs
        self.thread = threading.get_ident()
        self.run: Run | None = None
        self.cut = False

    @property
    def valid(self) -> bool:
        return self.generation == self.slot.generation

    @property
    def handed_out(self) -> int:
        """The offset after the last record that was handed out."""
        if self.runs is None:
            return self.batch.offsets.stop
        drawn = self.run.handed_out if self.run else 0
        if self.run is None or not drawn:
            return self.first
        return self.run.offsets[drawn - 1] + 1

    @property
    def first(self) -> int:
        """The offset of the oldest record that the user may still be working on."""
        if self.runs is None or self.run is None:
            return self.batch.offsets.start
        return self.run.offsets[max(self.run.handed_out - 1, 0)]

    def end(self) -> None:
        """No further record is drawn after the one in hand."""
        self.cut = True
        if self.run is not None:
            self.run.cut()
