"""Members of share groups that wait for records, and the coordinator's look at how far their partitions go.

A call that finds nothing to acquire waits on its own thread until its group is awakened: records were released, a lock
ran out, or a partition has grown. Partitions are watched by long polls at their leaders while somebody waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from raystream import messages as m
from raystream.client.loop import BackgroundLoop
from raystream.client.routing import Leader, Routing
from raystream.clock import Clock
from raystream.core.coordinator import Coordinator
from raystream.core.groups import Decision
from raystream.core.share_groups import Acquired
from raystream.errors import OffsetOutOfRange, RaystreamError

logger = logging.getLogger("raystream.coordinator")

MAX_WAITING: Final = 40
"""So many calls may wait at a time, each on a thread; one more is answered empty at once."""
MAX_WAIT_MS: Final = 2_000.0
MAX_POLLS: Final = 64
"""So many long polls are under way at a time; more partitions take turns."""
POLL_WAIT_MS: Final = 500
WANTED_MS: Final = 1_500.0
"""A partition is watched so long after somebody has waited for it."""
PAUSE_S: Final = 0.02

Note = Callable[[Callable[[Coordinator, float], Decision]], None]


class ShareWaiting:
    """Lets `acquire` wait for records; what it learns of partitions it has noted in the coordinator's state."""

    def __init__(self, routing: Routing, loop: BackgroundLoop, clock: Clock, note: Note) -> None:
        self._routing = routing
        self._loop = loop
        self._clock = clock
        self._note = note
        self._lock = threading.Lock()
        self._waiters: dict[str, dict[threading.Event, None]] = {}
        """Those that have waited longest come first, and wake first."""
        self._waiting = 0
        self._wanted: dict[tuple[str, int], float] = {}
        """Until when each partition is watched; on the loop."""
        self._offsets: dict[tuple[str, int], int] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._polls = asyncio.Semaphore(MAX_POLLS)

    # On the callers' threads ----------------------------------------------------------------------------------------

    def acquire(self, request: m.ShareAcquireRequest, decide: Callable[[], Acquired]) -> m.ShareAcquireReply:
        """The records that `decide` gives, as soon as it gives any."""
        deadline_ms = self._clock.monotonic_ms() + min(request.max_wait_ms, MAX_WAIT_MS)
        with self._waiter(request.group) as awakened:
            while True:
                awakened.clear()
                found = decide()
                left_ms = deadline_ms - self._clock.monotonic_ms()
                if found.reply.ranges or left_ms <= 0:
                    return found.reply
                self._loop.asyncio_loop.call_soon_threadsafe(self._watch, found.watch)
                if not self._may_wait():
                    return found.reply
                try:
                    awakened.wait(left_ms / 1000)
                finally:
                    with self._lock:
                        self._waiting -= 1

    def _may_wait(self) -> bool:
        with self._lock:
            if self._waiting >= MAX_WAITING:
                return False
            self._waiting += 1
            return True

    @contextlib.contextmanager
    def _waiter(self, group: str) -> Iterator[threading.Event]:
        """It is there before the first look, so that nothing that comes in between is missed."""
        awakened = threading.Event()
        with self._lock:
            self._waiters.setdefault(group, {})[awakened] = None
        try:
            yield awakened
        finally:
            with self._lock:
                waiters = self._waiters[group]
                del waiters[awakened]
                if not waiters:
                    del self._waiters[group]

    def wake(self, groups: Iterable[str]) -> None:
        """There may be records for those who wait in these groups."""
        with self._lock:
            for group in groups:
                for awakened in self._waiters.get(group, ()):
                    awakened.set()

    # On the loop ----------------------------------------------------------------------------------------------------

    def _watch(self, places: tuple[tuple[str, int, int], ...]) -> None:
        until_ms = self._clock.monotonic_ms() + WANTED_MS
        for topic, partition, offset in places:
            place = (topic, partition)
            watched = place in self._wanted
            self._wanted[place] = until_ms
            self._offsets[place] = max(offset, self._offsets.get(place, 0)) if watched else offset
            if not watched:
                task = asyncio.ensure_future(self._follow(topic, partition))
                self._watches.add(task)
                task.add_done_callback(self._watches.discard)

    async def _follow(self, topic: str, partition: int) -> None:
        place = (topic, partition)
        try:
            while self._wanted[place] > self._clock.monotonic_ms():
                began_ms = self._clock.monotonic_ms()
                before = self._offsets[place]
                try:
                    async with self._polls:
                        await self._poll(topic, partition, before)
                except RaystreamError as error:
                    logger.debug("how far %s-%d goes is not known at the moment: %s", topic, partition, error)
                quick = self._clock.monotonic_ms() - began_ms < PAUSE_S * 1000
                if quick and self._offsets[place] == before:
                    await asyncio.sleep(PAUSE_S)  # the leader parks no more fetches, or shows what is not stable yet
        finally:
            del self._wanted[place]
            self._offsets.pop(place, None)

    async def _poll(self, topic: str, partition: int, offset: int) -> None:
        topic_id = ""

        async def call(leader: Leader, left_ms: float) -> m.FetchReply:
            nonlocal topic_id
            topic_id = leader.topic_id
            request = m.FetchRequest(
                topic_id=leader.topic_id,
                partition=partition,
                offset=offset,
                leader_epoch=leader.epoch,
                max_bytes=1,
                max_wait_ms=POLL_WAIT_MS,
                mapped=True,  # only the marks are wanted, no bytes
            )
            return await leader.port.fetch(request, timeout_ms=left_ms)

        try:
            reply = await self._routing.call_partition(topic, partition, call, waits_ms=POLL_WAIT_MS)
            end_offset, start_offset = reply.last_stable_offset, reply.log_start_offset
        except OffsetOutOfRange as error:
            end_offset, start_offset = getattr(error, "high_watermark", 0), getattr(error, "log_start_offset", 0)
        place = (topic, partition)
        self._offsets[place] = max(end_offset, start_offset)
        self._note(partial(_know_end, topic, topic_id, partition, end_offset, start_offset))


def _know_end(
    topic: str,
    topic_id: str,
    partition: int,
    end_offset: int,
    start_offset: int,
    state: Coordinator,
    _now_ms: float,
) -> Decision:
    return state.shares.know_end(topic, topic_id, partition, end_offset, start_offset)
