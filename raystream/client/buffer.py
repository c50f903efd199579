"""The meeting place of a consumer's two threads: the event loop puts in what it fetched, the user's takes it out.

One lock guards it and the partitions' positions, and is held for moments only; rows are decoded outside it. An
interrupt (Ctrl-C) at any point may hand records out twice and loses none.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final, TypeAlias

from raystream.batch import BatchHeader
from raystream.client.assigned import Assigned, Hand
from raystream.client.columns import Piece, decoded
from raystream.client.delivered import Batch
from raystream.client.fetched import Fetched, join_head
from raystream.client.loop import LONGEST_WAIT_S
from raystream.client.records import Deserializer, Run
from raystream.errors import Closed, CorruptBatch, NewerFormat, OffsetOutOfRange, RaystreamError
from raystream.messages import NO_EPOCH
from raystream.types import TopicPartition

Wake: TypeAlias = Callable[[], None]

JOINED_BYTES: Final = 1 << 20
"""Small fetches that queued up are handed out as one batch, of at most about this size."""


class Buffer:
    """Fetched and not yet handed out, per partition, in turn. Every method may be called from any thread."""

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        *,
        check_crcs: bool,
        deserializers: tuple[Deserializer | None, Deserializer | None],
        max_batch_bytes: int = JOINED_BYTES,
        on_lost: Callable[[OffsetOutOfRange], object] | None = None,
    ) -> None:
        self._post = post
        self._on_lost = on_lost
        self._lost: deque[OffsetOutOfRange] = deque()
        self._joined_bytes = min(max_batch_bytes, JOINED_BYTES)
        self._check_crcs = check_crcs
        self._deserializers = deserializers
        self._ready = threading.Condition()
        self._slots: dict[TopicPartition, Assigned] = {}
        self._turn: deque[TopicPartition] = deque()
        self._hand: Hand | None = None
        self._wakers: list[Wake] = []
        self._when_finished: Callable[[], None] | None = None
        self._failure: RaystreamError | None = None
        self._stopped = False
        self._closed = False
        self._waiting = 0
        self._asked = time.monotonic()

    # What the loop does ---------------------------------------------------------------------------------------------

    def add(self, slot: Assigned) -> None:
        with self._ready:
            self._slots[slot.partition] = slot
            self._turn.append(slot.partition)
            self._notify()

    def remove(self, slot: Assigned) -> None:
        with self._ready:
            slot.drop_buffered()
            if self._slots.get(slot.partition) is slot:
                del self._slots[slot.partition]
                self._turn.remove(slot.partition)

    def put(self, slot: Assigned, generation: int, fetched: Fetched) -> bool:
        """Queues what a fetch brought; False where the position was moved or the partition taken meanwhile."""
        with self._ready:
            if slot.generation != generation or slot.revoking or self._slots.get(slot.partition) is not slot:
                return False
            slot.queue.append(fetched)
            slot.buffered_bytes += fetched.size_bytes
            slot.fetch_offset, slot.last_epoch = fetched.next_offset, fetched.last_epoch
            self._notify()
            return True

    def revoke(self, slot: Assigned) -> None:
        """Nothing more of the partition is handed out. `slot.let_go` is set once it is not in hand."""
        with self._ready:
            slot.revoking = True
            slot.drop_buffered()
            if self._hand is not None and self._hand.slot is slot:
                self._hand.end()
            else:
                self._post(slot.let_go.set)

    def asked_ms_ago(self) -> int:
        """How long ago the user last asked for records; 0 while somebody waits for them."""
        with self._ready:
            return 0 if self._waiting or self._wakers else int((time.monotonic() - self._asked) * 1000)

    def drained(self, slot: Assigned) -> bool:
        """Whether nothing of the partition is buffered or in the user's hands."""
        with self._ready:
            return not slot.queue and (self._hand is None or self._hand.slot is not slot)

    def lose(self, lost: OffsetOutOfRange) -> None:
        """The user is told at the next call that asks for more, once."""
        with self._ready:
            if self._on_lost is not None:
                self._lost.append(lost)
                self._notify()

    def fail(self, error: RaystreamError, slot: Assigned | None = None) -> None:
        """Raises `error` at the user: for ever, or until a seek where it concerns one partition."""
        with self._ready:
            if slot is None:
                self._failure = error
            else:
                slot.error = error
            self._notify()

    def cut_off(self) -> None:
        """The connection went while the consumer was open."""
        with self._ready:
            if not self._closed:
                self._failure = Closed("the connection to the cluster is closed: connect() again")
                self._notify()

    def commit_each_batch(self, when_finished: Callable[[], None]) -> None:
        """From now on a batch waits until `committed` covers the one before it in its partition; `when_finished` is
        called on the loop when there is a position to commit."""
        self._when_finished = when_finished

    def committed(self, slot: Assigned, offset: int, number: int) -> None:
        """The group's position in the partition is `offset` now, by the member's commit of that number. Answers may
        come in any order: the latest commit counts."""
        with self._ready:
            if number < slot.commit_number:
                return
            slot.commit_number = number
            slot.committed = offset
            if slot.due is not None and slot.due <= offset:
                slot.due = None
                self._notify()

    def slots(self) -> dict[TopicPartition, Assigned]:
        with self._ready:
            return dict(self._slots)

    def processed(self, slot: Assigned) -> int:
        """The offset below which every record counts as processed."""
        with self._ready:
            hand = self._hand
            if hand is not None and hand.slot is slot and hand.valid:
                return max(slot.processed, hand.first)
            return slot.processed

    # What the user does ---------------------------------------------------------------------------------------------

    def take(self, timeout_s: float | None) -> Batch | None:
        """The next batch, or None after `timeout_s` seconds or `stop`. What was in hand before is processed now."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            batch = self.batch_at_hand()
            if batch is not None or not self._wait(deadline):
                return batch

    def batch_at_hand(self) -> Batch | None:
        """As `take`, without waiting."""
        hand = self._next_hand(by_record=False)
        return None if hand is None else hand.batch

    def next_run(self, timeout_s: float | None, *, deserialize: bool = True) -> Run | None:
        """Records to draw from: the rest of those in hand, else of the next batch; None as in `take`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            run = self.run_at_hand(deserialize=deserialize)
            if run is not None or not self._wait(deadline):
                return run

    def run_at_hand(self, *, deserialize: bool = True) -> Run | None:
        """As `next_run`, without waiting."""
        while True:
            hand = self._hand
            if hand is None or hand.runs is None or hand.cut or not hand.valid:
                hand = self._next_hand(by_record=True, deserialize=deserialize)
                if hand is None:
                    return None
            elif hand.run is not None and not hand.run.exhausted:
                return None if self._stopped else hand.run
            run = self._following_run(hand)
            if run is not None:
                return None if self._stopped else run

    def _following_run(self, hand: Hand) -> Run | None:
        """The next run of the batch in hand; None at its end, or where it was taken away meanwhile."""
        assert hand.runs is not None
        try:
            run = next(hand.runs, None)  # makes Python objects: outside the lock
            with self._ready:
                if run is None:
                    self._settle(whole=True)
                elif not hand.cut and hand.valid:
                    hand.slot.processed = max(hand.slot.processed, hand.handed_out)
                    hand.run = run
                    return run
        except BaseException:  # an interrupt: what was being made is made again
            with self._ready:
                self._settle()
            raise
        return None

    def _next_hand(self, *, by_record: bool, deserialize: bool = True) -> Hand | None:
        while True:
            with self._ready:
                self._settle()
                self._asked = time.monotonic()
                lost = self._lost.popleft() if self._lost and not self._stopped else None
            if lost is not None and self._on_lost is not None:
                self._on_lost(lost)  # it may raise, or call the consumer
            with self._ready:
                slot = self._in_turn()
                if slot is None:
                    return None
                join_head(slot.queue, self._joined_bytes)
                item, generation = slot.queue[0], slot.generation
            batch, damaged = (item, None) if isinstance(item, Batch) else self._decode(slot, item)
            with self._ready:
                if slot.generation != generation or slot.held_back:
                    continue  # moved, taken away or held back while its rows were decoded
                # It leaves the queue only now, so that an interrupt during the decoding loses nothing.
                hand = Hand(slot, batch, batch.runs(deserialize) if by_record else None) if len(batch) else None
                self._hand = hand
                self._take_off(slot, item, damaged)
                slot.position = batch.offsets.stop
                if hand is not None:
                    return hand
                slot.processed = batch.offsets.stop

    def _in_turn(self) -> Assigned | None:
        if self._stopped or self._closed:
            return None
        for _ in range(len(self._turn)):
            slot = self._slots[self._turn[0]]
            self._turn.rotate(-1)
            if slot.held_back:
                continue
            if slot.queue:
                return slot
            if slot.error is not None:
                raise slot.error
        if self._failure is not None:
            raise self._failure
        return None

    def _take_off(self, slot: Assigned, item: Fetched | Batch, damaged: Fetched | None) -> None:
        slot.queue.popleft()
        if damaged is not None:
            slot.queue.appendleft(damaged)
        if isinstance(item, Fetched):
            slot.buffered_bytes -= item.size_bytes
            self._post(slot.wanted.set)

    def _decode(self, slot: Assigned, fetched: Fetched) -> tuple[Batch, Fetched | None]:
        """A batch of what is whole, and what is left from the first damage on: its error is raised in its turn."""
        pieces: list[Piece] = []
        next_offset = fetched.next_offset
        damaged = None
        for at, (header, message) in enumerate(fetched.entries):
            try:
                piece = decoded(header, message, fetched.schema, fetched.first_offset, None, self._check_crcs)
            except (CorruptBatch, NewerFormat) as error:
                if not pieces:
                    raise _located(error, slot.partition, header) from None
                next_offset = header.base_offset
                damaged = replace(fetched, entries=fetched.entries[at:], first_offset=next_offset, size_bytes=0)
                break
            pieces.append(piece)
        batch = Batch(
            slot.shape,
            slot.partition.partition,
            pieces,
            fetched.schema,
            next_offset=next_offset,
            high_watermark=fetched.high_watermark,
            deserializers=self._deserializers,
        )
        return batch, damaged

    def _settle(self, *, whole: bool = False) -> None:
        """The user has asked for more (or ended cleanly): what was in hand is processed. The rest of it waits."""
        hand = self._hand
        if hand is None:
            return
        slot = hand.slot
        if hand.valid:
            slot.processed = max(slot.processed, hand.batch.offsets.stop if whole else hand.handed_out)
            if not whole and not hand.cut:
                self._put_back(hand, hand.handed_out)
            self._finished(slot)
        self._hand = None
        if slot.revoking:
            self._post(slot.let_go.set)

    def _finished(self, slot: Assigned) -> None:
        if self._when_finished is not None and slot.processed != slot.committed:
            self._post(self._when_finished)  # first: an interrupt between the two must not leave it due for nobody
            slot.due = slot.processed

    def _put_back(self, hand: Hand, offset: int, end: int | None = None) -> None:
        hand.slot.position = offset
        if (hand.batch.offsets.stop if end is None else end) > offset:
            hand.slot.queue.appendleft(hand.batch.between(offset, end))

    def rewind(self) -> TopicPartition | None:
        """What is in hand comes again: its deserializer or its handler failed. Returns its partition."""
        with self._ready:
            hand, self._hand = self._hand, None
            if hand is None:
                return None
            slot = hand.slot
            if hand.valid:
                slot.processed = max(slot.processed, hand.first)
            if slot.revoking:
                self._post(slot.let_go.set)
            elif hand.valid:
                # Where the hand was cut, what follows the record in hand is in the queue already.
                self._put_back(hand, hand.first, hand.handed_out if hand.cut else None)
            return slot.partition

    def release(self, *, processed: bool | None) -> None:
        """The user is done: what is in hand counts as processed, or does not. None: it does unless another thread
        has it, which may still be working on it."""
        with self._ready:
            if processed is None:
                processed = self._hand is None or self._hand.thread == threading.get_ident()
            if processed:
                self._settle()
            else:
                self.rewind()

    def move(self, slot: Assigned, offset: int) -> None:
        """The partition goes on at `offset`; what was buffered or in hand of it no longer counts."""
        with self._ready:
            if self._hand is not None and self._hand.slot is slot:
                self._hand.end()
            slot.generation += 1
            slot.drop_buffered()
            slot.due = None
            slot.error = None
            slot.fetch_offset = slot.position = slot.processed = offset
            slot.last_epoch = NO_EPOCH

    def pause(self, slot: Assigned, paused: bool) -> None:
        with self._ready:
            hand = self._hand
            if paused and hand is not None and hand.slot is slot and hand.valid and not hand.cut:
                hand.end()
                self._put_back(hand, hand.handed_out)
            slot.paused = paused
            self._notify()

    def position(self, slot: Assigned) -> int:
        """The offset of the next record that will be handed out."""
        with self._ready:
            hand = self._hand
            if hand is not None and hand.slot is slot and hand.valid:
                return hand.handed_out
            return slot.position

    def acknowledge_batch(self, batch: Batch) -> None:
        """The batch counts as processed, also while it is in hand."""
        with self._ready:
            slot = self._slots.get(batch.topic_partition)
            if slot is not None and slot.processed <= batch.offsets.stop <= self.position(slot):
                slot.processed = batch.offsets.stop

    def acknowledge(self, *, revoking: bool = False) -> dict[TopicPartition, int]:
        """Everything handed out so far counts as processed; the positions to commit, with `revoking` also those of
        partitions that are on their way out."""
        with self._ready:
            for slot in self._slots.values():
                slot.processed = max(slot.processed, self.position(slot))
            return {p: slot.processed for p, slot in self._slots.items() if revoking or not slot.revoking}

    # Waiting --------------------------------------------------------------------------------------------------------

    def _wait(self, deadline: float | None) -> bool:
        """Waits for something to take; False at the deadline and after `stop`. A signal interrupts it."""
        with self._ready:
            if self._stopped or self._closed:
                self._stopped = False
                return False
            if self._any_ready():
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._waiting += 1
            try:
                self._ready.wait(LONGEST_WAIT_S if left is None else min(left, LONGEST_WAIT_S))
            finally:
                self._waiting -= 1
            return True

    def _any_ready(self) -> bool:
        ready = (s for s in self._slots.values() if (s.queue or s.error) and not s.held_back)
        return self._failure is not None or bool(self._lost) or any(ready)

    def when_ready(self, wake: Wake) -> None:
        """Calls `wake` once, from any thread, when there may be something to take, or after `stop` or `close`."""
        with self._ready:
            if self._stopped or self._closed or self._any_ready():
                wake()
            else:
                self._wakers.append(wake)

    def forget(self, wake: Wake) -> None:
        with self._ready:
            if wake in self._wakers:
                self._wakers.remove(wake)

    def clear_stop(self) -> None:
        with self._ready:
            self._stopped = False

    @property
    def stopping(self) -> bool:
        """Whether `stop` or `close` was called and the loop that it ends has not ended yet."""
        return self._stopped or self._closed

    def stop(self) -> None:
        """Ends the loop that is running now, after the record in hand."""
        with self._ready:
            self._stopped = True
            if self._hand is not None and self._hand.run is not None:
                self._stop_run(self._hand)
            self._notify()

    def _stop_run(self, hand: Hand) -> None:
        if hand.valid and not hand.cut:
            hand.end()
            self._put_back(hand, hand.handed_out)

    def close(self) -> None:
        with self._ready:
            self._closed = True
            if self._hand is not None:
                self._hand.end()
            self._notify()

    def _notify(self) -> None:
        self._ready.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()


def watched(work: Coroutine[Any, Any, None], buffer: Buffer) -> asyncio.Task[None]:
    """Runs `work` on the loop. A failure that it does not deal with itself is the user's to see, and so is its end
    when the connection is closed: nobody may wait for records that cannot come."""

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled():
            buffer.cut_off()
        elif (error := task.exception()) is not None:
            failure = error if isinstance(error, RaystreamError) else RaystreamError(f"the consumer failed: {error!r}")
            failure.__cause__ = None if failure is error else error
            buffer.fail(failure)

    task = asyncio.ensure_future(work)
    task.add_done_callback(ended)
    return task


def _located(error: RaystreamError, partition: TopicPartition, header: BatchHeader) -> RaystreamError:
    topic, number = partition
    return type(error)(
        f"{partition} at offset {header.base_offset}: {error}; "
        f"consumer.seek({topic!r}, {number}, {header.next_offset}) goes on behind it",
        topic=topic,
        partition=number,
        offset=header.base_offset,
    )
