"""The consumer: a plain object wherever its user is, reading partitions alone or as a member of a group."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import re
import socket
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self, TypeVar

from raystream import messages as m
from raystream.client.assigned import Assigned
from raystream.client.buffer import Buffer
from raystream.client.committing import Committing
from raystream.client.delivered import Batch
from raystream.client.handlers import Produce, run_handlers
from raystream.client.loop import BackgroundLoop
from raystream.client.notebook import replace_earlier
from raystream.client.positions import by_topic
from raystream.client.records import Deserializer, Run
from raystream.client.routing import Routing
from raystream.client.session import Session
from raystream.client.subscription import Subscription
from raystream.config import ConsumerConfig
from raystream.errors import Closed, InvalidArgument, InvalidRecord, OffsetOutOfRange, RaystreamError, RequestTimeout
from raystream.types import LATEST, PartitionLag, Position, Record, Rows, TopicPartition

T = TypeVar("T")
OnOffsetsLost = Literal["raise", "warn"] | Callable[[Any], Any]
"""A callable takes an OffsetsLost, a LogTruncated, or an OffsetOutOfRange of a position past the end."""

CLOSE_WAIT_S: Final = 8.0
EXIT_WAIT_S: Final = 2.0
_open: weakref.WeakSet[Consumer] = weakref.WeakSet()


class Consumer:
    """Reads topics record by record or batch by batch. Made by `cluster.consumer(…)`.

    Delivery is at least once: a record counts as processed when the next one is asked for, or when the consumer is
    closed without an exception on its way; processed positions of a group are committed at the end of each batch,
    before the partition's next one is handed out (`commit_each_batch`), every `auto_commit_interval_ms` inside a long
    one, when a partition moves to another member, and at close. So a member that is killed repeats the batch it had in
    hand and no more. A record whose handling raised is not committed and comes again in the next life of the group.

    With `group_instance_id` it is a static member: a restart within `session_timeout_ms` moves nothing, and the newest
    consumer of that name takes the place of an older one, which gets FencedMember.

    Where retention or `delete_records` took records away before they were read, `on_offsets_lost` says what becomes of
    that: "raise" raises OffsetsLost, once, from the call that asks for more, and the next call goes on behind the
    range; "warn" logs it; a callable is called with it, on the thread that iterates. So it is with LogTruncated, where
    an unclean election took back what was read already: the next call goes on where the log parts from that. A position
    past the log's end is an OffsetOutOfRange in the same way, and `start` says where to go on.

    `start` counts where there is no committed position (always, without a group). Errors that may pass are retried
    without end and never raised. One thread iterates; `stop`, `commit`, `pause`, `seek` and the looks at positions
    may be called from any.
    """

    def __init__(
        self,
        routing: Routing,
        loop: BackgroundLoop,
        config: ConsumerConfig,
        *,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        start: Position = LATEST,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Deserializer | None = None,
        client_id: str = "",
        group_instance_id: str | None = None,
        on_offsets_lost: OnOffsetsLost = "raise",
        produce: Produce | None = None,
    ) -> None:
        self._subscription = Subscription.of(topics)
        self._loop = loop
        self._config = config
        self.group = group
        self._produce = produce
        self._deserializers = (key_deserializer, value_deserializer)
        self._pid = os.getpid()
        self._closed = False
        self._buffer = Buffer(
            _poster(loop),
            check_crcs=config.check_crcs,
            deserializers=self._deserializers,
            max_batch_bytes=config.max_fetch_bytes,
            on_lost=_on_lost(on_offsets_lost),
        )
        self._session = Session(
            routing,
            config,
            self._buffer,
            self._subscription,
            group=group,
            start=start,
            client=client_id or f"{socket.gethostname()}:{os.getpid()}",
            client_id=client_id,
            instance_id=_instance_id(group_instance_id, group),
        )
        # Background tasks hold the session and the buffer, never this object: when it goes, they end.
        self._finalizer = weakref.finalize(self, _abandon, loop, self._session, self._buffer, self._pid)
        self._finalizer.atexit = False
        replace_earlier(self, (group, self._subscription))
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
        while (run := self._buffer.next_run(None)) is not None:
            try:
                yield from run.records
            except Exception as error:
                raise self._undeserialized(run, error) from error

    async def __aiter__(self) -> AsyncIterator[Record]:
        """As iterating, for `async for`: waits without blocking the running event loop."""
        self._check_open()
        while True:
            run = self._buffer.run_at_hand()
            if run is None:
                if not await self._ready():
                    return
                continue
            records = run.records
            while True:
                try:
                    record = next(records, None)
                except Exception as error:
                    raise self._undeserialized(run, error) from error
                if record is None:
                    break
                yield record
            await asyncio.sleep(0)  # others on this loop get their turn

    def _undeserialized(self, run: Run, error: Exception) -> InvalidRecord:
        offset = run.offsets[max(run.handed_out - 1, 0)]
        partition = self._buffer.rewind()
        place = f"{partition} at offset {offset}" if partition is not None else f"offset {offset}"
        skip = f"consumer.seek({partition.topic!r}, {partition.partition}, {offset + 1})" if partition else "seek"
        return InvalidRecord(f"{place}: the deserializer raised {error!r}; {skip} steps over the record", offset=offset)

    async def poll_async(self, timeout: float | None = 1.0) -> Batch | None:
        """As `poll`, without blocking the running event loop."""
        self._check_open()
        deadline = None if timeout is None else time.monotonic() + timeout
        while (batch := self._buffer.batch_at_hand()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not await self._ready(left):
                return None
        return batch

    async def _ready(self, timeout_s: float | None = None) -> bool:
        """Waits for something to take, `timeout_s` seconds at most; False after `stop`."""
        here = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # that loop has ended
                here.call_soon_threadsafe(woken.set)

        self._buffer.when_ready(wake)
        try:
            async with asyncio.timeout(timeout_s):
                await woken.wait()
        except TimeoutError:
            return True
        finally:
            self._buffer.forget(wake)
        if self._buffer.stopping:
            self._buffer.clear_stop()
            return False
        return True

    def poll(self, timeout: float | None = 1.0) -> Batch | None:
        """The next batch, of one partition, or None after `timeout` seconds. None waits without end.

        The batch (or record) handed out before counts as processed from here on.
        """
        self._check_open()
        return self._buffer.take(timeout)

    def batches(self) -> Iterator[Batch]:
        """Batches, waiting for more without end; `stop()` ends it."""
        self._check_open()
        while (batch := self._buffer.take(None)) is not None:
            yield batch

    def run(
        self,
        each_record: Callable[[Record], Any] | None = None,
        each_batch: Callable[[Batch], Any] | None = None,
        *,
        on_error: Literal["stop", "skip"] = "stop",
        retries: int = 3,
        dead_letter: str | None = None,
    ) -> None:
        """Calls a handler for every record or every batch, until `stop()`, SIGTERM or an error.

        A handler that raises is called again up to `retries` times, with growing pauses. Then the record goes to the
        topic `dead_letter` where one is named; else `on_error` decides: "stop" raises HandlerFailed with the record's
        position uncommitted, "skip" logs it and goes on. `stop()` commits; SIGTERM (main thread) lets the handler
        finish, commits and leaves the group. Ctrl-C interrupts at once.
        """
        self._check_open()
        run_handlers(
            self,
            self._buffer,
            each_record,
            each_batch,
            on_error=on_error,
            retries=retries,
            dead_letter=dead_letter,
            produce=self._produce,
            deserializers=self._deserializers,
        )

    def stop(self) -> None:
        """Ends the loop that runs now (`for`, `batches`, `run`) after what is in hand. From any thread."""
        self._buffer.stop()

    # Positions ------------------------------------------------------------------------------------------------------

    def commit(self, batch: Batch | None = None, *, offsets: Mapping[str, Mapping[int, int]] | None = None) -> None:
        """Commits everything handed out so far, or up to the end of `batch`, or `{topic: {partition: offset}}`; returns
        when it is durable.

        Raises FencedMember where the partitions have gone to another member meanwhile; for `offsets` InvalidArgument
        where a partition is not assigned here, OffsetOutOfRange where an offset lies beyond the partition's end.
        """
        self._check_open()
        if offsets is None:
            self._call(self._session.commit(self._acknowledged(batch)))
            return
        if batch is not None:
            raise InvalidArgument("commit takes either a batch or offsets=")
        self._call(self._session.commit_at(offsets))

    def commit_async(self, batch: Batch | None = None) -> Committing:
        """As `commit`, without waiting: `result()` of what it returns, or `await`, gives the outcome. Commits keep
        their order, whichever answers first."""
        self._check_open()
        return Committing(self._loop.submit(self._session.commit(self._acknowledged(batch))))

    def _acknowledged(self, batch: Batch | None) -> dict[TopicPartition, int]:
        if batch is None:
            return self._buffer.acknowledge()
        self._buffer.acknowledge_batch(batch)  # the automatic commits go on from there
        return {batch.topic_partition: batch.offsets.stop}

    def offsets_for_transaction(self, batch: Batch | None = None) -> m.CommitRequest:
        """Positions as `producer.commit_offsets` sends them: of everything handed out so far, or to the end of `batch`.

        Raises InvalidArgument for a consumer without a group or with automatic commits, FencedMember.
        """
        self._check_open()
        if self._config.auto_commit:
            raise InvalidArgument("positions that move with transactions need a consumer with auto_commit=False")
        if batch is None:
            offsets = self._buffer.acknowledge(revoking=True)
        else:
            offsets = {batch.topic_partition: batch.offsets.stop}
            self._buffer.acknowledge_batch(batch)
        return self._call(self._session.offsets_for_transaction(offsets))

    def committed_elsewhere(self, request: m.CommitRequest) -> None:
        """A transaction has moved these positions. Does not wait."""
        with contextlib.suppress(Closed):
            self._loop.submit(self._session.committed_elsewhere(request))

    def rewind(self) -> None:
        """Goes back to the group's committed positions: what was handed out since comes again, as after an abort."""
        self._check_open()
        self._call(self._session.rewind())

    def commit_processed(self) -> None:
        """Commits what counts as processed, everything before what is in hand, where commits are automatic."""
        self._check_open()
        if self.group is not None and self._config.auto_commit:
            self._call(self._session.commit_processed(self._config.request_timeout_ms))

    def seek(self, topic: str, partition: int, offset: int | Position) -> None:
        """Goes on at an offset or another position. Raises InvalidArgument where the partition is not assigned."""
        self._check_open()
        self._call(self._session.seek(topic, partition, offset))

    def pause(self, topic: str | None = None, partition: int | None = None) -> None:
        """Hands out nothing more of all partitions, of a topic's or of one, until `resume`; keeps them assigned."""
        for slot in self._chosen(topic, partition):
            self._buffer.pause(slot, True)

    def resume(self, topic: str | None = None, partition: int | None = None) -> None:
        """Ends a pause."""
        for slot in self._chosen(topic, partition):
            self._buffer.pause(slot, False)

    def assignment(self) -> list[TopicPartition]:
        """The partitions that this consumer reads now."""
        self._check_open()
        return sorted(p for p, slot in self._session.assigned().items() if not slot.revoking)

    def position(self, topic: str | None = None, partition: int | None = None) -> Any:
        """The offset of the next record: `{topic: {partition: offset}}`, which `start` takes, or one partition's."""
        slots = {slot.partition: slot for slot in self._chosen(topic, partition)}
        offsets = {p: self._buffer.position(slot) for p, slot in slots.items()}
        return _one_or_all(offsets, topic, partition)

    def committed(self, topic: str | None = None, partition: int | None = None) -> Any:
        """The group's committed offsets, in the form of `position`; None for one partition that has none."""
        self._check_open()
        self._chosen(topic, partition)
        return _one_or_all(self._call(self._session.committed()), topic, partition)

    def lag(self) -> Rows[PartitionLag]:
        """How many records lie between each partition's position and its end now."""
        self._check_open()
        return self._call(self._session.lag())

    def _chosen(self, topic: str | None, partition: int | None) -> list[Assigned]:
        self._check_open()
        if topic is None:
            return list(self._session.assigned().values())
        if partition is not None:
            return [self._session.slot(TopicPartition(topic, partition))]
        return [slot for p, slot in self._session.assigned().items() if p.topic == topic]

    # The end --------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self, *, processed: bool | None = None, leave: bool | None = None) -> None:
        """Commits what is processed and leaves the group at once; a static member keeps its partitions for the session
        timeout, unless `leave` is True.

        `processed` says whether what is in hand counts; by default it does, unless an exception is on its way through
        the caller or another thread has it.
        """
        self._close(processed=False if processed is None and sys.exc_info()[1] is not None else processed, leave=leave)

    def replaced(self) -> None:
        """Closes without counting what is in hand: the cell that held it was run again."""
        self._close(processed=False)

    def _close(self, *, processed: bool | None, wait_s: float = CLOSE_WAIT_S, leave: bool | None = None) -> None:
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        self._finalizer.detach()
        self._buffer.release(processed=processed)
        self._buffer.close()
        with contextlib.suppress(Closed, RequestTimeout):  # without a connection the session runs out by itself
            self._loop.run(self._session.close(leave=leave), wait_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(processed=None if error is None else False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a consumer cannot be pickled: pass the cluster, and call cluster.consumer(…) where it is used")

    def __repr__(self) -> str:
        state = "closed" if self._closed else ", ".join(map(str, self._session.assigned())) or "no partition yet"
        alone = f"group {self.group!r}" if self.group is not None else "no group"
        return f"<Consumer of {self._subscription}, {alone}: {state}>"

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


def _one_or_all(offsets: Mapping[TopicPartition, int], topic: str | None, partition: int | None) -> Any:
    if topic is not None and partition is not None:
        return offsets.get(TopicPartition(topic, partition))
    nested = by_topic(offsets)
    return nested if topic is None else nested.get(topic, {})


def _on_lost(given: Any) -> Any:
    if given == "warn":
        return None
    if given == "raise":
        return _raise
    if not callable(given):
        raise InvalidArgument(f"on_offsets_lost is 'raise', 'warn' or a callable that takes OffsetsLost, not {given!r}")
    return given


def _raise(error: OffsetOutOfRange) -> NoReturn:
    raise error


def _instance_id(given: Any, group: str | None) -> str:
    if given is None:
        return ""
    if group is None:
        raise InvalidArgument("group_instance_id names a member of a group: give group= as well")
    if not isinstance(given, str) or not given:
        raise InvalidArgument(f"group_instance_id is a name that this member keeps over restarts, not {given!r}")
    return given


def _poster(loop: BackgroundLoop) -> Callable[[Callable[[], None]], None]:
    def post(call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the connection is closed
            loop.asyncio_loop.call_soon_threadsafe(call)

    return post


def _abandon(loop: BackgroundLoop, session: Session, buffer: Buffer, pid: int) -> None:
    """Nobody holds the consumer any more: it leaves its group. Not waited for, because collecting must not block."""
    if pid != os.getpid():
        return
    buffer.release(processed=False)
    buffer.close()
    with contextlib.suppress(RaystreamError):
        loop.submit(session.close())


@atexit.register
def _leave_at_exit() -> None:
    """Consumers that are still open when the interpreter exits leave their groups."""
    for consumer in list(_open):
        with contextlib.suppress(Exception):
            consumer._close(processed=False, wait_s=EXIT_WAIT_S)
