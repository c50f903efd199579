"""The coordinator's log, `__consumer_offsets`: read when it starts, appended to with a sync, kept short by snapshots.

Guarantees. A row that `append` has returned for survives a kill -9 of any actor. The log, read from its start, gives
the whole state at every moment, whoever is killed when: what a snapshot replaces is deleted only after its last row is
on the disk.
"""

from __future__ import annotations

import concurrent.futures
import logging
from functools import partial
from typing import Final

from raystream import batch as b
from raystream import messages as m
from raystream.actors import state_rows
from raystream.client.loop import BackgroundLoop
from raystream.client.routing import Leader, Routing
from raystream.clock import Clock
from raystream.core.compaction import Compaction
from raystream.core.coordinator import Coordinator
from raystream.core.metadata import OFFSETS_TOPIC
from raystream.errors import CoordinatorNotAvailable

logger = logging.getLogger("raystream.coordinator")

PARTITION: Final = 0
APPEND_TIMEOUT_MS: Final = 10_000.0
CONFIRM_MS: Final = 500.0
"""So old may an answer be that no append has confirmed."""
CONFIRM_TIMEOUT_MS: Final = 3_000.0
LOAD_CHUNK_BYTES: Final = 8 << 20


class OffsetsLog:
    """For the one thread at a time that has the coordinator's turn. `loop` is where the calls are made."""

    def __init__(self, routing: Routing, loop: BackgroundLoop, clock: Clock, compaction: Compaction) -> None:
        self._routing = routing
        self._loop = loop
        self._clock = clock
        self._compaction = compaction
        self._producer = (b.NO_PRODUCER_ID, 0)
        self._end_offset = 0
        self._confirmed_ms = float("-inf")
        self._deletion: concurrent.futures.Future[int] | None = None

    @property
    def snapshot_under_way(self) -> bool:
        """Whether `compact` has more to write at once."""
        return self._compaction.under_way

    @property
    def deletion_under_way(self) -> bool:
        """Whether `compact` should be called again some time."""
        return self._compaction.deleting

    # Reading --------------------------------------------------------------------------------------------------------

    def load(self) -> Coordinator:
        """The state that the log gives from its start on. Appends have no producer id after it until `use` names one.

        Raises the errors of a partition's leader, and OffsetOutOfRange where the log was shortened meanwhile: what was
        read is worth nothing then, and it is to be loaded again.
        """
        state = Coordinator()
        self._loop.run(self._latest_offset())
        log_rows = self._loop.run(self._read(state))
        self._producer = (b.NO_PRODUCER_ID, 0)
        self._deletion = None
        self._compaction.loaded(log_rows, sum(1 for _ in state.snapshot()))
        return state

    def confirm(self) -> None:
        """Raises CoordinatorNotAvailable where the log is led beside another coordinator by now, or where that one has
        written: then what is answered from here may be old. Asks the leader where it was not asked for a while."""
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._confirmed_ms < CONFIRM_MS:
            return
        latest = self._loop.run(self._latest_offset())
        if latest != self._end_offset:
            raise CoordinatorNotAvailable(
                f"{OFFSETS_TOPIC} was read up to offset {self._end_offset}, and ends at {latest}: another coordinator "
                "has written"
            )
        self._confirmed_ms = now_ms

    async def _latest_offset(self) -> int:
        async def call(leader: Leader, left_ms: float) -> m.OffsetReply | None:
            if leader.node_id != self._routing.node_id:
                return None
            request = m.ListOffsetsRequest(
                topic_id=leader.topic_id,
                partition=PARTITION,
                timestamp_ms=m.LATEST_TIMESTAMP,
                leader_epoch=leader.epoch,
            )
            return await leader.port.list_offsets(request, timeout_ms=left_ms)

        reply = await self._routing.call_partition(OFFSETS_TOPIC, PARTITION, call, timeout_ms=CONFIRM_TIMEOUT_MS)
        if reply is None:
            self._routing.forget(OFFSETS_TOPIC)
            raise CoordinatorNotAvailable("the coordinator is the one beside the leader of the groups' log")
        return reply.offset

    def use(self, producer_id: int) -> None:
        """From now on appends carry this id, which nobody else has: one that is repeated counts once."""
        self._producer = (producer_id, 0)

    async def _read(self, state: Coordinator) -> int:
        offset = first = await self._start_offset()
        while True:
            reply = await self._routing.call_partition(OFFSETS_TOPIC, PARTITION, partial(_fetch, offset))
            for chunk in reply.chunks:
                for row_offset, key, value in state_rows.decode(chunk):
                    if row_offset >= offset:
                        state.replay_row(key, value, self._clock.monotonic_ms())
                        offset = row_offset + 1
            if offset >= reply.high_watermark:
                self._end_offset = offset
                return offset - first

    async def _start_offset(self) -> int:
        async def call(leader: Leader, left_ms: float) -> m.OffsetReply:
            request = m.ListOffsetsRequest(
                topic_id=leader.topic_id,
                partition=PARTITION,
                timestamp_ms=m.EARLIEST_TIMESTAMP,
                leader_epoch=leader.epoch,
            )
            return await leader.port.list_offsets(request, timeout_ms=left_ms)

        return (await self._routing.call_partition(OFFSETS_TOPIC, PARTITION, call)).offset

    # Writing --------------------------------------------------------------------------------------------------------

    def append(self, pairs: list[state_rows.Pair]) -> int:
        """One batch, synced; the offset of its first row.

        Raises the errors of a partition's leader, and CoordinatorNotAvailable where the log holds rows that were not
        read (a batch arrived late, or somebody else writes). After any error it is to be loaded again.
        """
        producer_id, sequence = self._producer
        encoded: dict[str, memoryview] = {}

        async def call(leader: Leader, left_ms: float) -> m.AppendReply:
            batch = encoded.get(leader.topic_id)
            if batch is None:
                batch = encoded[leader.topic_id] = state_rows.encode(
                    pairs,
                    topic_id=leader.topic_id,
                    partition=PARTITION,
                    now_ms=self._clock.now_ms(),
                    producer_id=producer_id,
                    base_sequence=sequence if producer_id != b.NO_PRODUCER_ID else b.NO_SEQUENCE,
                )
            request = m.AppendRequest(
                topic_id=leader.topic_id,
                partition=PARTITION,
                leader_epoch=leader.epoch,
                expected_offset=self._end_offset,
            )
            return await leader.port.append(request, batch, timeout_ms=left_ms)

        reply = self._loop.run(
            self._routing.call_partition(OFFSETS_TOPIC, PARTITION, call, timeout_ms=APPEND_TIMEOUT_MS)
        )
        if reply.base_offset != self._end_offset:
            raise CoordinatorNotAvailable(
                f"{OFFSETS_TOPIC} was read up to offset {self._end_offset}, and the append stands at "
                f"{reply.base_offset}"
            )
        self._producer = (producer_id, b.advance_sequence(sequence, len(pairs)))
        self._end_offset += len(pairs)
        self._confirmed_ms = self._clock.monotonic_ms()
        self._compaction.appended(len(pairs))
        return reply.base_offset

    # Keeping it short -----------------------------------------------------------------------------------------------

    def compact(self, state: Coordinator) -> None:
        """Appends a piece of a snapshot where one is due, and begins to delete what a whole one replaces.

        `state` is as the log has it. Short: one batch, and no wait for deletions, which are logged and tried again
        where they fail. Raises as `append` does, and is at rest for a while after that.
        """
        now_ms = self._clock.monotonic_ms()
        pairs = self._compaction.piece(state.snapshot, now_ms)
        if pairs:
            try:
                self._compaction.written(self.append(pairs), len(pairs))
            except Exception:
                self._compaction.failed(now_ms)
                raise
        if self._deletion is not None and self._deletion.done():
            self._note_deletion(self._deletion)
            self._deletion = None
        before = self._compaction.to_delete(now_ms)
        if before is not None and self._deletion is None:
            self._deletion = self._loop.submit(self._delete_before(before))

    def _note_deletion(self, deletion: concurrent.futures.Future[int]) -> None:
        try:
            start_offset = deletion.result()
        except Exception as error:
            logger.warning("what a snapshot replaces in %s is there still: %s", OFFSETS_TOPIC, error)
            return
        self._compaction.deleted(start_offset)

    async def _delete_before(self, offset: int) -> int:
        async def call(leader: Leader, left_ms: float) -> m.OffsetReply:
            request = m.DeleteRecordsRequest(topic_id=leader.topic_id, partition=PARTITION, before_offset=offset)
            return await leader.port.delete_records(request, timeout_ms=left_ms)

        return (await self._routing.call_partition(OFFSETS_TOPIC, PARTITION, call)).offset


async def _fetch(offset: int, leader: Leader, left_ms: float) -> m.FetchReply:
    request = m.FetchRequest(
        topic_id=leader.topic_id,
        partition=PARTITION,
        offset=offset,
        leader_epoch=leader.epoch,
        max_bytes=LOAD_CHUNK_BYTES,
    )
    return await leader.port.fetch(request, timeout_ms=left_ms)
