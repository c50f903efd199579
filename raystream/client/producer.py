"""The producer: a plain object wherever its user is, sending records and frames to topics."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import numpy as np

from raystream import messages as m
from raystream.client import serde
from raystream.client.accumulator import HEADER_BYTES, RECORD_BYTES, Accumulator, Sink
from raystream.client.cutting import check_partition, cut_slice, frame_partitions
from raystream.client.frames import checked_slices, open_source
from raystream.client.ledger import Ledger
from raystream.client.loop import BackgroundLoop
from raystream.client.partitioner import Partitioner
from raystream.client.routing import CALL_TIMEOUT_MS, Routing
from raystream.client.rows import Row
from raystream.client.sender import Sender
from raystream.client.sent import Chunk, Extras, Piece, Sent, SentMany
from raystream.client.sent_frame import Frame, SentFrame
from raystream.client.serde import Serializer
from raystream.client.stats import ProducerStats
from raystream.client.without_transactions import WithoutTransactions
from raystream.clock import SystemClock
from raystream.config import ProducerConfig
from raystream.errors import (
    Closed,
    InvalidArgument,
    InvalidRecord,
    RaystreamError,
    RequestTimeout,
    Unavailable,
)
from raystream.schema import RAW_SCHEMA
from raystream.types import Headers, Record

EXIT_WAIT_S: Final = 10.0
"""How long the exit of the interpreter waits for records of producers that were not closed."""
FAILED_EXIT_WAIT_S: Final = 5.0
"""How long leaving `with` by an exception waits."""

_WOULD_WAIT: Final = "flush and close wait for acknowledgements, which come on this thread: call them on another"

_open: weakref.WeakSet[Producer] = weakref.WeakSet()
_kept: set[Producer] = set()


class Producer(WithoutTransactions):
    """Sends records and frames. Made by `cluster.producer(…)`; thread-safe; a context manager.

    Every record is acknowledged once, in the order of its `send`s per partition, or fails with a typed error within
    `delivery_timeout_ms`; retries neither double nor reorder (except under `acks=0`, which is sent once and never
    acknowledged). Failures that nobody looked at are raised as DeliveryFailed by `flush`, `close` and leaving `with`.

    At most `max_buffered_bytes` wait for their acknowledgement; then `send` waits up to `max_block_ms` for room and
    raises BufferFull.
    """

    def __init__(
        self,
        routing: Routing,
        loop: BackgroundLoop,
        config: ProducerConfig,
        *,
        key_serializer: Serializer | None = None,
        value_serializer: Serializer | None = None,
        partitioner: Partitioner | None = None,
        client_id: str = "",
    ) -> None:
        self.stats = ProducerStats()
        self.client_id = client_id
        self._routing = routing
        self._loop = loop
        self._config = config
        self._key_serializer = key_serializer
        self._value_serializer = value_serializer
        self._ledger = Ledger(config.max_buffered_bytes, config.max_block_ms, self.stats)
        self._sender = self._new_sender(partitioner)
        self._partitioner = partitioner
        self._accumulator = Accumulator(
            routing.clock, self._ledger, loop.is_current, self._chunk_opened, self._chunk_sealed
        )
        self._sender.accumulator = self._accumulator
        self._with_room = self._accumulator.with_room
        self._lock = self._ledger.lock
        self._as_is = key_serializer is None and value_serializer is None
        clock = routing.clock
        self._now_ns = time.time_ns if isinstance(clock, SystemClock) else lambda: clock.now_ms() * 1_000_000
        self._sinks = self._sender.sinks
        self._closed = False
        self._opening = threading.Lock()
        self._pid = os.getpid()
        _open.add(self)
        _kept.add(self)
        atexit.unregister(_deliver_at_exit)
        atexit.register(_deliver_at_exit)  # after Ray's own, so that it runs before Ray shuts down

    def _new_sender(self, partitioner: Partitioner | None) -> Sender:
        return Sender(self._routing, self._config, self._ledger, self.stats, partitioner, self.client_id)

    # Sending --------------------------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Headers | None = None,
        timestamp_ms: int | None = None,
        partition: int | None = None,
    ) -> Sent:
        """Hands one record over and returns at once; `.result()` of what it returns waits for the acknowledgement.

        On a raw topic `value` is bytes, str (UTF-8), dict or list (JSON) or None (a tombstone), `key` bytes or str;
        serializers replace both. On a typed topic `value` is a dict of the columns. The partition is the one given,
        the key's (murmur2, as Kafka's), or wherever least is waiting. `timestamp_ms` is now where it is not given.

        The first `send` to a topic waits for its metadata, and any may wait up to `max_block_ms` for room in the
        buffer (never on the client's own thread). Raises TopicNotFound, PartitionNotFound, InvalidRecord,
        RecordTooLarge, BufferFull, Closed.
        """
        sink = self._sinks.get(topic)
        if sink is None or sink.gone is not None:
            sink = self._open_sink(topic)
        plain = headers is None and timestamp_ms is None and partition is None
        extras: Extras | None = None
        if plain and type(value) is bytes and self._as_is and sink.takes_bytes and (key is None or type(key) is bytes):
            nbytes = RECORD_BYTES + len(value)
            if key is not None:
                nbytes += len(key)
        else:
            value, key, extras, nbytes = self._checked(sink, value, key, headers, timestamp_ms, partition)
        stamp = self._now_ns() if timestamp_ms is None else timestamp_ms * 1_000_000
        with self._lock:
            chunk = sink.open
            if chunk.left < nbytes:
                chunk = self._with_room(sink, nbytes)
            index = chunk.rows
            try:
                chunk.values.append(value)
                chunk.keys.append(key)
                chunk.nanoseconds.append(stamp)
                if key is not None:
                    chunk.keyed = True
                if extras is not None or chunk.extras is not None:
                    if chunk.extras is None:
                        chunk.extras = [None] * index
                    chunk.extras.append(extras)
                chunk.left -= nbytes
                chunk.rows = index + 1
            except BaseException:  # an interrupt: the record was not taken, and the lists must stay of one length
                chunk.cut_back(index)
                raise
        return Sent(chunk, index)

    def _checked(
        self, sink: Sink, value: Any, key: Any, headers: Any, timestamp_ms: Any, partition: Any
    ) -> tuple[Any, bytes | None, Extras | None, int]:
        """The record as its chunk takes it: value, key, headers and explicit partition, size. Raises InvalidRecord."""
        partition = self._check_partition(partition, sink)
        if sink.rows is not None:
            row = self._row(sink, value, key=key, headers=headers, timestamp_ms=timestamp_ms)
            value, nbytes = row.values, row.nbytes
            keyed = sink.key is None or value[sink.schema.names.index(sink.key)] is not None
        else:
            value = self._value_bytes(value)
            key = self._key_bytes(key)
            headers = serde.header_pairs(headers)
            self._check_timestamp(timestamp_ms, sink)
            nbytes = RECORD_BYTES + len(value or b"") + len(key or b"")
            nbytes += sum(len(name.encode()) + len(content or b"") + HEADER_BYTES for name, content in headers or ())
            keyed = key is not None
        if sink.config.compacts and not keyed:
            raise InvalidRecord(f"topic {sink.name!r} is compacted and keeps the last record of each key: give a key")
        return value, key, None if headers is None and partition is None else (headers, partition), nbytes

    def _value_bytes(self, value: Any) -> bytes | None:
        if self._value_serializer is not None:
            return serde.serialized(value, self._value_serializer, "value")
        return serde.value_bytes(value)

    def _key_bytes(self, key: Any) -> bytes | None:
        if key is not None and self._key_serializer is not None:
            return serde.serialized(key, self._key_serializer, "key")
        return serde.key_bytes(key)

    def _row(self, sink: Sink, value: Any, **others: Any) -> Row:
        assert sink.rows is not None
        for name, given in others.items():
            if given is not None:
                place = {"key": sink.key, "timestamp_ms": sink.time}.get(name)
                where = f"it is the column {place!r}" if place else f"its columns are {', '.join(sink.schema.names)}"
                raise InvalidRecord(f"topic {sink.name!r} is typed, it takes no {name}=: {where}")
        row = sink.rows.check(value)
        if row.timestamp_ms is not None:
            self._check_ahead(row.timestamp_ms, sink)
        return row

    def prepare(self, topic: str) -> None:
        """Looks a topic up now, so that the first `send` need not wait. Raises TopicNotFound."""
        sink = self._sender.sinks.get(topic)
        if sink is None or sink.gone is not None:
            Producer._open_sink(self, topic)

    def is_own_thread(self) -> bool:
        """Whether the caller is on the client's own thread, where callbacks run and nothing may wait."""
        return self._loop.is_current()

    def send_many(self, topic: str, records: Iterable[Any]) -> SentMany:
        """Sends each item as `send` does. An item is a value, a pair `(key, value)`, or a `Record` as a consumer gives
        it, whose key, value, headers and timestamp are kept (on a typed topic its row).

        Returns the records' `Sent`s in order, as a sequence that can be waited for as a whole. Where an item is
        refused, the ones before it are sent all the same.
        """
        send = self.send
        sent: list[Sent] = []
        for record in records:
            if isinstance(record, Record):
                if self._sink(topic).typed:
                    sent.append(send(topic, record.value))
                else:
                    sent.append(send(topic, record.value, record.key, record.headers, record.timestamp_ms))
            elif isinstance(record, tuple):
                if len(record) != 2:
                    raise InvalidRecord(f"a tuple of {len(record)} is no record: give values, or (key, value) pairs")
                sent.append(send(topic, record[1], record[0]))
            else:
                sent.append(send(topic, record))
        return SentMany(topic, sent)

    def send_frame(self, topic: str, frame: Any) -> SentFrame:
        """Sends a frame's rows in order: pandas, polars, pyarrow, or anything with `__arrow_c_stream__`.

        The frame has the topic's columns, of its types or such as can safely be cast; on a raw topic `value` and any
        of `key`, `headers`, `timestamp` (milliseconds or a timestamp). A pandas index is dropped. Rows go where their
        key's hash says; rows without a key are spread in slices. Returns once every row is converted and in the buffer;
        waits for room as `send` does. Raises as `send` does; a bad row is named, and rows before it may be sent.
        """
        self._ledger.check_open()
        sink = self._sink(topic)
        source = open_source(frame, sink.schema if sink.typed else RAW_SCHEMA)
        slices = checked_slices(source, sink, self._routing.clock.now_ms)
        delivery = Frame(self._ledger, topic)
        try:
            for rows, stamps in slices:
                targets = frame_partitions(sink, rows, self._partitioner, lambda: self._sender.next_partition(sink))
                self._hand_over(sink, delivery, cut_slice(delivery, sink, rows, stamps, targets, source.mutable))
        finally:
            delivery.handed_over()
        return SentFrame(delivery, self._loop.is_current)

    def _hand_over(self, sink: Sink, delivery: Frame, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._ledger.reserve(piece.nbytes, may_block=not self._loop.is_current())
            piece.charge = piece.nbytes
            piece.deadline_ms = self._routing.clock.monotonic_ms() + self._config.delivery_timeout_ms
            delivery.add(piece)
            try:
                self._accumulator.add_pieces(sink, [piece])
            except RaystreamError as error:
                delivery.settle(piece, None, None, error)
                raise

    # Checks ---------------------------------------------------------------------------------------------------------

    def _check_timestamp(self, timestamp_ms: Any, sink: Sink) -> None:
        if timestamp_ms is None:
            return
        if isinstance(timestamp_ms, (bool, np.bool_)) or not isinstance(timestamp_ms, (int, np.integer)):
            raise InvalidRecord(
                f"timestamp_ms must be an int, milliseconds since the epoch, not {type(timestamp_ms).__name__}"
            )
        if timestamp_ms < 0 or timestamp_ms >= 1 << 63:
            raise InvalidRecord(f"timestamp_ms={timestamp_ms} is out of range: milliseconds since the epoch")
        self._check_ahead(int(timestamp_ms), sink)

    def _check_ahead(self, timestamp_ms: int, sink: Sink) -> None:
        ahead_ms = timestamp_ms - self._routing.clock.now_ms()
        if ahead_ms > sink.config.max_timestamp_ahead_ms:
            raise InvalidRecord(
                f"the timestamp lies {ahead_ms:,} ms in the future; topic {sink.name!r} takes up to "
                f"{sink.config.max_timestamp_ahead_ms:,} (max_timestamp_ahead_ms)"
            )

    def _check_partition(self, partition: Any, sink: Sink) -> int | None:
        if partition is None:
            return None
        if type(partition) is int and partition >= sink.partitions and not self._loop.is_current():
            sink.partitions = max(sink.partitions, len(self._metadata(sink.name, fresh=True).partitions))
        return check_partition(partition, sink)

    # Topics ---------------------------------------------------------------------------------------------------------

    def _sink(self, topic: str) -> Sink:
        sink = self._sinks.get(topic)
        return self._open_sink(topic) if sink is None or sink.gone is not None else sink

    def _open_sink(self, topic: str) -> Sink:
        """The topic as this producer writes to it, from its metadata. Raises TopicNotFound with the remedy."""
        self._check_process()
        self._ledger.check_open()
        if not isinstance(topic, str):
            raise InvalidArgument(f"topic must be a name, not {type(topic).__name__}")
        sinks = self._sender.sinks
        metadata = self._metadata(topic, fresh=topic in sinks)
        with self._opening:
            sink = sinks.get(topic)
            if sink is None or sink.topic_id != metadata.topic_id:
                schema = self._routing.schema(metadata, len(metadata.schemas)) if metadata.typed else RAW_SCHEMA
                sink = Sink(metadata, schema, self._config, self._accumulator.no_chunk)
                sinks[topic] = sink
            elif sink.gone is not None:
                raise sink.gone
        return sink

    def _metadata(self, topic: str, *, fresh: bool) -> m.TopicMetadata:
        known = None if fresh else self._routing.known(topic)
        if known is not None:
            return known
        if self._loop.is_current():
            raise Unavailable(
                f"the metadata of topic {topic!r} is not at hand on the client's own thread: send to it once from "
                "another thread before"
            )

        async def ask() -> m.TopicMetadata:
            if fresh:
                self._routing.forget(topic)
            return await self._routing.topic(topic, timeout_ms=wait_ms)

        wait_ms = max(min(float(self._config.max_block_ms), CALL_TIMEOUT_MS), 1000.0)
        return self._loop.run(ask())

    # The loop -------------------------------------------------------------------------------------------------------

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.asyncio_loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            raise Closed("the connection to the cluster is closed") from None

    def _chunk_opened(self, sink: Sink, chunk: Chunk) -> None:
        self._post(self._sender.opened, sink, chunk)

    def _chunk_sealed(self, sink: Sink) -> None:
        self._post(self._sender.drain, sink)

    # The end --------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def flush(self, timeout: float | None = None) -> None:
        """Sends what lingers and waits until all that was sent before is acknowledged or failed.

        Raises DeliveryFailed for failures that nobody has seen, RequestTimeout after `timeout` seconds.
        """
        self._check_process()
        left = self._settle(timeout)
        if left:
            raise RequestTimeout(
                f"{left:,} records were not acknowledged within {timeout} s; they are still on their way"
            )
        self._ledger.raise_failures()

    def _settle(self, timeout: float | None) -> int:
        """Waits for all that was handed over. Returns how many records are not settled when time is up."""
        if self._loop.is_current():
            raise InvalidArgument(_WOULD_WAIT)
        with contextlib.suppress(Closed):  # the connection is closed: everything has failed
            for sink in list(self._sender.sinks.values()):
                self._accumulator.seal(sink)
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._ledger.wait_settled(self._ledger.unsettled(), deadline)

    def close(self, timeout: float | None = None) -> None:
        """Takes no more records, and waits as `flush` does. What is not settled after `timeout` seconds fails.

        Raises DeliveryFailed for failures that nobody has seen. Closing again does nothing.
        """
        self._check_process()
        if self._closed:
            return
        if self._loop.is_current():
            raise InvalidArgument(_WOULD_WAIT)
        self._closed = True
        self._ledger.close("the producer is closed: make another with cluster.producer()")
        try:
            self._settle(timeout)
        finally:
            self._end()
        self._ledger.raise_failures()

    def _end(self) -> None:
        """Fails what is left, on the loop, and lets go of everything."""
        _kept.discard(self)
        stop = Closed("the producer was closed before the record was acknowledged; whether it was written is unknown")
        try:
            self._post(self._sender.stop, stop)
        except Closed:
            return
        if not self._loop.is_current():
            self._ledger.wait_settled(self._ledger.unsettled(), time.monotonic() + 1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(FAILED_EXIT_WAIT_S)
        except RaystreamError as second:
            error.add_note(f"and while the producer was closed: {second}")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a producer cannot be pickled: pass the cluster, and call cluster.producer() where it arrives")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.stats.records:,} records acknowledged"
        return f"<raystream producer, {state}>"

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise Closed(
                "this producer was made before the process forked and belongs to the parent: connect and make one here"
            )

    def _forked(self) -> None:
        self._sinks = {}  # so that every send comes to `_check_process`

    def _deliver_at_exit(self, deadline: float) -> str | None:
        """Delivers what is left, within the deadline. Returns what was lost, as a sentence."""
        if self._closed or os.getpid() != self._pid:
            return None
        self._closed = True
        self._ledger.close("the interpreter is exiting")
        left = self._settle(max(deadline - time.monotonic(), 0.0))
        failures = self._ledger.take_failures()
        lost = left + sum(failure.count for failure in failures)
        if not lost:
            return None
        why = f": {failures[0].error}" if failures else f" within {EXIT_WAIT_S:.0f} s"
        return f"raystream: a producer was not closed, and {lost:,} of its records were not delivered{why}"


def _deliver_at_exit() -> None:
    deadline = time.monotonic() + EXIT_WAIT_S
    for producer in list(_kept):
        try:
            lost = producer._deliver_at_exit(deadline)
        except RaystreamError as error:
            lost = f"raystream: a producer was not closed, and its records may be lost: {error}"
        if lost is not None:
            sys.stderr.write(lost + "\n")


def _after_fork_in_child() -> None:
    for producer in list(_open):
        producer._forked()
    _kept.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
