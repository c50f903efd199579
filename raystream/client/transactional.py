"""What a transactional producer does on the loop beside sending: its identity, its partitions, how transactions end.

Guarantees. No batch leaves for a partition before the coordinator has it written down among the transaction's. Once a
record of a transaction has failed, nothing more of it is sent and it cannot be committed. Batches of different
transactions have different epochs, so that what arrives late is refused.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Mapping
from typing import Any, Final, Literal

from raystream import batch as b
from raystream import messages as m
from raystream.client.accumulator import Sink
from raystream.client.ledger import Ledger
from raystream.client.pipeline import Batch, Pipeline, TakenBack
from raystream.client.routing import Routing
from raystream.client.sender import Sender
from raystream.client.sent import Chunk, Piece
from raystream.client.stats import ProducerStats
from raystream.config import ProducerConfig
from raystream.errors import (
    FencedProducer,
    InvalidTransactionState,
    RaystreamError,
    RequestTimeout,
)

COORDINATOR_WAIT_MS: Final = 60_000.0
"""An end is asked for so long: a partition that has no leader keeps it from being complete."""

State = Literal["new", "ready", "open", "ending", "fenced"]


class TransactionalSender(Sender):
    """A Sender whose batches belong to transactions. `failure` says why the open one cannot be committed, or, when
    fenced, why nothing works any more."""

    def __init__(
        self,
        routing: Routing,
        config: ProducerConfig,
        ledger: Ledger,
        stats: ProducerStats,
        partitioner: Any,
        transactional_id: str,
        client_id: str = "",
    ) -> None:
        super().__init__(routing, config, ledger, stats, partitioner, client_id)
        self._attributes = b.ATTR_TRANSACTIONAL
        self._id = transactional_id
        self._instance = uuid.uuid4().hex
        self._epoch = 0
        self.state: State = "new"
        self._registered: set[tuple[str, int]] = set()
        self._wanted: dict[tuple[str, int], Pipeline] = {}
        self._registering = False
        self._expected: dict[str, int] = {}
        """By topic id: the partition that was registered before a record was sent to it."""
        self._keyless: set[str] = set()
        """Topics whose records went to any partition lately."""
        self._told = False
        """Whether the coordinator may know of the open transaction."""

    # Transactions ---------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Opens a transaction; the first time, takes over the transactional id. Raises FencedProducer,
        InvalidTransactionState where one is open."""
        self._refuse_fenced()
        if self.state == "new":
            await self._take_over()
        if self.state != "ready":
            raise InvalidTransactionState("a transaction is open: commit or abort it before the next one begins")
        self.state, self.failure = "open", None

    async def _take_over(self) -> None:
        request = m.InitProducerRequest(
            transactional_id=self._id,
            transaction_timeout_ms=self._config.transaction_timeout_ms,
            instance=self._instance,
        )
        reply = await self._routing.call_coordinator(
            lambda port, left_ms: port.init_producer(request, timeout_ms=left_ms), timeout_ms=COORDINATOR_WAIT_MS
        )
        self._goes_on(reply.producer_id, reply.producer_epoch)

    def _goes_on(self, producer_id: int, epoch: int) -> None:
        self._producer_id, self._epoch = producer_id, epoch
        self._registered.clear()
        self._wanted.clear()
        self._expected.clear()
        self._told = False
        for pipelines in self._pipelines.values():
            for pipeline in pipelines:
                pipeline.begin(producer_id, epoch)
        self.state = "ready"

    async def commit(self, offsets: tuple[m.CommitRequest, ...]) -> None:
        """Commits; everything was acknowledged before. Raises TransactionTimedOut, FencedProducer, FencedMember, and
        RequestTimeout where the outcome is unknown: then asking again finds it out, and only that is allowed."""
        self._refuse_fenced()
        if self.state not in ("open", "ending"):
            raise InvalidTransactionState("no transaction is open")
        if self.failure is not None:
            raise InvalidTransactionState(f"the transaction has failed, it can only be aborted: {self.failure}")
        self.state = "ending"
        try:
            await self._end(commit=True, offsets=offsets)
        except RequestTimeout:
            raise
        except RaystreamError as error:
            self._failed(error)
            raise

    async def abort(self) -> None:
        """Aborts: what waits is not sent, what is on its way is refused or does not count. Raises FencedProducer,
        InvalidTransactionState where it is committed already, and RequestTimeout where it is not known yet."""
        self._refuse_fenced()
        if self.state not in ("open", "ending"):
            raise InvalidTransactionState("no transaction is open")
        before = self.failure
        why = before or InvalidTransactionState("the transaction was aborted")
        self.failure = why
        for sink in list(self.sinks.values()):
            self.drain(sink, open_too=True)
        for pipelines in self._pipelines.values():
            for pipeline in pipelines:
                self._fail(pipeline.take_all(), why)
        under_way = list(self._tasks)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        try:
            await self._end(commit=False, offsets=())
        except InvalidTransactionState:  # it was committed: `commit`, asked again, says so, and the producer goes on
            self.failure = before
            raise

    async def _end(self, *, commit: bool, offsets: tuple[m.CommitRequest, ...]) -> None:
        if not self._told and not offsets:
            self.state = "ready"  # nothing was written: nobody need hear of it
            return
        assert self._producer_id is not None
        self._told = True  # where this has no answer, an abort has to ask, too: positions alone may have moved
        request = m.EndTransactionRequest(
            transactional_id=self._id,
            producer_id=self._producer_id,
            producer_epoch=self._epoch,
            commit=commit,
            offsets=offsets,
        )
        reply = await self._asking(
            self._routing.call_coordinator(
                lambda port, left_ms: port.end_transaction(request, timeout_ms=left_ms),
                timeout_ms=COORDINATOR_WAIT_MS,
            )
        )
        self._goes_on(reply.producer_id, reply.producer_epoch)

    async def _asking(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await call
        except FencedProducer as error:
            self.state, self.failure = "fenced", error
            raise

    def _refuse_fenced(self) -> None:
        if self.state == "fenced":
            assert self.failure is not None
            raise self.failure

    def _failed(self, error: BaseException) -> None:
        """The transaction cannot be committed any more; what waits of it fails now."""
        if self.failure is None:
            self.failure = error if isinstance(error, RaystreamError) else InvalidTransactionState(repr(error))
        if self.state == "ending":
            self.state = "open"
        for pipelines in self._pipelines.values():
            for pipeline in pipelines:
                self._fail(pipeline.take_all(), self.failure)

    # Sending --------------------------------------------------------------------------------------------------------

    def opened(self, sink: Sink, chunk: Chunk) -> None:
        """Where records went to any partition before, the one that is next is registered while the user adds more."""
        super().opened(sink, chunk)
        expects = sink.topic_id in self._keyless and sink.topic_id not in self._expected
        if expects and self.state == "open" and self.failure is None:
            partition = self._expected[sink.topic_id] = super().idlest(sink)
            self._want(self._pipelines_of(sink)[partition])

    def idlest(self, sink: Sink) -> int:
        """The one that is registered, unless it is busy: each partition more is a marker more."""
        self._keyless.add(sink.topic_id)
        expected = self._expected.get(sink.topic_id)
        if expected is not None and not self._pipelines_of(sink)[expected].waiting_bytes:
            return expected
        return super().idlest(sink)

    def _queue(self, sink: Sink, pieces: list[Piece]) -> None:
        if self._expected.get(sink.topic_id) not in (None, *(piece.partition for piece in pieces)):
            self._keyless.discard(sink.topic_id)
        super()._queue(sink, pieces)

    def _may_number(self, pipeline: Pipeline) -> bool:
        """A partition's batches leave once it is among the transaction's."""
        if self.failure is not None:
            self._fail(pipeline.take_all(), self.failure)
            return False
        if pipeline.place in self._registered:
            if pipeline.producer_id is None:
                assert self._producer_id is not None
                pipeline.begin(self._producer_id, self._epoch)
            return True
        self._want(pipeline)
        return False

    def _want(self, pipeline: Pipeline) -> None:
        if pipeline.place not in self._registered:
            self._wanted[pipeline.place] = pipeline
            if not self._registering:
                self._registering = True
                self._spawn(self._register())

    async def _register(self) -> None:
        """Tells the coordinator of the partitions that are wanted, all those that came up meanwhile at once."""
        try:
            while self._wanted:
                await asyncio.sleep(0)
                wanted, self._wanted = self._wanted, {}
                await self._tell(wanted)
                for pipeline in wanted.values():
                    self._pump(pipeline)
        except RaystreamError as error:
            self._failed(error)
        finally:
            self._registering = False

    async def _tell(self, wanted: Mapping[tuple[str, int], Pipeline]) -> None:
        assert self._producer_id is not None
        self._told = True
        request = m.AddPartitionsRequest(
            transactional_id=self._id,
            producer_id=self._producer_id,
            producer_epoch=self._epoch,
            partitions=tuple((p.sink.name, p.sink.topic_id, p.partition) for p in wanted.values()),
        )
        await self._asking(
            self._routing.call_coordinator(
                lambda port, left_ms: port.add_partitions(request, timeout_ms=left_ms),
                timeout_ms=self._config.delivery_timeout_ms,
            )
        )
        self._registered.update(wanted)

    async def _try(self, pipeline: Pipeline, batch: Batch, left_ms: float) -> m.AppendReply:
        """A partition that refuses a batch for good ends the transaction: nothing of it is numbered anew."""
        try:
            return await super()._try(pipeline, batch, left_ms)
        except TakenBack:
            if pipeline.fenced:
                raise FencedProducer(
                    "the transaction has ended already: it timed out, or another producer has its transactional id"
                ) from None
            raise InvalidTransactionState("the partition lost what was sent to it in this transaction") from None

    def _renew(self, pipeline: Pipeline) -> None:
        """The coordinator says with which id and epoch the producer goes on, if it does."""
        pipeline.fenced = True

    def _settle(
        self, pipeline: Pipeline, batch: Batch, reply: m.AppendReply | None, error: BaseException | None
    ) -> None:
        super()._settle(pipeline, batch, reply, error)
        if error is not None:
            self._failed(error)
