"""The part of a consumer that lives on the event loop: assignment, fetching, committing. The user's object holds it.

It holds no reference to the user's object, so that a consumer nobody holds can be collected and leave its group.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from raystream import messages as m
from raystream.client.assigned import Assigned
from raystream.client.buffer import Buffer, watched
from raystream.client.columns import Shape
from raystream.client.fetcher import Fetcher
from raystream.client.membership import COMMIT_AGAIN_MS, Membership
from raystream.client.positions import Offsets, Place, parse, partitions_of, resolve
from raystream.client.routing import Routing
from raystream.client.subscription import Subscription
from raystream.config import ConsumerConfig
from raystream.errors import (
    FencedMember,
    InvalidArgument,
    OffsetOutOfRange,
    RaystreamError,
    TopicNotFound,
    UnknownMember,
)
from raystream.types import EARLIEST, LATEST, PartitionLag, Position, Rows, TopicPartition

log = logging.getLogger("raystream")

TOPICS_AGAIN_MS: Final = 5_000.0
FIRST_OFFSET_MS: Final = 10_000.0
"""So long at a time a partition is asked where to begin."""
CLOSE_TIMEOUT_MS: Final = 5_000.0


@dataclass
class Start:
    """Where to begin without a committed position. "latest" was looked up at the call that said so."""

    place: Place
    ends: Offsets

    async def offsets(self, routing: Routing, partitions: Iterable[TopicPartition]) -> Offsets:
        """The first offsets to read. A partition that is younger than the call is read from its beginning."""
        wanted = list(partitions)
        if self.place.word != LATEST:
            return await resolve(routing, self.place, wanted, timeout_ms=FIRST_OFFSET_MS)
        younger = [p for p in wanted if p not in self.ends]
        return {p: self.ends[p] for p in wanted if p in self.ends} | await resolve(
            routing, Place(word=EARLIEST), younger, timeout_ms=FIRST_OFFSET_MS
        )


class Session:
    """One consumer's work on the loop. Every method is called there."""

    def __init__(
        self,
        routing: Routing,
        config: ConsumerConfig,
        buffer: Buffer,
        subscription: Subscription,
        *,
        group: str | None,
        start: Position,
        client: str,
        client_id: str = "",
        instance_id: str = "",
    ) -> None:
        self._routing = routing
        self._config = config
        self._buffer = buffer
        self._subscription = subscription
        self._client = client
        place = parse(start, subscription.topics, now_ms=routing.clock.now_ms())
        self._start = Start(place, {})
        self._fetcher = Fetcher(
            routing,
            config,
            buffer,
            self._reset,
            may_vanish=subscription.pattern is not None,
            client_id=client_id,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()
        self._alone: dict[TopicPartition, Assigned] = {}
        self.membership: Membership | None = None
        if group is not None:
            self.membership = Membership(
                routing,
                config,
                buffer,
                self,
                group=group,
                subscription=subscription,
                client=client,
                instance_id=instance_id,
            )

    async def begin(self) -> None:
        """Fixes where to start, and starts. Raises TopicNotFound, PartitionNotFound; RequestTimeout where it is to
        start at the end and a partition does not say where that is."""
        known = await self._partitions(strict=True)
        if self._start.place.word == LATEST:
            self._start.ends = await self._latest(known)
        elif self._start.place.offsets is not None:
            await resolve(self._routing, self._start.place, ())
        if self.membership is not None:
            self._spawn(self.membership.run())
            if self._config.auto_commit:
                if self._config.commit_each_batch:
                    self._buffer.commit_each_batch(self._finished.set)
                self._spawn(self._commit_what_is_processed())
            return
        await self._take_alone(known)
        self._spawn(self._watch_topics())

    async def _latest(self, partitions: Iterable[TopicPartition]) -> Offsets:
        return await resolve(self._routing, Place(word=LATEST), partitions, committed=self._config.committed)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(watched(work, self._buffer))

    async def _partitions(self, *, strict: bool) -> list[TopicPartition]:
        found: list[TopicPartition] = []
        for topic in await self._subscription.present(self._routing):
            try:
                found.extend(await partitions_of(self._routing, topic))
            except TopicNotFound:
                if strict:
                    raise
        return found

    # Without a group ------------------------------------------------------------------------------------------------

    async def _watch_topics(self) -> None:
        """Takes in partitions and topics that come up later."""
        while True:
            await asyncio.sleep(TOPICS_AGAIN_MS / 1000)
            try:
                if self._subscription.topics:
                    await self._routing.metadata(self._subscription.topics)
                present = await self._partitions(strict=False)
                await self._take_alone([p for p in present if p not in self._alone])
                if self._subscription.pattern is not None:
                    self._drop_alone(set(self._alone) - set(present))
            except RaystreamError as error:
                log.debug("looking for new partitions: %s", error)

    async def _take_alone(self, partitions: list[TopicPartition]) -> None:
        await asyncio.gather(*map(self._take_one, partitions))

    async def _take_one(self, partition: TopicPartition) -> None:
        """One that has no leader for long does not keep the others from being read: it is tried again."""
        try:
            (slot,) = await self.open([partition], {})
        except RaystreamError as error:
            if not error.retriable:
                raise
            log.warning("%s is not read yet: %s; trying again", partition, error)
            return
        self._alone[partition] = slot
        self.admit(slot)

    def _drop_alone(self, gone: set[TopicPartition]) -> None:
        for partition in gone:
            slot = self._alone.pop(partition)
            self._buffer.revoke(slot)
            self.drop(slot)
            self._buffer.remove(slot)

    # Partitions (the membership calls these too) --------------------------------------------------------------------

    async def open(self, partitions: list[TopicPartition], committed: Mapping[TopicPartition, int]) -> list[Assigned]:
        """Partitions ready to be fetched, each at its committed offset or where `start` says."""
        unknown = [p for p in partitions if p not in committed]
        begins = await self._start.offsets(self._routing, unknown)
        slots = []
        for partition in partitions:
            metadata = await self._routing.topic(partition.topic)
            offset = committed.get(partition, begins.get(partition, 0))
            slots.append(Assigned(partition, Shape.of(metadata), metadata.topic_id, offset))
        return slots

    def admit(self, slot: Assigned) -> None:
        self._buffer.add(slot)
        self._fetcher.start(slot)

    def drop(self, slot: Assigned) -> None:
        self._fetcher.stop(slot)

    async def _reset(self, partition: TopicPartition, gone: int | None) -> int:
        """Where to go on when offset `gone` is out of range: as `start` says, within what the log still holds. None:
        the topic is another one of the same name, younger than the call."""
        place = Place(word=EARLIEST) if gone is None else self._start.place
        if gone is None or place.offsets is None:
            return (await resolve(self._routing, place, [partition]))[partition]
        earliest = (await resolve(self._routing, Place(word=EARLIEST), [partition]))[partition]
        latest = (await self._latest([partition]))[partition]
        return min(max(gone, earliest), latest)

    def assigned(self) -> dict[TopicPartition, Assigned]:
        return self._buffer.slots()

    async def seek(self, topic: str, partition: int, position: int | Position) -> None:
        wanted = TopicPartition(topic, partition)
        slot = self.slot(wanted)
        if isinstance(position, int) and not isinstance(position, bool):
            if position < 0:
                raise InvalidArgument(f"offset {position} is below 0: 'latest' is the end")
            offset = position
        else:
            place = parse(position, (topic,), now_ms=self._routing.clock.now_ms(), what="position")
            offset = (await resolve(self._routing, place, [wanted]))[wanted]
        self._buffer.move(slot, offset)
        self._fetcher.restart(slot)

    def slot(self, partition: TopicPartition) -> Assigned:
        """The assigned partition. Raises InvalidArgument where this consumer does not hold it."""
        slots = self.assigned()
        if partition not in slots:
            held = ", ".join(map(str, sorted(slots))) or "none at the moment"
            raise InvalidArgument(f"{partition} is not assigned to this consumer; it has {held}")
        return slots[partition]

    # Commits --------------------------------------------------------------------------------------------------------

    async def _commit_what_is_processed(self) -> None:
        """At the end of each batch, where it is to be so, and regularly. One commit at a time."""
        pause_s = self._config.auto_commit_interval_ms / 1000
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._finished.wait()
            self._finished.clear()
            try:
                await self.commit_processed(self._config.request_timeout_ms)
            except (FencedMember, UnknownMember) as error:
                log.debug("automatic commit: %s", error)  # the membership joins again
                await asyncio.sleep(COMMIT_AGAIN_MS / 1000)
                self._finished.set()
            except RaystreamError as error:
                if not error.retriable:
                    raise
                log.warning("no commit got through: %s; trying again", error)
                await asyncio.sleep(COMMIT_AGAIN_MS / 1000)
                self._finished.set()

    async def commit_processed(self, timeout_ms: float) -> None:
        """Commits what counts as processed and is not committed yet."""
        assert self.membership is not None
        positions = {p: (s, self._buffer.processed(s)) for p, s in self.membership.owned.items() if not s.revoking}
        moved = {p: offset for p, (slot, offset) in positions.items() if offset != slot.committed}
        if moved:
            await self.membership.commit(moved, timeout_ms=timeout_ms)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if self.membership is None:
            raise InvalidArgument("a consumer without a group commits nothing: give it group='…'")
        if offsets:
            await self.membership.commit(offsets, timeout_ms=self._config.request_timeout_ms)

    async def commit_at(self, offsets: Mapping[str, Mapping[int, int]]) -> None:
        """Commits positions that the user names, once it is sure that they exist."""
        named = parse(offsets, (), now_ms=0, what="offsets").offsets
        if named is None:
            raise InvalidArgument(f"offsets is {{topic: {{partition: offset}}}}, not {offsets!r}")
        unread = [p for p, offset in named.items() if offset > self.slot(p).high_watermark]
        ends = await resolve(self._routing, Place(word=LATEST), unread)
        for p, end in ends.items():
            if named[p] > end:
                raise OffsetOutOfRange(f"{p} ends at offset {end:,}: {named[p]:,} cannot be committed")
        await self.commit(named)

    async def offsets_for_transaction(self, offsets: Mapping[TopicPartition, int]) -> m.CommitRequest:
        """A commit as a transaction takes it along. Raises InvalidArgument, FencedMember."""
        if self.membership is None:
            raise InvalidArgument("a consumer without a group commits nothing: give it group='…'")
        return self.membership.commit_request(offsets)

    async def committed_elsewhere(self, request: m.CommitRequest) -> None:
        if self.membership is not None:
            self.membership.note_committed(request)

    async def rewind(self) -> None:
        """All positions go back to what is committed, or to where the partition was begun with."""
        if self.membership is None:
            raise InvalidArgument("a consumer without a group has no committed positions to go back to")
        held = self.membership.owned
        committed = await self.membership.committed()
        self.membership.rewound()
        for partition, slot in self.membership.owned.items():
            begin = slot.begin if slot.committed is None else slot.committed
            asked = held.get(partition) is slot  # one that came meanwhile may have been asked about later
            self._buffer.move(slot, committed.get(partition, slot.begin) if asked else begin)
            self._fetcher.restart(slot)

    async def committed(self) -> Offsets:
        """The group's committed offsets in the partitions that are assigned here."""
        if self.membership is None:
            raise InvalidArgument("a consumer without a group commits nothing: give it group='…'")
        slots = self.assigned()
        return {p: offset for p, offset in (await self.membership.committed()).items() if p in slots}

    async def lag(self) -> Rows[PartitionLag]:
        """How far each assigned partition's position is from its end now, and how much of that is lost."""
        slots = self.assigned()
        ends = await self._latest(slots)
        begins = await resolve(self._routing, Place(word=EARLIEST), slots)
        rows: Rows[PartitionLag] = Rows()
        for p, slot in sorted(slots.items()):
            position = self._buffer.position(slot)
            lost = max(begins[p] - position, 0)
            behind = max(ends[p] - position - lost, 0)
            rows.append(PartitionLag(p.topic, p.partition, slot.committed, ends[p], behind, self._client, lost))
        return rows

    # The end --------------------------------------------------------------------------------------------------------

    async def close(self, *, leave: bool | None = None) -> None:
        """Commits what is processed, leaves the group, stops. The second call waits for the first."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(leave))
        await asyncio.shield(self._closing)

    async def _close(self, leave: bool | None) -> None:
        for task in self._tasks:
            task.cancel()
        await self._fetcher.stop_all()
        if self.membership is None:
            return
        if self._config.auto_commit:
            with contextlib.suppress(RaystreamError):
                await self.commit_processed(CLOSE_TIMEOUT_MS)
        await self.membership.leave(told=leave)
