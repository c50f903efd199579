"""The part of a share group's member that lives on the event loop: heartbeats, acquiring, acknowledging.

Guarantees: what was said of a record is sent again until it is answered, and counts once; a member that the coordinator
does not know joins again, with nothing in its hands. It acquires what its user handles in about a second, and gives
back what the user has not come to by half of the lock's time, so that a slow member keeps nothing from quick ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from raystream import messages as m
from raystream.client.dead_letters import bury, check_dead_letter_topic
from raystream.client.delivered import Batch
from raystream.client.positions import Offsets, parse, partitions_of, resolve
from raystream.client.routing import MAX_BACKOFF_MS, Routing
from raystream.client.share_fetching import Deserializers, ShareFetcher
from raystream.client.share_ledger import Delivery, ShareLedger
from raystream.client.subscription import Subscription
from raystream.config import ShareConfig
from raystream.errors import CorruptBatch, OffsetOutOfRange, RaystreamError, RequestTimeout, UnknownMember
from raystream.ports import CoordinatorPort
from raystream.types import Position, TopicPartition

log = logging.getLogger("raystream")
T = TypeVar("T")

FIRST_ASK: Final = 4
"""A member whose speed is not known yet asks for so many records."""
QUICK_MS: Final = 100.0
SLOW_MS: Final = 1_000.0
EMPTY_PAUSE_MS: Final = 50.0
MAX_EMPTY_PAUSE_MS: Final = 500.0
MOST_SAID: Final = 2_000
"""One call carries so many ranges."""
BURY_AGAIN_S: Final = 1.0
CLOSE_TIMEOUT_MS: Final = 5_000.0


class ShareSession:
    """One member of one share group. Every method is called on the loop."""

    def __init__(
        self,
        routing: Routing,
        config: ShareConfig,
        ledger: ShareLedger,
        *,
        subscription: Subscription,
        group: str,
        start: Position,
        dead_letter: str | None,
        client: str,
        deserializers: Deserializers,
    ) -> None:
        self._routing = routing
        self._config = config
        self._ledger = ledger
        self._subscription = subscription
        self.group = group
        self._place = parse(start, subscription.topics, now_ms=routing.clock.now_ms())
        self._dead_letter = dead_letter or ""
        self._client = client
        self._fetcher = ShareFetcher(routing, config, deserializers)
        self.member_id = uuid.uuid4().hex
        self._starts: Offsets = {}
        self._sequence = itertools.count(1)
        self._acknowledgements = itertools.count(1)
        self._received = 0
        self._ask = min(FIRST_ASK, config.max_poll_records)
        self._pause_ms = EMPTY_PAUSE_MS
        self._dying = False
        """Records wait for their way into the dead-letter topic, and nobody takes them along with others."""
        self._life = 0
        """Grows whenever the member joins anew."""
        self._joining = asyncio.Lock()
        self._said = asyncio.Event()
        self._taken = asyncio.Event()
        self._settled = asyncio.Condition()
        self._sending = False
        self._tasks: list[asyncio.Task[None]] = []
        self._burials: list[asyncio.Task[None]] = []
        self._closing: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Fixes where the group starts if it is new, and joins. Raises TopicNotFound, PartitionNotFound,
        InvalidArgument, RequestTimeout."""
        topics = await self._subscription.present(self._routing)
        if self._dead_letter:
            await check_dead_letter_topic(self._routing, self._dead_letter, self._subscription.topics)
            topics = [topic for topic in topics if topic != self._dead_letter]  # a pattern may match it
        partitions = [p for topic in topics for p in await partitions_of(self._routing, topic)]
        self._starts = await resolve(self._routing, self._place, partitions)
        await self._join()
        self._ledger.when_said = self._said.set
        self._ledger.when_taken = self._taken.set
        for work in (self._beat(), self._acquire(), self._acknowledge()):
            self._tasks.append(self._spawned(work))

    def _spawned(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, RaystreamError):
            log.error("share group %r: the member's work failed", self.group, exc_info=error)
            error = RaystreamError(f"share group {self.group!r}: the member's work failed: {error!r}")
        self._ledger.fail(error)

    # Membership -----------------------------------------------------------------------------------------------------

    async def _heartbeat(self, intent: str, timeout_ms: float) -> m.ShareHeartbeatReply:
        joins = intent == m.JOIN
        request = m.ShareHeartbeatRequest(
            group=self.group,
            member_id=self.member_id,
            intent=intent,
            topics=self._subscription.topics if joins else (),
            pattern=self._subscription.pattern if joins else None,
            starts=tuple((*place, offset) for place, offset in self._starts.items()) if joins else (),
            max_deliveries=self._config.max_deliveries,
            lock_timeout_ms=self._config.lock_timeout_ms,
            max_in_flight=self._config.max_in_flight,
            dead_letter=self._dead_letter,
            client=self._client,
            session_timeout_ms=self._config.session_timeout_ms,
            sequence=next(self._sequence),
        )
        return await self._call(lambda port, left_ms: port.share_heartbeat(request, timeout_ms=left_ms), timeout_ms)

    async def _call(self, call: Callable[[CoordinatorPort, float], Awaitable[T]], timeout_ms: float) -> T:
        return await self._routing.call_coordinator(call, timeout_ms=timeout_ms)

    async def _join(self, life: int = 0) -> None:
        """Joins, where it has not since the member's life `life`: with nothing in its hands."""
        async with self._joining:
            if life != self._life:
                return
            reply = await self._heartbeat(m.JOIN, self._config.request_timeout_ms)
            self._life += 1
            self._ledger.lock_timeout_ms = reply.lock_timeout_ms

    async def _rejoin(self, life: int, error: RaystreamError) -> None:
        if life == self._life:
            log.info("joining share group %r again: %s", self.group, error)
            self._ledger.forget()
            await self._join(life)

    async def _steadily(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does `work` over and over; errors that may pass are retried without end."""
        while True:
            life = self._life
            try:
                await work()
            except UnknownMember as error:
                with contextlib.suppress(RequestTimeout):
                    await self._rejoin(life, error)
            except RaystreamError as error:
                if not error.retriable:
                    raise
                log.debug("share group %r: %s; trying again", self.group, error)
                await asyncio.sleep(MAX_BACKOFF_MS / 1000)

    async def _beat(self) -> None:
        async def beat() -> None:
            await asyncio.sleep(self._config.heartbeat_interval_ms / 1000)
            reply = await self._heartbeat(m.STAY, self._config.request_timeout_ms)
            if reply.dying:
                self._dying = True
                self._taken.set()

        await self._steadily(beat)

    # Acquiring ------------------------------------------------------------------------------------------------------

    async def _acquire(self) -> None:
        await self._steadily(self._acquire_once)

    async def _acquire_once(self) -> None:
        await self._room()
        clock = self._routing.clock
        began_ms = clock.monotonic_ms()
        found = await self._ask_for(self._ask, self._config.fetch_max_wait_ms)
        if found or clock.monotonic_ms() - began_ms >= EMPTY_PAUSE_MS:
            self._pause_ms = EMPTY_PAUSE_MS
        else:  # the coordinator lets no more members wait
            await asyncio.sleep(self._pause_ms / 1000)
            self._pause_ms = min(self._pause_ms * 2, MAX_EMPTY_PAUSE_MS)

    async def _ask_for(self, max_records: int, max_wait_ms: int, *, dying_only: bool = False) -> bool:
        """Acquires, and hands on what comes. Whether anything did."""
        request = m.ShareAcquireRequest(
            group=self.group,
            member_id=self.member_id,
            max_records=max_records,
            max_wait_ms=max_wait_ms,
            sequence=next(self._sequence),
            received=self._received,
            dying_only=dying_only,
        )
        reply: m.ShareAcquireReply = await self._call(
            lambda port, left_ms: port.share_acquire(request, timeout_ms=left_ms),
            max_wait_ms + self._config.request_timeout_ms,
        )
        self._received = request.sequence
        arrived_ms = self._routing.clock.monotonic_ms()
        dying = [found for found in reply.ranges if found[5]]
        for found in dying:
            task = self._spawned(self._bury(found, request.sequence, reply.dead_letter))
            self._burials.append(task)
            task.add_done_callback(self._burials.remove)
        await asyncio.gather(
            *(self._deliver(found, request.sequence, arrived_ms) for found in reply.ranges if not found[5])
        )
        return bool(reply.ranges)

    async def _room(self) -> None:
        """Waits until the user has nearly run out, and learns from how long that takes how much to ask for. Who had
        to give something back acquires nothing before its user asks for more, but for records that nobody is to handle:
        those it buries whatever its user does."""
        clock = self._routing.clock
        began_ms = clock.monotonic_ms()
        had_any = gave_back = False
        while True:
            gave_back |= self._give_back_what_is_stale()
            self._taken.clear()
            if self._dying:
                self._dying = False
                await self._ask_for(self._config.max_poll_records, 0, dying_only=True)
            queued = self._ledger.queued()
            if queued <= self._ask // 2 and not (gave_back and not self._ledger.hungry()):
                break
            had_any |= bool(queued)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_stale_s()):  # wait_for may swallow that the task is cancelled
                    await self._taken.wait()
        took_ms = clock.monotonic_ms() - began_ms
        if gave_back or (had_any and took_ms > SLOW_MS):
            self._ask = max(self._ask // 4, 1)
        elif had_any and took_ms < QUICK_MS:
            self._ask = min(self._ask * 4, self._config.max_poll_records)

    def _until_stale_s(self) -> float:
        oldest_ms = self._ledger.oldest_ms()
        if oldest_ms is None:
            return SLOW_MS / 1000
        left_ms = oldest_ms + self._ledger.lock_timeout_ms / 2 - self._routing.clock.monotonic_ms()
        return min(max(left_ms, 1.0), SLOW_MS) / 1000

    def _give_back_what_is_stale(self) -> bool:
        return self._ledger.give_back(self._routing.clock.monotonic_ms() - self._ledger.lock_timeout_ms / 2)

    async def _deliver(self, found: m.ShareRange, sequence: int, arrived_ms: float) -> None:
        topic, partition, _, stop, deliveries, _ = found
        place = TopicPartition(topic, partition)
        life = self._life
        there = await self._fetched(found, sequence)
        if there is None:
            return
        offset, batches = there
        for batch in batches:
            if life == self._life:
                self._say(life, place, offset, batch.offsets.start, m.GAP, sequence)
                self._ledger.put(Delivery(place, batch, deliveries, arrived_ms, sequence))
            offset = batch.offsets.stop
        self._say(life, place, offset, stop, m.GAP, sequence)

    def _say(self, life: int, place: TopicPartition, first: int, stop: int, kind: str, sequence: int) -> None:
        """Unless the range is not this member's any more."""
        if first < stop and life == self._life:
            self._ledger.say(place, first, stop, kind, sequence)

    async def _fetched(
        self, found: m.ShareRange, sequence: int, *, raw: bool = False
    ) -> tuple[int, list[Batch]] | None:
        """From which offset on there may be records, and what there is, without gaps inside a batch. None where that
        cannot be had now; then it is said to be so."""
        topic, partition, first, stop, _, _ = found
        place = TopicPartition(topic, partition)
        life = self._life
        timeout_ms = self._ledger.lock_timeout_ms / 2
        while first < stop:
            try:
                batches = await self._fetcher.fetch(place, first, stop, timeout_ms=timeout_ms, raw=raw)
                return first, [part for batch in batches for part in _without_gaps(batch)]
            except OffsetOutOfRange as error:
                begins = min(max(getattr(error, "log_start_offset", stop), first + 1), stop)
                log.warning(
                    "share group %r: %d records of %s were lost to retention", self.group, begins - first, place
                )
                self._say(life, place, first, begins, m.GONE, sequence)
                first = begins
            except CorruptBatch as error:
                log.error("share group %r cannot read %s, offsets %d to %d: %s", self.group, place, first, stop, error)
                self._say(life, place, first, stop, m.RELEASE, sequence)
                return None
            except RaystreamError as error:
                log.warning("share group %r: %s is given back: %s", self.group, place, error)
                self._say(life, place, first, stop, m.RETURN, sequence)
                return None
        return None

    # Dead letters ---------------------------------------------------------------------------------------------------

    async def _bury(self, found: m.ShareRange, sequence: int, dead_letter: str) -> None:
        """Copies records to the dead-letter topic, and says so once that is durable."""
        topic, partition, _, stop, deliveries, reason = found
        life = self._life
        there = await self._fetched(found, sequence, raw=True)
        if there is None:
            return
        offset, batches = there
        records = [record for batch in batches for record in batch.records()]
        gives_up_ms = self._routing.clock.monotonic_ms() + self._ledger.lock_timeout_ms / 2
        kind = m.RETURN
        while kind == m.RETURN and self._routing.clock.monotonic_ms() < gives_up_ms:
            try:
                await bury(
                    self._routing,
                    dead_letter,
                    records,
                    group=self.group,
                    deliveries=deliveries,
                    reason=reason,
                    timeout_ms=self._ledger.lock_timeout_ms / 2,
                )
                kind = m.BURIED
            except RaystreamError as error:
                log.error("share group %r cannot write to its dead-letter topic: %s", self.group, error)
                await asyncio.sleep(BURY_AGAIN_S)
        self._say(life, TopicPartition(topic, partition), offset, stop, kind, sequence)

    # Acknowledging --------------------------------------------------------------------------------------------------

    async def _acknowledge(self) -> None:
        """Sends what was said, one call at a time: what is said meanwhile goes together with the next."""
        while True:
            await self._said.wait()
            self._said.clear()
            while self._ledger.has_said():
                self._sending = True
                try:
                    await self._send(self._ledger.take_said(MOST_SAID))
                finally:
                    self._sending = False
            async with self._settled:
                self._settled.notify_all()

    async def _send(self, ranges: tuple[m.Acknowledgement, ...]) -> None:
        request = m.ShareAcknowledgeRequest(
            group=self.group, member_id=self.member_id, ranges=ranges, sequence=next(self._acknowledgements)
        )
        answered = False

        async def send() -> None:
            nonlocal answered
            reply: m.ShareAcknowledgeReply = await self._call(
                lambda port, left_ms: port.share_acknowledge(request, timeout_ms=left_ms),
                self._config.request_timeout_ms,
            )
            answered = True
            self._ledger.refused(reply.refused)

        life = self._life
        while not answered:
            try:
                await send()
            except UnknownMember as error:
                self._ledger.refused(tuple(found[:4] for found in ranges if found[4] != m.RETURN))
                with contextlib.suppress(RequestTimeout):
                    await self._rejoin(life, error)
                return
            except RaystreamError as error:
                if not error.retriable:
                    raise
                log.warning("share group %r: no acknowledgement got through: %s; trying again", self.group, error)
                await asyncio.sleep(MAX_BACKOFF_MS / 1000)

    async def flush(self, timeout_ms: float) -> None:
        """Returns once all that was said is answered. Raises RequestTimeout."""
        try:
            async with asyncio.timeout(timeout_ms / 1000), self._settled:
                while self._ledger.has_said() or self._sending:
                    self._said.set()
                    await self._settled.wait()
        except TimeoutError:
            raise RequestTimeout(f"no acknowledgement got through within {timeout_ms:.0f} ms") from None

    # The end --------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Acquires nothing more, gives back what was not handled, sends what was said and leaves the group. The second
        call waits for the first."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        acknowledging = self._tasks[2:]
        for task in (*self._tasks[:2], *self._burials):
            task.cancel()
        await asyncio.gather(*self._tasks[:2], *self._burials, return_exceptions=True)
        self._ledger.close()  # not before: what goes back would be acquired again
        if not self._life:
            return
        if acknowledging and not acknowledging[0].done():
            with contextlib.suppress(RaystreamError):
                await self.flush(CLOSE_TIMEOUT_MS)
        for task in acknowledging:
            task.cancel()
        with contextlib.suppress(RaystreamError):
            await self._heartbeat(m.LEAVE, CLOSE_TIMEOUT_MS)


def _without_gaps(batch: Batch) -> list[Batch]:
    """The batch in parts whose records follow each other offset by offset."""
    bounds = batch.contiguous()
    return [batch] if len(bounds) == 1 else [batch.between(first, stop) for first, stop in bounds]
