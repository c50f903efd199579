"""Carries out what was decided of transactions: tells every partition's leader, until each has its marker on the disk.

A marker says what the log says, whoever sends it and however often: the decision is on the disk before the first one
leaves, is never taken back, and has an epoch of its own. So a coordinator that was deposed meanwhile need not be
fenced, and its successor begins with all that is not complete.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Final

from raystream import messages as m
from raystream.client.loop import BackgroundLoop
from raystream.client.routing import Leader, Routing
from raystream.core.transaction_records import TransactionRecord
from raystream.errors import PartitionNotFound, RaystreamError, TopicNotFound

logger = logging.getLogger("raystream.coordinator")

AGAIN_S: Final = 0.1
GONE_AFTER_MS: Final = 10_000.0
"""A topic that nobody knows for so long is deleted; a broker that lags behind may not know of it yet."""

Decided = tuple[int, int]
"""A decision's producer id, and the epoch that it has raised the producer to."""


class Markers:
    """`carry_out` and `forget` are for whoever has the coordinator's turn; `done` is called on the loop."""

    def __init__(self, routing: Routing, loop: BackgroundLoop, done: Callable[[TransactionRecord], None]) -> None:
        self._routing = routing
        self._loop = loop
        self._done = done
        self._under_way: set[TransactionRecord] = set()
        self._written: set[Decided] = set()
        """Decisions of which every partition has the marker; that they are complete is on its way to the log."""
        self._changed = threading.Condition()
        self._rounds = 0

    @property
    def rounds(self) -> int:
        """Grows whenever something was completed."""
        return self._rounds

    def carry_out(self, prepared: Iterable[TransactionRecord]) -> None:
        """Begins with what is decided and not under way; what was under way and is decided no more is complete."""
        wanted = set(prepared)
        if wanted == self._under_way:
            return
        complete = self._under_way - wanted
        fresh = wanted - self._under_way
        self._under_way = wanted
        for record in fresh:
            self._loop.submit(self._write_all(record))
        if complete:
            with self._changed:
                self._rounds += 1
                self._written -= {(record.producer_id, record.epoch) for record in complete}
                self._changed.notify_all()

    def forget(self) -> None:
        """The state is to be read anew: what it holds then is carried out again."""
        self._under_way = set()
        with self._changed:
            self._written.clear()

    def wait(self, rounds: int, decided: Decided, timeout_s: float) -> bool:
        """Returns once every partition has the marker of a decision, something was completed after `rounds`, or time
        is up; says whether it was the first. On any thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._rounds != rounds or decided in self._written, timeout_s)
            return decided in self._written

    async def _write_all(self, record: TransactionRecord) -> None:
        await asyncio.gather(*(self._write(record, *partition) for partition in record.partitions))
        while True:
            try:
                self._done(record)
                break
            except RaystreamError as error:  # the coordinator's queue is full
                logger.info("the end of %s has to wait: %s", record.transactional_id, error)
            await asyncio.sleep(AGAIN_S)
        with self._changed:  # what the producer asks next comes behind it in the coordinator's queue
            if record in self._under_way:
                self._written.add((record.producer_id, record.epoch))
            self._changed.notify_all()

    async def _write(self, record: TransactionRecord, topic: str, topic_id: str, partition: int) -> None:
        async def call(leader: Leader, left_ms: float) -> m.AppendReply:
            if leader.topic_id != topic_id:
                raise TopicNotFound(f"topic {topic!r} is another one now")
            request = m.WriteMarkerRequest(
                topic_id=topic_id,
                partition=partition,
                producer_id=record.producer_id,
                producer_epoch=record.epoch,
                commit=record.commits,
                leader_epoch=leader.epoch,
            )
            return await leader.port.write_marker(request, timeout_ms=left_ms)

        missing_since: float | None = None
        while True:
            now_ms = self._routing.clock.monotonic_ms()
            try:
                await self._routing.call_partition(topic, partition, call)
                return
            except (TopicNotFound, PartitionNotFound) as error:
                self._routing.forget(topic)
                missing_since = now_ms if missing_since is None else missing_since
                if now_ms - missing_since >= GONE_AFTER_MS:
                    logger.info("no marker of %s: %s", record.transactional_id, error)
                    return
            except RaystreamError as error:
                missing_since = None
                logger.info("%s-%d has to wait for a marker: %s", topic, partition, error)
            await asyncio.sleep(AGAIN_S)
