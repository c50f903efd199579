"""What a transactional producer does on the loop beside sending: its identity, its partitions, how transactions end.

Guarantees. No batch leaves for a partition before the coordinator has it written down among the transaction's. Once a
record of a transaction has failed, nothing more of it is sent and it cannot be committed. Batches of different
transactions have different epochs, so that what arrives late is refused. Transactions are committed in the order in
which they began; where one is not, neither is what has begun before its user heard of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter, deque
from collections.abc import Coroutine, Iterable
from typing import Any, Final, Literal

from raystream import batch as b
from raystream import messages as m
from raystream.client.accumulator import Sink
from raystream.client.ended import Ended, aborted, commit_all, fail_all, together
from raystream.client.ledger import Ledger
from raystream.client.pipeline import Batch, Pipeline, TakenBack
from raystream.client.registration import Registration
from raystream.client.routing import Routing
from raystream.client.sender import Sender
from raystream.client.sent import Chunk, Piece
from raystream.client.stats import ProducerStats
from raystream.config import ProducerConfig
from raystream.errors import (
    Closed,
    FencedProducer,
    InvalidTransactionState,
    RaystreamError,
    RequestTimeout,
)

COORDINATOR_WAIT_MS: Final = 60_000.0
"""An end is asked for so long: a partition that has no leader keeps it from being complete."""
FIRST: Final = 1
"""The number of a producer's first transaction."""

State = Literal["new", "ready", "ending", "fenced"]


class TransactionalSender(Sender):
    """A Sender whose batches belong to transactions. `failure` says why nothing of what is open can be committed, or,
    when fenced, why nothing works any more.

    The user's transactions are numbered from 1 on, and their records carry the number. The first one that has not ended
    sends as it goes. Those behind it wait, and once their turn comes, all that have ended by then are one transaction
    of the cluster: each still counts as a whole or not at all, and what an end costs is shared.
    """

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
        self.unseen: RaystreamError | None = None
        """Why a transaction has failed whose commit nobody waited for."""
        self._through = FIRST
        """The number of the last transaction whose records may be sent."""
        self._ended: deque[Ended] = deque()
        self._group: list[Ended] = []
        """What is being committed, as one."""
        self._lost_behind: RaystreamError | None = None
        """Why those are not committed that ended behind one of which nobody knows, where nobody waited for them."""
        self._committing: asyncio.Task[None] | None = None
        self._unsettled: Counter[int] = Counter()
        """Of each transaction: pieces that are neither acknowledged nor failed."""
        self._settled = asyncio.Event()
        self._hurry = asyncio.Event()
        """Somebody waits for what is being committed."""
        self._spoilt: dict[int, BaseException] = {}
        """Why transactions whose turn has not come cannot be committed."""
        self._registration = Registration(
            self._spawn, self._tell, then=self._pump, failed=self._failed, ended=self._settled.set
        )
        self._expected: dict[str, int] = {}
        """By topic id: the partition that was registered before a record was sent to it."""
        self._gathering: dict[str, int] = {}
        """By topic id: the partition in which records without a key wait for their transaction's turn."""
        self._keyless: set[str] = set()
        """Topics whose records went to any partition lately."""
        self._told = False
        """Whether the coordinator may know of the open transaction."""

    # Transactions ---------------------------------------------------------------------------------------------------

    @property
    def goes_on(self) -> bool:
        """Whether a transaction may begin without waiting for anything. Any thread."""
        return self.state in ("ready", "ending") and self.failure is None and self.unseen is None

    @property
    def undecided(self) -> bool:
        """Whether nobody knows what became of a commit. Any thread."""
        return self.state == "ending" and self.failure is not None

    async def begin(self) -> None:
        """The first time, takes over the transactional id. Raises FencedProducer, InvalidTransactionState where it is
        not known whether an earlier transaction is committed."""
        await self.idle()
        self._refuse_fenced()
        if self.state == "new":
            await self._take_over()
        if self.undecided:
            raise InvalidTransactionState(
                "it is not known whether the transaction before is committed: `commit_transaction()` asks again"
            ) from self.failure
        if self.failure is not None:
            await self._recover()

    async def idle(self) -> None:
        """Waits until no commit is on its way."""
        while self._committing is not None:
            self.hurry()
            await asyncio.wait((self._committing,))

    def hurry(self) -> None:
        """Somebody waits: what is to be committed lingers no longer."""
        self._hurry.set()

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
        self._registration.begin()
        self._expected.clear()
        self._told = False
        for pipeline in self._all_pipelines():
            pipeline.begin(producer_id, epoch)
        self.state = "ready"

    async def commit(self, ended: Ended) -> None:
        """Commits a transaction, once all before it are. Raises why it is not: TransactionTimedOut, FencedProducer,
        FencedMember, what became of a record or of a transaction before it. Then it is taken back, with all that have
        begun meanwhile. RequestTimeout: nobody knows, and `ask_again` finds it out."""
        ended.outcome = asyncio.get_running_loop().create_future()
        self._ended.append(ended)
        if ended.waited_for:
            self._hurry.set()
        if self._committing is None:
            self._committing = asyncio.ensure_future(self._commit_all())
        await ended.outcome

    async def _commit_all(self) -> None:
        """Commits what has ended until there is nothing more, all that came up meanwhile at once."""
        try:
            while self._ended and self.failure is None:
                await self._linger()
                await self._commit_group()
            if self.failure is not None and self.state == "ready":
                await self._take_back(self.failure)
        except asyncio.CancelledError:
            self._failed(Closed("the producer was closed; whether the transaction is committed is unknown"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits must hear of it
            self._failed(error)
        finally:
            self._committing = None
            self._hurry.clear()
            if self.failure is None:
                self._let_go(self._through + 1)
            else:
                self._answer_failed(self.failure)

    async def _linger(self) -> None:
        """Where nobody waits, for others that end meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.linger_ms / 1000):
                await self._hurry.wait()

    async def _commit_group(self) -> None:
        for sink in list(self.sinks.values()):
            self.drain(sink)
        self._group = [self._ended.popleft()]
        while self._ended and self._ended[0].number not in self._spoilt:
            self._group.append(self._ended.popleft())
        self._let_go(self._group[-1].number)
        while self.failure is None and (
            self._registration.under_way or any(at <= self._through for at in self._unsettled)
        ):
            self._settled.clear()
            await self._settled.wait()
        if self.failure is None:
            await self._end_group()

    def _has_open_ends(self) -> bool:
        """Whether something of the group is on its way."""
        return self._registration.under_way or any(number <= self._through for number in self._unsettled)

    async def _end_group(self) -> None:
        self.state = "ending"
        try:
            await self._end(commit=True, offsets=together(self._group))
        except RequestTimeout as error:
            self.failure = error
            self._fail_waiting()
        except RaystreamError as error:
            if self.state == "ending":
                self.state = "ready"
            self._failed(error)
        else:
            self._answer_committed()

    def _answer_committed(self) -> None:
        commit_all(self._group)
        self._group = []

    def _answer_failed(self, failure: RaystreamError) -> None:
        if self.undecided:  # of those behind it everybody knows: they are not committed
            self._lost_behind = fail_all(self._ended, self._why())
            self.unseen = fail_all(self._group, failure) or self._lost_behind
        else:
            self.unseen = fail_all([*self._group, *self._ended], failure) or self.unseen
            self._group = []
        self._ended.clear()

    def _let_go(self, number: int) -> None:
        """Records of transactions up to this one may be sent from now on."""
        self._through = number
        self._gathering.clear()
        for at in [at for at in self._spoilt if at <= number]:
            self._failed(self._spoilt.pop(at))
        for pipeline in self._all_pipelines():
            pipeline.through = number
            self._pump(pipeline)

    async def ask_again(self) -> None:
        """What became of a commit of which nobody knows. Raises as `commit`."""
        self._refuse_fenced()
        try:
            await self._end(commit=True, offsets=together(self._group))
        except RequestTimeout:
            raise
        except RaystreamError as error:
            self.unseen = self._lost_behind
            if self.state == "ending":
                self.state, self.failure = "ready", error
            raise
        self.unseen = self._lost_behind
        self._answer_committed()
        self._forgive()

    async def abort(self, number: int | None) -> None:
        """Takes back the transaction of that number, the last one, or, None, what has failed. What waits is not sent,
        what is on its way is refused or does not count. Raises FencedProducer, InvalidTransactionState where it is
        committed already, and RequestTimeout where it is not known yet."""
        self._refuse_fenced()
        if number is not None:
            for sink in list(self.sinks.values()):
                self.drain(sink)
            for pipeline in self._all_pipelines():
                self._fail(pipeline.take(number), self.failure or aborted())
        await self.idle()
        self._refuse_fenced()
        if number is None or not self.undecided:
            await self._recover()

    async def _recover(self) -> None:
        """Takes back what is open, and forgets why."""
        await self._take_back(self.failure or aborted())
        self._forgive()

    async def _take_back(self, why: RaystreamError) -> None:
        before, self.failure = self.failure, why
        for pipeline in self._all_pipelines():
            self._fail(pipeline.take_all(), why)
        under_way = list(self._tasks)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._registration.cancelled()
        self._refreshing.clear()  # who was cancelled before its first step has not said that it is over
        try:
            await self._end(commit=False, offsets=())
        except InvalidTransactionState:  # it was committed: asked again, it says so, and the producer goes on
            self.failure = before
            raise

    def _forgive(self) -> None:
        """All transactions up to now have ended, one way or another; the next one goes on."""
        self.failure = self._lost_behind = None
        self._group = []
        self._spoilt.clear()
        for number in [at for at in self._unsettled if at < self.accumulator.transaction]:
            del self._unsettled[number]
        self._let_go(self.accumulator.transaction)

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

    # What fails -----------------------------------------------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        """What is open cannot be committed any more; what waits fails now."""
        if self.failure is None:
            self.failure = error if isinstance(error, RaystreamError) else InvalidTransactionState(repr(error))
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        self._settled.set()
        for pipeline in self._all_pipelines():
            self._fail(pipeline.take_all(), self._why())

    def _why(self) -> RaystreamError:
        """Why what waits is not sent."""
        assert self.failure is not None
        if self.undecided:
            return InvalidTransactionState(f"not committed: nobody knows whether the one before it is: {self.failure}")
        return self.failure

    def _fail(self, pieces: list[Piece], error: BaseException) -> None:
        super()._fail(pieces, error)
        self._count_down(pieces)
        for number in {piece.transaction for piece in pieces}:
            self._spoil(number, error)

    def _refuse(self, chunk: Chunk, error: BaseException) -> None:
        super()._refuse(chunk, error)
        self._spoil(chunk.transaction, error)

    def _spoil(self, number: int, error: BaseException) -> None:
        """A record of the transaction has failed."""
        if number > self._through:
            self._spoilt.setdefault(number, error)
        elif self.failure is None:
            self._failed(error)

    def _count_down(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:  # those of a topic that is gone were never counted
            left = self._unsettled[piece.transaction] - 1
            if left > 0:
                self._unsettled[piece.transaction] = left
            else:
                self._unsettled.pop(piece.transaction, None)
                self._settled.set()

    # Sending --------------------------------------------------------------------------------------------------------

    def _all_pipelines(self) -> list[Pipeline]:
        return [pipeline for pipelines in self._pipelines.values() for pipeline in pipelines]

    def _new_pipeline(self, sink: Sink, partition: int) -> Pipeline:
        pipeline = super()._new_pipeline(sink, partition)
        pipeline.through = self._through
        return pipeline

    def stop(self, error: RaystreamError) -> None:
        super().stop(error)
        if self._committing is not None:
            self._committing.cancel()

    def opened(self, sink: Sink, chunk: Chunk) -> None:
        """Where records went to any partition before, the one that is next is registered while the user adds more."""
        super().opened(sink, chunk)
        has_its_turn = chunk.transaction == self._through and self._committing is None and self.goes_on
        if has_its_turn and sink.topic_id in self._keyless and sink.topic_id not in self._expected:
            partition = self._expected[sink.topic_id] = super().idlest(sink)
            self._registration.want(self._pipelines_of(sink)[partition])

    def idlest(self, sink: Sink) -> int:
        """The one that is registered, unless it is busy: each partition more is an append and a marker more. What has
        to wait gathers in one."""
        self._keyless.add(sink.topic_id)
        if self._committing is not None:
            gathering = self._gathering.get(sink.topic_id)
            if gathering is None or self._pipelines_of(sink)[gathering].pending_bytes >= sink.chunk_bytes:
                gathering = self._gathering[sink.topic_id] = super().idlest(sink)
            return gathering
        expected = self._expected.get(sink.topic_id)
        if expected is not None and not self._pipelines_of(sink)[expected].waiting_bytes:
            return expected
        return super().idlest(sink)

    def _queue(self, sink: Sink, pieces: list[Piece]) -> None:
        if self._expected.get(sink.topic_id) not in (None, *(piece.partition for piece in pieces)):
            self._keyless.discard(sink.topic_id)
        self._unsettled.update(piece.transaction for piece in pieces)
        if self.failure is not None:
            self._fail(pieces, self._why())
        else:
            super()._queue(sink, pieces)

    def _may_number(self, pipeline: Pipeline) -> bool:
        """A partition's batches leave once it is among the transaction's."""
        if self.failure is not None:
            self._fail(pipeline.take_all(), self._why())
            return False
        if self._registration.has(pipeline):
            if pipeline.producer_id is None:
                assert self._producer_id is not None
                pipeline.begin(self._producer_id, self._epoch)
            return True
        self._registration.want(pipeline)
        return False

    async def _tell(self, wanted: Iterable[Pipeline]) -> None:
        assert self._producer_id is not None
        self._told = True
        request = m.AddPartitionsRequest(
            transactional_id=self._id,
            producer_id=self._producer_id,
            producer_epoch=self._epoch,
            partitions=tuple((p.sink.name, p.sink.topic_id, p.partition) for p in wanted),
        )
        await self._asking(
            self._routing.call_coordinator(
                lambda port, left_ms: port.add_partitions(request, timeout_ms=left_ms),
                timeout_ms=self._config.delivery_timeout_ms,
            )
        )

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
        if reply is not None:
            self._count_down(batch.pieces)
