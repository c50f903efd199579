"""The part of a producer that lives on the loop: cuts chunks, fills pipelines, sends batches until they are settled.

Everything here runs on the loop's thread, but for `idlest` and the encoding of large batches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

import pyarrow as pa

from raystream import batch as b
from raystream import messages as m
from raystream.client.accumulator import Accumulator, Sink
from raystream.client.cutting import cut_chunk
from raystream.client.encoding import Encoders
from raystream.client.expiry import never_sent, not_acknowledged
from raystream.client.ledger import Ledger
from raystream.client.partitioner import Partitioner
from raystream.client.pipeline import Batch, Pipeline, TakenBack
from raystream.client.routing import REPLICATED_TIMEOUT_MS, Leader, Routing
from raystream.client.sent import Chunk, Piece
from raystream.client.stats import ProducerStats
from raystream.config import ProducerConfig
from raystream.errors import (
    ActorLost,
    Closed,
    DiskFull,
    FencedProducer,
    InvalidRecord,
    NotLeader,
    OutOfOrderSequence,
    RaystreamError,
    RequestTimeout,
    SchemaChanged,
    StorageError,
    TopicNotFound,
    UnknownProducer,
)

log = logging.getLogger("raystream")

_UNANSWERED: Final = (ActorLost, RequestTimeout, StorageError, Closed)
"""After these a batch may be in the log; sending it again is safe because it keeps its sequence."""


class Sender:
    """One producer's work on the loop."""

    def __init__(
        self,
        routing: Routing,
        config: ProducerConfig,
        ledger: Ledger,
        stats: ProducerStats,
        partitioner: Any,
        client_id: str = "",
    ) -> None:
        self._routing = routing
        self._clock = routing.clock
        self._config = config
        self._client_id = client_id
        self._ledger = ledger
        self._stats = stats
        self._partitioner: Partitioner | None = partitioner
        self._pipelines: dict[str, list[Pipeline]] = {}
        self._overdue: set[Sink] = set()
        self._turn = 0
        self._producer_id: int | None = b.NO_PRODUCER_ID if config.acks == 0 else None
        self._attributes = 0
        self.failure: RaystreamError | None = None
        """Why what is on its way is given up."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._identifying = False
        self._refreshing: set[str] = set()
        self._encoders = Encoders()
        self._abandoned: RaystreamError | None = None
        self._guard: asyncio.Task[None] | None = None
        self.sinks: dict[str, Sink] = {}
        self.accumulator: Accumulator
        self._depth = 1 if config.acks == 0 else config.max_in_flight  # without sequences only depth 1 keeps order

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch_the_end(self) -> None:
        """Lives as long as the loop does. When the connection is closed under the producer, nothing may wait on."""
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.abandon(Closed("the connection to the cluster was closed before the record was acknowledged"))
            raise

    def _start(self) -> None:
        if self._guard is None:
            self._guard = asyncio.ensure_future(self._watch_the_end())

    # Chunks ---------------------------------------------------------------------------------------------------------

    def opened(self, sink: Sink, chunk: Chunk) -> None:
        """A chunk has its first record: it lingers for more."""
        self._start()
        if self._config.linger_ms > 0:
            asyncio.get_running_loop().call_later(self._config.linger_ms / 1000, self._due, sink, chunk)
        else:
            self._due(sink, chunk)

    def _due(self, sink: Sink, chunk: Chunk) -> None:
        """The chunk has lingered: it goes as soon as a pipeline is idle; until then it grows."""
        if sink.open is not chunk:
            return
        if any(pipeline.idle for pipeline in self._pipelines_of(sink)):
            self.drain(sink, open_too=True)
        else:
            self._overdue.add(sink)

    def drain(self, sink: Sink, *, open_too: bool = False) -> None:
        """Cuts the chunks that are ready, in order, and sends what may go."""
        if open_too:
            self._overdue.discard(sink)
        ready = self.accumulator.take(sink, open_too=open_too)
        if not ready:
            return
        self._start()
        lost = self._abandoned or sink.gone
        if lost is None:
            self._look_again(sink)
        for item in ready:
            if isinstance(item, list):
                if lost is not None:
                    self._fail(item, lost)
                else:
                    self._queue(sink, item)
            elif lost is not None:
                self._refuse(item, lost)
            else:
                self._cut(sink, item)

    def _cut(self, sink: Sink, chunk: Chunk) -> None:
        try:
            now_ms, timeout_ms = self._clock.now_ms(), self._config.delivery_timeout_ms
            pieces = cut_chunk(chunk, sink, self._partitioner, lambda: self.idlest(sink), now_ms, timeout_ms)
        except pa.ArrowException as error:
            self._refuse(chunk, InvalidRecord(f"the records for topic {sink.name!r} do not fit its columns: {error}"))
        except Exception as error:  # noqa: BLE001 - the user's partitioner may raise anything
            self._refuse(chunk, error)
        else:
            self._queue(sink, pieces)

    def _refuse(self, chunk: Chunk, error: BaseException) -> None:
        """None of the chunk's records can be sent."""
        chunk.fail(error)

    def _queue(self, sink: Sink, pieces: list[Piece]) -> None:
        pipelines = self._pipelines_of(sink)
        touched = {}
        for piece in pieces:
            pipelines[piece.partition].add(piece)
            touched[piece.partition] = pipelines[piece.partition]
        for pipeline in touched.values():
            self._pump(pipeline)

    def _pipelines_of(self, sink: Sink) -> list[Pipeline]:
        pipelines = self._pipelines.setdefault(sink.topic_id, [])
        while len(pipelines) < sink.partitions:
            pipelines.append(self._new_pipeline(sink, len(pipelines)))
        return pipelines

    def _new_pipeline(self, sink: Sink, partition: int) -> Pipeline:
        return Pipeline(sink, partition, self._depth)

    def idlest(self, sink: Sink) -> int:
        """The partition for which least is waiting, among those that are served. Any thread."""
        pipelines = self._pipelines_of(sink)
        known = self._routing.known(sink.name)
        served = range(sink.partitions)
        self._turn += 1
        best, least = self._turn % sink.partitions, None
        for step in served:
            partition = (self._turn + step) % sink.partitions
            if known is not None and partition < len(known.partitions) and not known.partitions[partition].actor:
                continue
            waiting = pipelines[partition].waiting_bytes
            if waiting == 0:
                return partition
            if least is None or waiting < least:
                best, least = partition, waiting
        return best

    def next_partition(self, sink: Sink) -> int:
        """Partitions in turn, for slices of frames without a key. Any thread."""
        self._turn += 1
        return self._turn % sink.partitions

    def _look_again(self, sink: Sink) -> None:
        """Takes in partitions that were added; asks for metadata in the background when it is stale."""
        known = self._routing.known(sink.name)
        if known is None:
            if sink.name not in self._refreshing:
                self._refreshing.add(sink.name)
                self._spawn(self._refresh(sink))
        elif known.topic_id == sink.topic_id:
            sink.partitions = max(sink.partitions, len(known.partitions))

    async def _refresh(self, sink: Sink) -> None:
        try:
            known = await self._routing.topic(sink.name)
            if known.topic_id == sink.topic_id:
                sink.partitions = max(sink.partitions, len(known.partitions))
        except RaystreamError as error:
            log.debug("looking for changes of topic %r: %s", sink.name, error)
        finally:
            self._refreshing.discard(sink.name)

    # Pipelines ------------------------------------------------------------------------------------------------------

    def _pump(self, pipeline: Pipeline) -> None:
        while pipeline.may_send():
            if not self._may_number(pipeline):
                return
            pieces = self._unexpired(pipeline.next_pieces(), pipeline.trouble)
            if pieces:
                self._send_off(pipeline, pipeline.next_batch(pieces))

    def _send_off(self, pipeline: Pipeline, batch: Batch) -> None:
        def ended(_: object) -> None:
            if batch in pipeline.in_flight:  # cancelled before its first step: nobody else settles it
                self._settle(pipeline, batch, None, self.failure or Closed("the producer was closed before"))

        self._spawn(self._deliver(pipeline, batch)).add_done_callback(ended)

    def _may_number(self, pipeline: Pipeline) -> bool:
        """Whether batches of the pipeline can be given producer id and sequence; asks for what is missing."""
        if pipeline.producer_id is None:
            if self._producer_id is None:
                self._identify()
                return False
            pipeline.producer_id = self._producer_id
        return True

    def _unexpired(self, pieces: list[Piece], cause: BaseException | None) -> list[Piece]:
        now = self._clock.monotonic_ms()
        late = [piece for piece in pieces if piece.deadline_ms <= now]
        if not late:
            return pieces
        self._fail(late, never_sent(self._config.delivery_timeout_ms, cause))
        return [piece for piece in pieces if piece.deadline_ms > now]

    def _after(self, pipeline: Pipeline) -> None:
        """A batch was settled: what waited for it may go."""
        self._pump(pipeline)
        if pipeline.sink in self._overdue and not pipeline.in_flight:
            self.drain(pipeline.sink, open_too=True)

    def _fail(self, pieces: list[Piece], error: BaseException) -> None:
        for piece in pieces:
            piece.delivery.settle(piece, None, None, error)

    def _identify(self) -> None:
        if not self._identifying:
            self._identifying = True
            self._spawn(self._ask_for_identity())

    async def _ask_for_identity(self) -> None:
        """Gets a producer id; while there is none, waiting records expire as they would in flight."""
        try:
            while self._producer_id is None:
                waiting = [p for pipelines in self._pipelines.values() for p in pipelines if p.pending]
                if not waiting:
                    return
                try:
                    reply = await self._routing.call_coordinator(
                        lambda port, left: port.init_producer(m.InitProducerRequest(), timeout_ms=left),
                        timeout_ms=min(self._config.request_timeout_ms, self._until_expiry(waiting)),
                    )
                    self._producer_id = reply.producer_id
                except RequestTimeout as error:
                    for pipeline in waiting:
                        for piece in self._unexpired(pipeline.take_all(), error):
                            pipeline.add(piece)
        except Exception as error:  # noqa: BLE001 - whatever it is, the records must hear of it
            for pipelines in self._pipelines.values():
                for pipeline in pipelines:
                    self._fail(pipeline.take_all(), error)
        finally:
            self._identifying = False
        for pipelines in list(self._pipelines.values()):
            for pipeline in pipelines:
                self._pump(pipeline)

    def _until_expiry(self, waiting: list[Pipeline]) -> float:
        first = min(pipeline.pending[0].deadline_ms for pipeline in waiting)
        return max(first - self._clock.monotonic_ms(), 1.0)

    # Batches --------------------------------------------------------------------------------------------------------

    async def _deliver(self, pipeline: Pipeline, batch: Batch) -> None:
        """Sends one batch until it is settled, and settles its records."""
        reply: m.AppendReply | None = None
        error: BaseException | None = None
        try:
            await self._encode(pipeline, batch)
            if self._config.acks == 0:
                await self._send_unacknowledged(pipeline, batch)
            else:
                reply = await self._append(pipeline, batch)
        except TakenBack:
            batch.taken_back = True
            pipeline.draining = True
        except asyncio.CancelledError:
            error = self.failure or Closed(
                "the connection to the cluster was closed; whether the record was written is unknown"
            )
            raise
        except Exception as failure:  # noqa: BLE001 - whatever it is, the records must hear of it
            error = failure
        finally:
            self._settle(pipeline, batch, reply, error)
        self._after(pipeline)

    def _settle(
        self, pipeline: Pipeline, batch: Batch, reply: m.AppendReply | None, error: BaseException | None
    ) -> None:
        if error is not None:
            pipeline.draining = True
            pipeline.gap_unknown |= batch.unknown
            pipeline.trouble = error
            self._fail(batch.pieces, error)
        elif reply is not None:
            pipeline.trouble = None
            self._stats.records += batch.rows
            self._stats.batches += 1
            append_time = reply.append_time_ms if pipeline.sink.attributes & b.ATTR_APPEND_TIME else None
            offset = reply.base_offset
            for piece in batch.pieces:
                piece.delivery.settle(piece, offset, append_time, None)
                offset += piece.count
        pipeline.settled(batch)

    async def _encode(self, pipeline: Pipeline, batch: Batch) -> None:
        sink = pipeline.sink
        attributes = sink.attributes | self._attributes
        arguments = (sink.topic_id, pipeline.partition, sink.schema_id, attributes, self._config.compression)
        await self._encoders.encode(batch, *arguments)
        assert batch.message is not None
        self._stats.bytes += len(batch.message)

    async def _append(self, pipeline: Pipeline, batch: Batch) -> m.AppendReply:
        """Tries until the leader answers or `delivery_timeout_ms` is over."""
        topic = pipeline.sink.name
        left_ms = batch.deadline_ms - self._clock.monotonic_ms()
        try:
            return await self._routing.retrying(
                lambda left: self._try(pipeline, batch, left),
                timeout_ms=left_ms,
                what=f"partition {topic}-{pipeline.partition}",
                moved=lambda: self._routing.forget(topic),
            )
        except RequestTimeout as error:
            late = not_acknowledged(self._config.delivery_timeout_ms, error, unknown=batch.unknown)
            raise late from late.__cause__

    async def _try(self, pipeline: Pipeline, batch: Batch, left_ms: float) -> m.AppendReply:
        left_ms = min(left_ms, self._config.request_timeout_ms)
        leader = await self._leader(pipeline, left_ms)
        if leader.replicated:
            left_ms = min(left_ms, REPLICATED_TIMEOUT_MS)
        now = self._clock.monotonic_ms()
        if batch.first_sent_ms is None:
            batch.first_sent_ms = now
        else:
            self._stats.retries += 1
        request = pipeline.request(leader.epoch, self._config.acks, self._client_id, now - batch.first_sent_ms)
        assert batch.message is not None
        as_head = pipeline.is_head(batch)
        try:
            reply = await leader.port.append(request, batch.message, timeout_ms=left_ms)
        except _UNANSWERED as error:
            batch.unknown = batch.unknown or not isinstance(error, DiskFull)  # after that the log stands as before
            if error.retriable:
                raise
            raise ActorLost(f"{type(error).__name__}: {error}") from error
        except OutOfOrderSequence:
            if leader.epoch < pipeline.acknowledged_epoch:
                raise NotLeader(f"the leader of epoch {leader.epoch} lacks what a later one has acknowledged") from None
            if (as_head or pipeline.draining) and pipeline.may_take_back(batch, sent_as_head=as_head):
                raise TakenBack from None
            raise
        except (UnknownProducer, FencedProducer) as error:
            pipeline.draining = True
            if isinstance(error, FencedProducer):
                self._renew(pipeline)  # a higher epoch of our own would be the other's next
            if not batch.unknown:
                raise TakenBack from None
            raise
        except SchemaChanged as error:  # a topic has one schema in this release: encoding again would change nothing
            raise InvalidRecord(f"{error}: make another producer, which learns the new schema") from error
        pipeline.acknowledged_epoch = max(pipeline.acknowledged_epoch, leader.epoch)
        self._stats.latency_ms += self._clock.monotonic_ms() - now
        self._throttle(pipeline, reply.throttle_ms)
        return reply

    def _throttle(self, pipeline: Pipeline, throttle_ms: int) -> None:
        def over() -> None:
            pipeline.throttled = False
            self._pump(pipeline)

        if throttle_ms and not pipeline.throttled:
            pipeline.throttled = True
            asyncio.get_running_loop().call_later(throttle_ms / 1000, over)

    def _renew(self, pipeline: Pipeline) -> None:
        """The pipeline's producer id is of no use: it, and who joins later, gets another."""
        pipeline.fenced = True
        if pipeline.producer_id == self._producer_id:
            self._producer_id = None

    async def _leader(self, pipeline: Pipeline, left_ms: float) -> Leader:
        sink = pipeline.sink
        try:
            leader = await self._routing.leader(sink.name, pipeline.partition, timeout_ms=left_ms)
            if leader.topic_id != sink.topic_id:
                raise TopicNotFound(
                    f"topic {sink.name!r} was deleted and created anew while records were on their way; they were not "
                    "written to the new one: send them again"
                )
        except TopicNotFound as error:
            self._lose(sink, error)
            raise
        return leader

    def _lose(self, sink: Sink, error: RaystreamError) -> None:
        """The topic is gone: nothing that waits for it can be delivered."""
        sink.gone = error
        self.drain(sink, open_too=True)
        for pipeline in self._pipelines.get(sink.topic_id, ()):
            self._fail(pipeline.take_all(), error)

    async def _send_unacknowledged(self, pipeline: Pipeline, batch: Batch) -> None:
        """acks=0: the records count as sent when the call is on its way. Their memory is given back with the answer, so
        that a slow partition still means backpressure."""
        leader = await self._leader(pipeline, self._config.request_timeout_ms)
        request = pipeline.request(leader.epoch, 0, self._client_id)
        assert batch.message is not None
        call = asyncio.ensure_future(
            leader.port.append(request, batch.message, timeout_ms=self._config.request_timeout_ms)
        )
        await asyncio.sleep(0)
        charge = sum(piece.charge for piece in batch.pieces)
        for piece in batch.pieces:
            piece.charge = 0
            piece.delivery.settle(piece, -1, None, None)
        self._stats.records += batch.rows
        self._stats.batches += 1
        try:
            self._throttle(pipeline, (await call).throttle_ms)
        except RaystreamError as error:
            self._routing.forget(pipeline.sink.name)
            log.debug("acks=0: a batch for %s-%d is lost: %s", pipeline.sink.name, pipeline.partition, error)
        finally:
            with self._ledger.lock:
                self._ledger.release(charge)

    # The end --------------------------------------------------------------------------------------------------------

    def abandon(self, error: RaystreamError) -> None:
        """Fails everything that is not in flight, and what comes after."""
        if self._abandoned is None:
            self._abandoned = error
            self._ledger.close(str(error))
            for sink in list(self.sinks.values()):
                self.drain(sink, open_too=True)
            for pipelines in self._pipelines.values():
                for pipeline in pipelines:
                    self._fail(pipeline.take_all(), error)

    def stop(self, error: RaystreamError) -> None:
        """Fails what is left and ends the tasks."""
        self.abandon(error)
        for task in list(self._tasks):
            task.cancel()
        if self._guard is not None:
            self._guard.cancel()
        self._encoders.stop()
