"""Fetches a bounded range of one partition: all of it in one answer where it can be mapped, else part after part."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Final

from raystream import messages as m
from raystream.batch import BatchHeader, row_count
from raystream.client.columns import Piece, decoded
from raystream.client.fetched import Fetched, SpanGone, SpanUnreadable, batches_from, pieces
from raystream.client.fetcher import MAX_VANISHED_SPANS, schema_of
from raystream.client.routing import CALL_TIMEOUT_MS, Leader, Routing
from raystream.errors import CorruptBatch, RaystreamError, RequestTimeout
from raystream.types import TopicPartition

EVERYTHING_BYTES: Final = 1 << 50
PART_BYTES: Final = 32 << 20
BEHIND_WAIT_MS: Final = 500
BEHIND_TIMEOUT_MS: Final = 30_000.0
HELP_FROM_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets `start` to below `end` of one partition."""

    partition: TopicPartition
    start: int
    end: int
    committed: bool = False
    """Whether records of transactions that are open or aborted are left out."""

    def __len__(self) -> int:
        return max(self.end - self.start, 0)


async def fetch_range(routing: Routing, wanted: Range, *, mmap: bool, whole: bool) -> AsyncIterator[list[Fetched]]:
    """The range's batches, undecoded, in order. `whole`: at once if they can be mapped.

    Raises OffsetOutOfRange where the records were deleted meanwhile, CorruptBatch, RequestTimeout.
    """
    clock = routing.clock
    offset = wanted.start
    mapped = mmap
    vanished = 0
    deadline = clock.monotonic_ms() + BEHIND_TIMEOUT_MS
    while offset < wanted.end:
        reply, was_mapped = await _ask(routing, wanted, offset, mapped=mapped, whole=whole)
        try:
            runs = await _runs(routing, wanted, offset, reply)
        except SpanGone:
            vanished += 1
            mapped = vanished < MAX_VANISHED_SPANS
            continue
        except SpanUnreadable:
            mapped = False
            continue
        except CorruptBatch as error:
            if was_mapped:  # the file may have been replaced under the span: the leader's own bytes decide
                mapped = False
                continue
            topic, partition = wanted.partition
            message = f"{wanted.partition} from offset {offset} on: {error}"
            raise CorruptBatch(message, topic=topic, partition=partition, offset=offset) from None
        if runs:
            offset = runs[-1].next_offset
            yield runs
            if reply.throttle_ms and offset < wanted.end:
                await asyncio.sleep(reply.throttle_ms / 1000)
        elif (reply.last_stable_offset if wanted.committed else reply.high_watermark) >= wanted.end:
            return  # nothing is left up to the end: compaction took it
        elif clock.monotonic_ms() > deadline:
            raise RequestTimeout(
                f"{wanted.partition} has nothing at offset {offset}, before the read's end {wanted.end}"
            )


async def _ask(routing: Routing, wanted: Range, offset: int, *, mapped: bool, whole: bool) -> tuple[m.FetchReply, bool]:
    topic, partition = wanted.partition
    maps = False

    async def call(leader: Leader, left_ms: float) -> m.FetchReply:
        nonlocal maps
        maps = mapped and leader.node_id == routing.node_id
        request = m.FetchRequest(
            topic_id=leader.topic_id,
            partition=partition,
            offset=offset,
            leader_epoch=leader.epoch,
            max_bytes=EVERYTHING_BYTES if maps and whole else PART_BYTES,
            max_wait_ms=BEHIND_WAIT_MS,
            end_offset=wanted.end,
            mapped=maps,
            follower=leader.follower,
            committed=wanted.committed,
        )
        return await leader.port.fetch(request, timeout_ms=left_ms)

    reply = await routing.call_partition(
        topic, partition, call, timeout_ms=3 * CALL_TIMEOUT_MS, near=True, waits_ms=BEHIND_WAIT_MS
    )
    return reply, maps


async def _runs(routing: Routing, wanted: Range, offset: int, reply: m.FetchReply) -> list[Fetched]:
    runs = []
    for schema_id, data in pieces(reply):
        if offset >= wanted.end:
            break
        schema = await schema_of(routing, wanted.partition.topic, schema_id)
        run = batches_from(
            data,
            schema,
            offset,
            end_offset=wanted.end,
            high_watermark=reply.high_watermark,
            aborted=reply.aborted,
        )
        if run is not None:
            offset = run.next_offset
            runs.append(run)
    return runs


def counted(run: Fetched) -> int:
    """How many rows of the run were asked for; only what lies across its bounds is decoded. Raises CorruptBatch."""
    total = 0
    end = run.next_offset if run.end_offset is None else run.end_offset
    for header, message in run.entries:
        if not header.is_explicit:
            total += max(min(header.next_offset, end) - max(header.base_offset, run.first_offset), 0)
        elif header.base_offset < run.first_offset or header.next_offset > end:
            total += decoded(header, message, run.schema, run.first_offset, end, False).rows.num_rows
        else:
            total += row_count(message, header)
    return total


@dataclass(frozen=True, slots=True)
class Decoded:
    """A run of batches with its rows, in offset order."""

    partition: TopicPartition
    run: Fetched
    pieces: list[Piece]


def decode_runs(runs: Iterable[tuple[TopicPartition, Fetched]], check_crcs: bool) -> list[Decoded]:
    """The rows of every run. A second thread helps with the CRCs of large reads (crc32c leaves the GIL).

    `runs` is drawn as the work goes on, so that what has arrived is checked while the rest is on its way. Raises the
    CorruptBatch of the first batch, in the order of the runs, among those found.
    """
    work = _Decoding(runs, check_crcs)
    work.go_on(with_help=check_crcs)
    if work.broken is not None:
        raise work.broken
    if work.failures:
        number, offset, error = min(work.failures, key=itemgetter(0, 1))
        topic, partition = of = work.found[number].partition
        if isinstance(error, CorruptBatch):
            raise CorruptBatch(f"{of}: {error}", topic=topic, partition=partition, offset=offset) from None
        raise error
    for each in work.found:
        each.pieces.sort(key=attrgetter("base_offset"))
    return work.found


class _Decoding:
    """Batches still to decode, which one or two threads draw from."""

    def __init__(self, runs: Iterable[tuple[TopicPartition, Fetched]], check_crcs: bool) -> None:
        self.found: list[Decoded] = []
        self.failures: list[tuple[int, int, RaystreamError]] = []
        self.broken: BaseException | None = None
        self._check_crcs = check_crcs
        self._arrived_bytes = 0
        self._drawing = threading.Lock()
        self._jobs = self._draw(runs)

    def _draw(
        self, runs: Iterable[tuple[TopicPartition, Fetched]]
    ) -> Iterator[tuple[int, Decoded, tuple[BatchHeader, memoryview]]]:
        for number, (partition, run) in enumerate(runs):
            self._arrived_bytes += run.size_bytes
            into = Decoded(partition, run, [])
            self.found.append(into)
            for entry in run.entries:
                yield number, into, entry

    def go_on(self, *, with_help: bool) -> None:
        """Draws and decodes until nothing is left or something is damaged."""
        helper: threading.Thread | None = None
        try:
            while not self.failures and self.broken is None:
                with self._drawing:
                    job = next(self._jobs, None)
                if job is None:
                    break
                if with_help and helper is None and self._arrived_bytes >= HELP_FROM_BYTES:
                    helper = threading.Thread(target=self._help, name="raystream-read", daemon=True)
                    helper.start()
                self._decode(*job)
        except BaseException as error:  # an interrupt, say: the other thread stops as well
            self.broken = error
            raise
        finally:
            if helper is not None:
                helper.join()

    def _decode(self, number: int, into: Decoded, entry: tuple[BatchHeader, memoryview]) -> None:
        header, message = entry
        run = into.run
        try:
            piece = decoded(header, message, run.schema, run.first_offset, run.end_offset, self._check_crcs)
        except RaystreamError as error:
            self.failures.append((number, header.base_offset, error))
        else:
            into.pieces.append(piece)

    def _help(self) -> None:
        with contextlib.suppress(BaseException):  # `broken` tells the caller's thread
            self.go_on(with_help=False)
