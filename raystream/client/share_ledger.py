"""What a member of a share group has acquired, what of it is in its user's hands, and what was said of each record.

Every method may be called from any thread. Times are the clock's monotonic milliseconds.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from raystream import messages as m
from raystream.client.delivered import Batch
from raystream.client.loop import LONGEST_WAIT_S
from raystream.clock import Clock
from raystream.errors import InvalidArgument, RaystreamError
from raystream.types import Record, TopicPartition

Range = tuple[TopicPartition, int, int]
MAX_REFUSED: Final = 1_000
"""So many refused ranges are kept for the next `commit` to name; more are counted only."""


class Delivery:
    """Consecutive offsets of one partition that are this member's. `handed` is the offset after the last that the user
    got, `stop` where the delivery ends: earlier than it began where the rest was given back."""

    __slots__ = ("acquired_ms", "batch", "deliveries", "first", "handed", "left", "place", "said", "sequence", "stop")

    def __init__(self, place: TopicPartition, batch: Batch, deliveries: int, acquired_ms: float, sequence: int) -> None:
        self.place = place
        self.sequence = sequence
        self.batch = batch
        self.deliveries = deliveries
        self.acquired_ms = acquired_ms
        self.first, self.stop = batch.offsets.start, batch.offsets.stop
        self.handed = self.first
        self.said = bytearray(self.stop - self.first)
        self.left = self.stop - self.first
        """How many offsets nothing was said of yet."""

    def unsaid(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """The ranges within a range of which nothing was said yet."""
        at, end = max(first, self.first) - self.first, min(stop, self.stop) - self.first
        while at < end:
            begin = self.said.find(0, at, end)
            if begin < 0:
                return
            at = self.said.find(1, begin, end)
            at = end if at < 0 else at
            yield begin + self.first, at + self.first


class ShareLedger:
    """Deliveries on their way to the user, and acknowledgements on their way to the coordinator."""

    def __init__(self, post: Callable[[Callable[[], None]], None], clock: Clock, lock_timeout_ms: float) -> None:
        self._post = post
        self._clock = clock
        self.lock_timeout_ms = lock_timeout_ms
        self._ready = threading.Condition()
        self._queue: deque[Delivery] = deque()
        self._hands: dict[TopicPartition, list[Delivery]] = {}
        """By first offset."""
        self._said: list[tuple[TopicPartition, int, int, str, int]] = []
        self._refused: list[Range] = []
        self._refused_records = 0
        self._failure: RaystreamError | None = None
        self._stopped = False
        self._closed = False
        self._hungry = False
        self.when_said: Callable[[], None] = _nothing
        """Called on the loop when there are acknowledgements to send."""
        self.when_taken: Callable[[], None] = _nothing
        """Called on the loop when there may be room for more deliveries."""
        self._wakers: list[Callable[[], None]] = []

    # What the loop does ---------------------------------------------------------------------------------------------

    def put(self, delivery: Delivery) -> None:
        with self._ready:
            if self._closed:
                self._say(delivery.place, delivery.first, delivery.stop, m.RETURN, delivery.sequence)
                return
            self._queue.append(delivery)
            self._notify()

    def queued(self) -> int:
        """How many records wait for the user."""
        with self._ready:
            return sum(delivery.stop - delivery.first for delivery in self._queue)

    def hungry(self) -> bool:
        """Whether the user has asked for more than there was."""
        with self._ready:
            return self._hungry and not self._queue

    def oldest_ms(self) -> float | None:
        """Since when the record that waits longest has been this member's."""
        with self._ready:
            waiting = [d.acquired_ms for d in self._queue]
            waiting += [d.acquired_ms for d in self._in_hand() if d.handed < d.stop]
            return min(waiting, default=None)

    def give_back(self, before_ms: float) -> bool:
        """What was acquired before then and has not come to the user's hands goes back, so that others get it before
        its lock runs out. Whether there was any."""
        with self._ready:
            old = [delivery for delivery in self._queue if delivery.acquired_ms <= before_ms]
            for delivery in old:
                self._queue.remove(delivery)
                self._say(delivery.place, delivery.first, delivery.stop, m.RETURN, delivery.sequence)
            for delivery in self._in_hand():
                if delivery.acquired_ms <= before_ms and delivery.handed < delivery.stop:
                    old.append(delivery)
                    self._cut(delivery)
            return bool(old)

    def _cut(self, delivery: Delivery) -> None:
        """The user gets no more of it after what it has."""
        rest = list(delivery.unsaid(delivery.handed, delivery.stop))
        delivery.stop = delivery.handed
        for first, stop in rest:
            delivery.left -= stop - first
            self._say(delivery.place, first, stop, m.RETURN, delivery.sequence)
        self._tidy(delivery)

    def take_said(self, most: int) -> tuple[m.Acknowledgement, ...]:
        """The acknowledgements to send now, in the order in which they were said."""
        with self._ready:
            taken, self._said = self._said[:most], self._said[most:]
        return tuple((*place, first, stop, kind, sequence) for place, first, stop, kind, sequence in taken)

    def has_said(self) -> bool:
        with self._ready:
            return bool(self._said)

    def say(self, place: TopicPartition, first: int, stop: int, kind: str, sequence: int) -> None:
        """An acknowledgement of what never came to the user."""
        with self._ready:
            self._say(place, first, stop, kind, sequence)

    def refused(self, ranges: tuple[tuple[str, int, int, int], ...]) -> None:
        """The coordinator did not take these acknowledgements: others have the records by now, or will."""
        with self._ready:
            for topic, partition, first, stop in ranges:
                self._refused_records += stop - first
                if len(self._refused) < MAX_REFUSED:
                    self._refused.append((TopicPartition(topic, partition), first, stop))

    def take_refused(self) -> tuple[int, tuple[Range, ...]]:
        """How many records' acknowledgements were refused since this was asked last, and which."""
        with self._ready:
            count, ranges = self._refused_records, tuple(self._refused)
            self._refused_records = 0
            self._refused.clear()
            return count, ranges

    def forget(self) -> None:
        """Nothing that was acquired is this member's any more."""
        with self._ready:
            self._queue.clear()
            for delivery in self._in_hand():
                delivery.stop = delivery.handed
            said, self._said = self._said, []
        self.refused(tuple((p.topic, p.partition, first, stop) for p, first, stop, kind, _ in said if kind != m.RETURN))

    def fail(self, error: RaystreamError) -> None:
        """Raises `error` at the user from now on."""
        with self._ready:
            self._failure = error
            self._notify()

    # What the user does ---------------------------------------------------------------------------------------------

    def take(self, deadline_s: float | None) -> Delivery | None:
        """The next delivery, or None at the deadline (of `time.monotonic`; None: never) and after `stop`."""
        with self._ready:
            while True:
                delivery = self._next()
                if delivery is not None:
                    return delivery
                if self._stopped or self._closed:
                    self._stopped = False
                    return None
                left_s = LONGEST_WAIT_S if deadline_s is None else deadline_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._ready.wait(min(left_s, LONGEST_WAIT_S))

    def at_hand(self) -> Delivery | None:
        """As `take`, without waiting."""
        with self._ready:
            return self._next()

    def _next(self) -> Delivery | None:
        if self._stopped:
            return None
        now_ms = self._clock.monotonic_ms()
        while self._queue:
            delivery = self._queue.popleft()
            self._post(self.when_taken)
            if now_ms - delivery.acquired_ms >= self.lock_timeout_ms:  # the process was stopped meanwhile
                self._say(delivery.place, delivery.first, delivery.stop, m.RETURN, delivery.sequence)
                continue
            hand = self._hands.setdefault(delivery.place, [])
            hand.insert(bisect_right(hand, delivery.first, key=_first), delivery)
            self._hungry = False
            return delivery
        if not self._hungry:
            self._hungry = True
            self._post(self.when_taken)
        if self._failure is not None:
            raise self._failure
        return None

    def hand_out(self, delivery: Delivery, offset: int) -> bool:
        """The user gets the record at `offset` now; False where it is not to."""
        with self._ready:
            if offset >= delivery.stop or self._stopped:
                return False
            if self._clock.monotonic_ms() - delivery.acquired_ms >= self.lock_timeout_ms:
                self._cut(delivery)
                return False
            delivery.handed = offset + 1
            return True

    def acknowledge(self, delivery: Delivery, first: int, stop: int, kind: str) -> None:
        """Says `kind` of everything in a range of which nothing was said before."""
        with self._ready:
            for begin, end in list(delivery.unsaid(first, stop)):
                self._said_of(delivery, begin, end, kind)

    def find(self, place: TopicPartition, offset: int) -> Delivery | None:
        """The delivery in the user's hands that holds an offset."""
        with self._ready:
            hand = self._hands.get(place, [])
            at = bisect_right(hand, offset, key=_first) - 1
            return hand[at] if at >= 0 and offset < hand[at].stop else None

    def acknowledge_record(self, record: Record, kind: str) -> None:
        """Raises InvalidArgument where the record is not in the user's hands, or something was said of it."""
        place = TopicPartition(record.topic, record.partition)
        with self._ready:
            delivery = self.find(place, record.offset)
            if delivery is None or delivery.said[record.offset - delivery.first]:
                raise InvalidArgument(f"{place} at offset {record.offset} is not in hand, or was acknowledged already")
            self._said_of(delivery, record.offset, record.offset + 1, kind)

    def acknowledge_batch(self, batch: Batch, kind: str) -> None:
        """Says `kind` of all of the batch of which nothing was said. Raises InvalidArgument where none of it is in
        hand."""
        with self._ready:
            found = False
            offset = batch.offsets.start
            for delivery in list(self._hands.get(batch.topic_partition, ())):
                if delivery.first < batch.offsets.stop and delivery.stop > offset:
                    for begin, end in list(delivery.unsaid(offset, batch.offsets.stop)):
                        found = True
                        self._said_of(delivery, begin, end, kind)
            if not found:
                raise InvalidArgument(f"nothing of {batch!r} is in hand, or all was acknowledged already")

    def renew(self, place: TopicPartition, first: int, stop: int) -> None:
        """Begins the locks of deliveries anew that have part in a range, of all that is left of them. Raises
        InvalidArgument where there are none."""
        with self._ready:
            found = [d for d in self._hands.get(place, ()) if d.first < stop and d.stop > first]
            if not found:
                raise InvalidArgument(f"nothing of {place}, offsets {first} to {stop}, is in hand")
            for delivery in found:
                delivery.acquired_ms = self._clock.monotonic_ms()
                for begin, end in delivery.unsaid(delivery.first, delivery.stop):
                    self._say(place, begin, end, m.RENEW, delivery.sequence)

    def _in_hand(self) -> Iterator[Delivery]:
        return (delivery for hand in list(self._hands.values()) for delivery in list(hand))

    def _said_of(self, delivery: Delivery, first: int, stop: int, kind: str) -> None:
        delivery.said[first - delivery.first : stop - delivery.first] = b"\x01" * (stop - first)
        delivery.left -= stop - first
        self._say(delivery.place, first, stop, kind, delivery.sequence)
        self._tidy(delivery)

    def _tidy(self, delivery: Delivery) -> None:
        hand = self._hands.get(delivery.place, [])
        if not delivery.left and delivery in hand:
            hand.remove(delivery)
            if not hand:
                del self._hands[delivery.place]

    def _say(self, place: TopicPartition, first: int, stop: int, kind: str, sequence: int) -> None:
        if self._said:
            last = self._said[-1]
            if last[2] == first and last[0] == place and last[3:] == (kind, sequence):
                self._said[-1] = (place, last[1], stop, kind, sequence)
                return
        else:
            self._post(self.when_said)
        self._said.append((place, first, stop, kind, sequence))

    # The end --------------------------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        return self._stopped

    def clear_stop(self) -> None:
        self._stopped = False

    def stop(self) -> None:
        """Ends the wait of whoever waits, or the next one."""
        with self._ready:
            self._stopped = True
            self._notify()

    def close(self) -> None:
        """What has not come to the user goes back, and what it has and said nothing of is released."""
        with self._ready:
            self._closed = True
            for delivery in self._queue:
                self._say(delivery.place, delivery.first, delivery.stop, m.RETURN, delivery.sequence)
            self._queue.clear()
            for delivery in self._in_hand():
                self._cut(delivery)
                for begin, end in list(delivery.unsaid(delivery.first, delivery.stop)):
                    self._said_of(delivery, begin, end, m.RELEASE)
            self._notify()

    def when_ready(self, wake: Callable[[], None]) -> None:
        """Calls `wake` once there is something to take, or now."""
        with self._ready:
            if self._queue or self._stopped or self._closed or self._failure is not None:
                wake()
            else:
                self._wakers.append(wake)

    def _notify(self) -> None:
        self._ready.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()


def _first(delivery: Delivery) -> int:
    return delivery.first


def _nothing() -> None:
    """Nobody listens yet."""
