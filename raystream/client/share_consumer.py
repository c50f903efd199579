"""A member of a share group: a plain object wherever its user is, to which records come one by one or in batches."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import re
import socket
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self, TypeVar

from raystream import messages as m
from raystream.client.delivered import Batch
from raystream.client.handlers import until_sigterm
from raystream.client.loop import BackgroundLoop
from raystream.client.notebook import replace_earlier
from raystream.client.records import Deserializer
from raystream.client.routing import Routing
from raystream.client.share_ledger import Delivery, ShareLedger
from raystream.client.share_session import ShareSession
from raystream.client.subscription import Subscription
from raystream.config import ShareConfig
from raystream.errors import Closed, FencedMember, InvalidArgument, InvalidRecord, RaystreamError, RequestTimeout
from raystream.types import LATEST, Position, Record, TopicPartition

log = logging.getLogger("raystream")
T = TypeVar("T")

CLOSE_WAIT_S: Final = 8.0
EXIT_WAIT_S: Final = 2.0
WORDS: Final = (m.ACCEPT, m.RELEASE, m.REJECT)
_open: weakref.WeakSet[ShareConsumer] = weakref.WeakSet()

Word = Literal["accept", "release", "reject"]


class ShareConsumer:
    """Takes records of topics as one of many workers. Made by `cluster.consumer(…, share="workers")`.

    Any member gets any record, which is then locked for `lock_timeout_ms`. It is *accepted* and done with; *released*
    and delivered again; or *rejected*. A record that was delivered `max_deliveries` times, or was rejected, goes to the
    topic `dead_letter` where there is one, and is archived. A record whose lock runs out, or whose member dies, is
    delivered again. Delivery is at least once; records of a partition may come in another order than they were
    written.

    A record (or batch) counts as accepted when the next one is asked for, until `acknowledge` is called for the first
    time: from then on each has to be acknowledged. Acknowledgements are sent in the background; `commit` waits until
    they are durable. `close` accepts what is in hand as leaving it for the next would, unless an exception is on its
    way; what remains is released.

    One thread iterates; `acknowledge`, `renew`, `commit` and `stop` may be called from any.
    """

    def __init__(
        self,
        routing: Routing,
        loop: BackgroundLoop,
        config: ShareConfig,
        *,
        topics: str | Sequence[str] | re.Pattern[str],
        share: str,
        start: Position = LATEST,
        dead_letter: str | None = None,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Deserializer | None = None,
        client_id: str = "",
    ) -> None:
        subscription = Subscription.of(topics)
        self._loop = loop
        self._config = config
        self.share = share
        self._subscription = subscription
        self._pid = os.getpid()
        self._closed = False
        self._explicit = False
        self._hand: tuple[Delivery, int, int] | None = None
        """What was handed out last, to be accepted when the next is asked for: offsets from, to below."""
        self._iterating: tuple[Delivery, Iterator[Record]] | None = None
        self._ledger = ShareLedger(_poster(loop), routing.clock, config.lock_timeout_ms)
        self._session = ShareSession(
            routing,
            config,
            self._ledger,
            subscription=subscription,
            group=share,
            start=start,
            dead_letter=dead_letter,
            client=client_id or f"{socket.gethostname()}:{os.getpid()}",
            deserializers=(key_deserializer, value_deserializer),
        )
        # Background tasks hold the session and the ledger, never this object: when it goes, they end.
        self._finalizer = weakref.finalize(self, _abandon, loop, self._session, self._ledger, self._pid)
        self._finalizer.atexit = False
        replace_earlier(self, (share, subscription))
        try:
            self._call(self._session.begin())
        except BaseException:
            self._close(processed=False)
            raise
        _open.add(self)

    # Records and batches --------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Record]:
        """The records, waiting for more without end. `stop()` ends it; leaving the loop and coming back goes on."""
        self._check_open()
        while self._begin_delivery(None):
            yield from self._records_at_hand()
            if self._ledger.stopping:
                self._ledger.clear_stop()
                return

    async def __aiter__(self) -> AsyncIterator[Record]:
        """As iterating, for `async for`: waits without blocking the running event loop."""
        self._check_open()
        while await self._ready(None):
            if self._begin_delivery(0):
                for record in self._records_at_hand():
                    yield record
            await asyncio.sleep(0)  # others on this loop get their turn

    def _begin_delivery(self, timeout: float | None) -> bool:
        """Whether there are records to draw from."""
        self._settle()
        if self._iterating is None:
            delivery = self._ledger.take(_deadline(timeout))
            if delivery is None:
                return False
            self._iterating = (delivery, iter(delivery.batch.records()))
        return True

    def _records_at_hand(self) -> Iterator[Record]:
        while self._iterating is not None:
            delivery, records = self._iterating
            offset = delivery.handed
            if not self._ledger.hand_out(delivery, offset):
                if not self._ledger.stopping:
                    self._iterating = None
                return
            self._hand = (delivery, offset, offset + 1)
            try:
                record = next(records)
            except Exception as error:
                self._iterating = None
                raise self._undeserialized(delivery, offset, error) from error
            yield record
            self._settle()

    def _undeserialized(self, delivery: Delivery, offset: int, error: Exception) -> InvalidRecord:
        """The record is released, so that it is dead-lettered in the end, and what follows it goes back."""
        self._hand = None
        self._ledger.acknowledge(delivery, offset, offset + 1, m.RELEASE)
        self._ledger.acknowledge(delivery, offset + 1, delivery.stop, m.RETURN)
        return InvalidRecord(
            f"{delivery.place} at offset {offset}: the deserializer raised {error!r}; the record is released",
            offset=offset,
        )

    def _settle(self) -> None:
        """The user asks for more: what was in hand is accepted, unless the user says so for each."""
        hand, self._hand = self._hand, None
        if hand is not None and not self._explicit:
            self._ledger.acknowledge(*hand, m.ACCEPT)

    def poll(self, timeout: float | None = 1.0) -> Batch | None:
        """The next batch, of one partition, or None after `timeout` seconds. None waits without end.

        The batch (or record) handed out before counts as accepted from here on, in the implicit mode.
        """
        self._check_open()
        self._settle()
        return self._batch(self._rest() or self._ledger.take(_deadline(timeout)))

    async def poll_async(self, timeout: float | None = 1.0) -> Batch | None:
        """As `poll`, without blocking the running event loop."""
        self._check_open()
        self._settle()
        deadline = _deadline(timeout)
        while (batch := self._batch(self._rest() or self._ledger.at_hand())) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not await self._ready(left):
                return None
        return batch

    def _rest(self) -> Delivery | None:
        """What is left of a batch whose records were taken one by one."""
        found, self._iterating = self._iterating, None
        return found[0] if found is not None and found[0].handed < found[0].stop else None

    def _batch(self, delivery: Delivery | None) -> Batch | None:
        if delivery is None:
            return None
        first, delivery.handed = delivery.handed, delivery.stop
        self._hand = (delivery, first, delivery.stop)
        return delivery.batch if first == delivery.first else delivery.batch.between(first, delivery.stop)

    def batches(self) -> Iterator[Batch]:
        """Batches, waiting for more without end; `stop()` ends it."""
        while (batch := self.poll(None)) is not None:
            yield batch

    async def _ready(self, timeout_s: float | None) -> bool:
        """Waits for something to take, `timeout_s` seconds at most; False after `stop`."""
        if self._iterating is not None:
            return True
        here = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # that loop has ended
                here.call_soon_threadsafe(woken.set)

        self._ledger.when_ready(wake)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await woken.wait()
        if self._ledger.stopping:
            self._ledger.clear_stop()
            return False
        return True

    def deliveries(self, record: Record) -> int:
        """Which delivery this is of a record in hand: 1 for the first. Raises InvalidArgument where it is not in
        hand."""
        return self._found(record).deliveries

    def _found(self, record: Record) -> Delivery:
        delivery = self._ledger.find(TopicPartition(record.topic, record.partition), record.offset)
        if delivery is None:
            raise InvalidArgument(f"{record.topic}-{record.partition} at offset {record.offset} is not in hand")
        return delivery

    # Acknowledging --------------------------------------------------------------------------------------------------

    def acknowledge(self, what: Record | Batch, word: Word = "accept") -> None:
        """Says what becomes of a record or a whole batch: "accept", "release" or "reject". From the first call on,
        nothing counts as accepted unless it is said.

        Sent in the background. Raises InvalidArgument where it is not in hand, or was acknowledged already.
        """
        self._check_open()
        if word not in WORDS:
            raise InvalidArgument(f"{word!r} is no acknowledgement: there are {', '.join(WORDS)}")
        if isinstance(what, Batch):
            self._ledger.acknowledge_batch(what, word)
        elif isinstance(what, Record):
            self._ledger.acknowledge_record(what, word)
        else:
            raise InvalidArgument(f"a record or a batch is acknowledged, not {type(what).__name__}")
        self._explicit = True

    def renew(self, what: Record | Batch) -> None:
        """Begins the locks of a record, and of those that were acquired with it, or of a batch anew. Raises
        InvalidArgument where nothing of it is in hand."""
        self._check_open()
        if isinstance(what, Batch):
            self._ledger.renew(what.topic_partition, what.offsets.start, what.offsets.stop)
        else:
            self._ledger.renew(TopicPartition(what.topic, what.partition), what.offset, what.offset + 1)

    def commit(self) -> None:
        """Returns once all acknowledgements so far are durable.

        Raises FencedMember where some came too late since the last commit, with their ranges as `.refused`: a lock had
        run out, or the coordinator has changed; those records are delivered again, or were settled by another member.
        """
        self._check_open()
        self._call(self._session.flush(self._config.request_timeout_ms))
        count, ranges = self._ledger.take_refused()
        if count:
            raise FencedMember(
                f"share group {self.share!r}: the acknowledgements of {count:,} records came too late: those are "
                "delivered again",
                refused=ranges,
            )

    def run(
        self,
        each_record: Callable[[Record], Any] | None = None,
        each_batch: Callable[[Batch], Any] | None = None,
        *,
        on_error: Literal["release", "reject", "stop"] = "release",
    ) -> None:
        """Calls a handler for every record or every batch, until `stop()`, SIGTERM or an error.

        What was handled is accepted. What a handler raised on is released, and delivered again until `max_deliveries`;
        with `on_error="reject"` it is not delivered again; with "stop" it is released and the exception goes on its
        way. SIGTERM (main thread) lets the handler finish and leaves the group. Ctrl-C interrupts at once.
        """
        self._check_open()
        if (each_record is None) == (each_batch is None):
            raise InvalidArgument("run() takes either each_record= or each_batch=")
        if on_error not in ("release", "reject", "stop"):
            raise InvalidArgument(f"on_error={on_error!r} is none of 'release', 'reject', 'stop'")
        handler: Callable[[Any], Any] | None = each_record or each_batch
        assert handler is not None
        with until_sigterm(self.stop) as terminated:
            for what in self if each_record is not None else self.batches():
                try:
                    handler(what)
                except Exception as error:
                    self._failed(what, m.REJECT if on_error == "reject" else m.RELEASE, error)
                    if on_error == "stop":
                        raise
        if terminated.is_set():
            self.close()
        else:
            self._settle()

    def _failed(self, what: Record | Batch, word: str, error: Exception) -> None:
        hand, self._hand = self._hand, None
        log.info("the handler raised %r on %r", error, what if isinstance(what, Batch) else what[:3])
        if hand is not None:
            self._ledger.acknowledge(*hand, word)

    def stop(self) -> None:
        """Ends the loop that runs now (`for`, `batches`, `run`) after what is in hand. From any thread."""
        self._ledger.stop()

    # The end --------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self, *, processed: bool | None = None) -> None:
        """Sends all acknowledgements, gives back what was not handled and leaves the group at once.

        `processed` says whether what is in hand counts as accepted in the implicit mode; by default it does, unless an
        exception is on its way through the caller.
        """
        self._close(processed=sys.exc_info()[1] is None if processed is None else processed)

    def replaced(self) -> None:
        """Closes without counting what is in hand: the cell that held it was run again."""
        self._close(processed=False)

    def _close(self, *, processed: bool, wait_s: float = CLOSE_WAIT_S) -> None:
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        self._finalizer.detach()
        if processed:
            self._settle()
        with contextlib.suppress(Closed, RequestTimeout):  # without a connection the session runs out by itself
            self._loop.run(self._session.close(), wait_s)
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(processed=error is None)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a consumer cannot be pickled: pass the cluster, and call cluster.consumer(…) where it is used")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<ShareConsumer of {self._subscription}, share group {self.share!r}: {state}>"

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            raise RaystreamError(
                "this process was forked: make its own connection and consumer with raystream.connect()"
            )
        if self._closed:
            raise Closed("the consumer is closed")
        if self._loop.stopped:
            raise Closed("the connection to the cluster is closed: connect() again")

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _poster(loop: BackgroundLoop) -> Callable[[Callable[[], None]], None]:
    def post(call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the connection is closed
            loop.asyncio_loop.call_soon_threadsafe(call)

    return post


def _abandon(loop: BackgroundLoop, session: ShareSession, ledger: ShareLedger, pid: int) -> None:
    """Nobody holds the consumer any more: it leaves its group. Not waited for, because collecting must not block."""
    if pid != os.getpid():
        return
    try:
        loop.submit(session.close())
    except RaystreamError:
        ledger.close()


@atexit.register
def _leave_at_exit() -> None:
    """Consumers that are still open when the interpreter exits leave their groups."""
    for consumer in list(_open):
        with contextlib.suppress(Exception):
            consumer._close(processed=False, wait_s=EXIT_WAIT_S)
