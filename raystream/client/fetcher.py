"""The loop that fetches one assigned partition ahead of its user, and what it does when the log has moved on.

Guarantees: batches reach the buffer in offset order, without gaps other than those of the log; errors that may pass
are retried for as long as the partition is assigned; an offset that is gone is reset as `start` says, once what was
fetched before it is read, and the user is told: of a range that was lost (OffsetsLost), of records that it has read and
the log holds no more (LogTruncated; it goes on where the log parts from what it has read), of a position past the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import pyarrow as pa

from raystream import messages as m
from raystream.client.assigned import Assigned
from raystream.client.buffer import Buffer
from raystream.client.fetched import Fetched, SpanGone, SpanUnreadable, batches_from, pieces
from raystream.client.routing import MAX_BACKOFF_MS, Leader, Routing
from raystream.config import ConsumerConfig
from raystream.errors import (
    CorruptBatch,
    LogTruncated,
    OffsetOutOfRange,
    OffsetsLost,
    RaystreamError,
    TopicNotFound,
)
from raystream.schema import RAW_SCHEMA
from raystream.types import TopicPartition

log = logging.getLogger("raystream")

MIN_FETCH_BYTES: Final = 64 * 1024
MAX_VANISHED_SPANS: Final = 3
IDLE_PAUSE_MS: Final = 20.0
DRAIN_PAUSE_S: Final = 0.02
COMPLAIN_AFTER_MS: Final = 10_000.0

ResetOffset = Callable[[TopicPartition, int | None], Awaitable[int]]


class Fetcher:
    """Fetches the partitions of one consumer. Lives on the loop; knows the buffer, not the user's object."""

    def __init__(
        self,
        routing: Routing,
        config: ConsumerConfig,
        buffer: Buffer,
        reset: ResetOffset,
        *,
        may_vanish: bool = False,
        client_id: str = "",
    ) -> None:
        self._routing = routing
        self._config = config
        self._buffer = buffer
        self._reset = reset
        self._may_vanish = may_vanish
        self._client_id = client_id
        self._tasks: dict[Assigned, asyncio.Task[None]] = {}
        self._vanished: dict[Assigned, int] = {}
        self._copied: set[Assigned] = set()

    def start(self, slot: Assigned) -> None:
        task = asyncio.ensure_future(self._run(slot))
        task.add_done_callback(partial(self._ended, slot))
        self._tasks[slot] = task

    def _ended(self, slot: Assigned, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("fetching %s failed", slot.partition, exc_info=error)
            self._buffer.fail(RaystreamError(f"fetching {slot.partition} failed: {error!r}"), slot)

    def stop(self, slot: Assigned) -> None:
        task = self._tasks.pop(slot, None)
        if task is not None:
            task.cancel()
        self._copied.discard(slot)
        self._vanished.pop(slot, None)

    def restart(self, slot: Assigned) -> None:
        """After a seek: a long poll for the old place is not waited out."""
        if slot in self._tasks:
            self.stop(slot)
            self.start(slot)

    async def stop_all(self) -> None:
        tasks = list(self._tasks.values())
        for slot in list(self._tasks):
            self.stop(slot)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _share_bytes(self) -> int:
        """What one partition may have buffered, so that all together stay within max_buffered_bytes."""
        return max(self._config.max_buffered_bytes // max(len(self._tasks), 1), 2 * MIN_FETCH_BYTES)

    async def _run(self, slot: Assigned) -> None:
        trouble_since: float | None = None
        complained = False
        clock = self._routing.clock
        while True:
            await self._room(slot)
            try:
                await self._fetch_once(slot)
            except RaystreamError as error:
                if isinstance(error, OffsetOutOfRange):
                    await self._on_out_of_range(slot, error)
                elif error.retriable:
                    now = clock.monotonic_ms()
                    trouble_since = now if trouble_since is None else trouble_since
                    if now - trouble_since > COMPLAIN_AFTER_MS and not complained:
                        log.warning("fetching %s fails and is tried again: %s", slot.partition, error)
                        complained = True
                    await asyncio.sleep(MAX_BACKOFF_MS / 1000)
                else:
                    await self._park(slot, error)
                continue
            trouble_since, complained = None, False

    async def _park(self, slot: Assigned, error: RaystreamError) -> None:
        """The user sees the error; `restart` after a seek ends this."""
        if not (self._may_vanish and isinstance(error, TopicNotFound)):  # a pattern's topic may go again
            self._buffer.fail(error, slot)
        await asyncio.Event().wait()

    async def _room(self, slot: Assigned) -> None:
        while slot.buffered_bytes and slot.buffered_bytes + self._fetch_bytes() > self._share_bytes():
            slot.wanted.clear()
            if slot.buffered_bytes + self._fetch_bytes() > self._share_bytes():
                await slot.wanted.wait()

    def _fetch_bytes(self) -> int:
        return max(min(self._config.max_fetch_bytes, self._share_bytes() // 2), MIN_FETCH_BYTES)

    async def _fetch_once(self, slot: Assigned) -> None:
        generation, offset, last_epoch = slot.generation, slot.fetch_offset, slot.last_epoch
        wait_ms = self._config.fetch_max_wait_ms
        topic, partition = slot.partition
        mapped = False

        async def call(leader: Leader, left_ms: float) -> m.FetchReply:
            nonlocal mapped
            if leader.topic_id != slot.topic_id:
                slot.topic_id = leader.topic_id
                raise OffsetOutOfRange(f"topic {topic!r} was deleted and created again", another_topic=True)
            mapped = self._config.mmap and leader.node_id == self._routing.node_id and slot not in self._copied
            request = m.FetchRequest(
                topic_id=leader.topic_id,
                partition=partition,
                offset=offset,
                leader_epoch=leader.epoch,
                max_bytes=self._fetch_bytes(),
                max_wait_ms=wait_ms,
                mapped=mapped,
                follower=leader.follower,
                client_id=self._client_id,
                committed=self._config.committed,
                last_epoch=last_epoch,
            )
            return await leader.port.fetch(request, timeout_ms=min(left_ms, wait_ms + self._config.request_timeout_ms))

        started = self._routing.clock.monotonic_ms()
        timeout_ms = wait_ms + self._config.request_timeout_ms
        reply = await self._routing.call_partition(
            topic, partition, call, timeout_ms=timeout_ms, near=True, waits_ms=wait_ms
        )
        if slot.generation != generation:
            return
        slot.high_watermark = reply.last_stable_offset if self._config.committed else reply.high_watermark
        got = await self._take_in(slot, generation, reply, mapped)
        if reply.throttle_ms:
            await asyncio.sleep(reply.throttle_ms / 1000)
        if not got and self._routing.clock.monotonic_ms() - started < IDLE_PAUSE_MS:
            await asyncio.sleep(IDLE_PAUSE_MS / 1000)  # the leader holds no more parked fetches: do not spin

    async def _take_in(self, slot: Assigned, generation: int, reply: m.FetchReply, mapped: bool) -> bool:
        try:
            runs = await self._batches(slot, reply)
        except SpanGone as error:
            self._vanished[slot] = self._vanished.get(slot, 0) + 1
            if self._vanished[slot] >= MAX_VANISHED_SPANS:
                self._copied.add(slot)
            log.debug("%s: %s", slot.partition, error)
            return False
        except SpanUnreadable as error:
            log.debug("%s is read as bytes from now on: %s", slot.partition, error)
            self._copied.add(slot)
            return True
        except CorruptBatch as error:
            if mapped:  # the file may have been replaced under the span: the leader's own bytes decide
                self._copied.add(slot)
                return True
            topic, partition = slot.partition
            offset = slot.fetch_offset
            message = f"{slot.partition} from offset {offset} on: {error}"
            raise CorruptBatch(message, topic=topic, partition=partition, offset=offset) from None
        self._vanished.pop(slot, None)
        for run in runs:
            if not self._buffer.put(slot, generation, run):
                break
        return bool(runs)

    async def _batches(self, slot: Assigned, reply: m.FetchReply) -> list[Fetched]:
        runs = []
        offset = slot.fetch_offset
        for schema_id, data in pieces(reply):
            schema = await self._schema(slot, schema_id)
            run = batches_from(data, schema, offset, high_watermark=slot.high_watermark, aborted=reply.aborted)
            if run is not None:
                offset = run.next_offset
                runs.append(run)
        return runs

    async def _schema(self, slot: Assigned, schema_id: int) -> pa.Schema:
        return await schema_of(self._routing, slot.partition.topic, schema_id)

    async def _drained(self, slot: Assigned) -> None:
        """Waits until what was fetched before is read: it is there no matter what the log has lost."""
        while True:
            if self._buffer.drained(slot):
                return
            await asyncio.sleep(DRAIN_PAUSE_S)

    async def _on_out_of_range(self, slot: Assigned, found: OffsetOutOfRange) -> None:
        generation, was = slot.generation, slot.fetch_offset
        another = getattr(found, "another_topic", False)
        parted: int | None = getattr(found, "diverging_offset", None)
        if not another:
            await self._drained(slot)
        try:
            offset = await self._reset(slot.partition, None if another else was) if parted is None else parted
        except RaystreamError as error:
            if not error.retriable:
                await self._park(slot, error)
            return
        if slot.generation != generation:
            return
        self._buffer.move(slot, offset)
        topic, partition = slot.partition
        where = f"{slot.partition}: offset {was:,}"
        lost: OffsetOutOfRange
        if another:
            log.warning("%s belongs to a topic that was deleted and created again; going on at %d", where, offset)
            return
        if parted is not None:
            lost = LogTruncated(
                f"{where} is no longer there: the log was truncated, and holds of what was read what lies below "
                f"{parted:,}; going on there",
                topic=topic,
                partition=partition,
                position=was,
                next=parted,
            )
        elif offset <= was:
            lost = OffsetOutOfRange(
                f"{where} is not there: the log ends before it; going on at {offset:,}",
                topic=topic,
                partition=partition,
                position=was,
                next=offset,
            )
        else:
            count = offset - was
            lost = OffsetsLost(
                f"{where} is no longer there: {count:,} records were lost; going on at {offset:,}",
                topic=topic,
                partition=partition,
                first=was,
                next=offset,
                count=count,
            )
        log.warning("%s", lost)
        self._buffer.lose(lost)


async def schema_of(routing: Routing, topic: str, schema_id: int) -> pa.Schema:
    """The stored schema of a topic's batches with that id; asks the controller where it is newer than what is known."""
    metadata = await routing.topic(topic)
    if not metadata.typed:
        return RAW_SCHEMA
    if schema_id > len(metadata.schemas):
        routing.forget(topic)
        metadata = await routing.topic(topic)
    return routing.schema(metadata, schema_id)
