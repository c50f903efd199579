"""`cluster.table("settings")`: a topic's latest value per key as a live mapping, for services that share state.

A thread reads the topic from its beginning, without a group, and goes on as records come. Memory is that of the keys
that are there, and, per watcher, of the keys that have changed since it looked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from raystream.client import serde
from raystream.client.consumer import Consumer
from raystream.client.delivered import Batch
from raystream.client.loop import BackgroundLoop
from raystream.client.positions import Place, partitions_of, resolve
from raystream.client.records import Deserializer
from raystream.client.routing import Routing
from raystream.config import ConsumerConfig
from raystream.errors import Closed, InvalidArgument, InvalidRecord, RaystreamError, RequestTimeout
from raystream.tombstones import tombstones, value_columns
from raystream.types import EARLIEST, LATEST, Record, TopicPartition

_POLL_S: Final = 0.2


class Change(NamedTuple):
    """What became of a key: its value, or None where it is gone. `offset` and `partition` are the record's."""

    key: Any
    value: Any
    deleted: bool
    partition: int
    offset: int


class Table(Mapping[Any, Any]):
    """The latest value of every key, kept up to date. Thread-safe; a context manager.

    Keys and values are bytes on a raw topic, unless deserializers are given; a `str` finds its UTF-8. On a typed topic
    the key is the key column's value, and the value a dict of the row. Each record is seen once it is committed, in
    its partition's order; partitions go their own ways. After `close`, or when reading has failed, what was read last
    stays, and waiting raises.
    """

    def __init__(
        self,
        routing: Routing,
        loop: BackgroundLoop,
        topic: str,
        config: ConsumerConfig,
        *,
        key_deserializer: Deserializer | None = None,
        value_deserializer: Deserializer | None = None,
    ) -> None:
        self.topic = topic
        self._routing = routing
        self._loop = loop
        described = loop.run(routing.topic(topic))
        if described.typed and described.key is None:
            raise InvalidArgument(f"topic {topic!r} has no key column: there is no latest row per key")
        self._typed, self._key, self._time = described.typed, described.key or "key", described.time
        self._bytes_keys = not described.typed and key_deserializer is None
        self._values: dict[Any, Any] = {}
        self._news = threading.Condition()
        self._watchers: list[Watcher] = []
        self._reached: dict[TopicPartition, int] = {}
        self._failure: Exception | None = None
        self._closed = False
        self._consumer = Consumer(
            routing,
            loop,
            config,
            topics=topic,
            start=EARLIEST,
            key_deserializer=key_deserializer,
            value_deserializer=value_deserializer,
        )
        self._thread = threading.Thread(target=self._run, name=f"raystream-table-{topic}", daemon=True)
        self._thread.start()

    # The mapping ----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        return self._values[self._as_stored(key)]

    def __contains__(self, key: object) -> bool:
        return self._as_stored(key) in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        """The keys as they are now: changes meanwhile do not disturb it."""
        with self._news:
            return iter(list(self._values))

    def snapshot(self) -> dict[Any, Any]:
        """All keys and values at one moment."""
        with self._news:
            return dict(self._values)

    def _as_stored(self, key: Any) -> Any:
        return serde.key_bytes(key) if self._bytes_keys and isinstance(key, str) else key

    def __repr__(self) -> str:
        state = "closed" if self._closed else "failed" if self._failure is not None else "live"
        return f"<table of {self.topic!r}, {len(self):,} keys, {state}>"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    # Waiting and watching -------------------------------------------------------------------------------------------

    def wait_until_caught_up(self, timeout: float | None = 30.0) -> None:
        """Returns once all that was committed when it was called is in the table.

        Raises RequestTimeout after `timeout` seconds, Closed, and what reading has failed with.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._check()
        ends = self._loop.run(self._ends())
        with self._news:
            while not all(self._reached.get(partition, 0) >= end for partition, end in ends.items()):
                self._check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise RequestTimeout(f"the table of {self.topic!r} has not caught up within {timeout} s")
                self._news.wait(left)

    async def _ends(self) -> dict[TopicPartition, int]:
        partitions = await partitions_of(self._routing, self.topic)
        starts = await resolve(self._routing, Place(word=EARLIEST), partitions)
        ends = await resolve(self._routing, Place(word=LATEST), partitions)
        return {partition: end for partition, end in ends.items() if end > starts[partition]}

    def watch(self) -> Watcher:
        """The changes from now on: an iterator that waits for more, until it or the table is closed.

        Whoever is slow sees of each key the last change only. An iterator of a table that failed raises why.
        """
        with self._news:
            watcher = Watcher(self, self._news)
            self._watchers.append(watcher)
        return watcher

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def raise_failure(self) -> None:
        """Raises what reading has failed with, if it has."""
        if self._failure is not None:
            raise self._failure

    def _check(self) -> None:
        self.raise_failure()
        if self._closed:
            raise Closed(f"the table of {self.topic!r} is closed")

    def close(self) -> None:
        """Reads no more. Closing again does nothing."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                batch = self._consumer.poll(_POLL_S)
                if batch is not None:
                    self._take(batch)
                else:
                    self._note_positions()
        except Exception as error:
            ours = isinstance(error, RaystreamError)
            with self._news:
                self._failure = error if ours else InvalidRecord(f"a record of {self.topic!r} raised {error!r}")
                self._news.notify_all()
        finally:
            self._consumer.close()

    def _take(self, batch: Batch) -> None:
        dead = self._dead(batch)
        changes = [self._change(record, at in dead) for at, record in enumerate(batch) if record.key is not None]
        with self._news:
            for change in changes:
                if change.deleted:
                    self._values.pop(change.key, None)
                else:
                    self._values[change.key] = change.value
            for watcher in self._watchers:
                watcher.pending.update((change.key, change) for change in changes)
            self._reached[batch.topic_partition] = batch.offsets.stop
            self._news.notify_all()

    def _note_positions(self) -> None:
        """Where the last offsets hold no record, no batch says that they were read."""
        positions = self._consumer.position()
        with self._news:
            for partition, offset in positions.get(self.topic, {}).items():
                self._reached[TopicPartition(self.topic, partition)] = offset
            self._news.notify_all()

    def _dead(self, batch: Batch) -> set[int]:
        rows = batch.to_arrow()
        values = value_columns(rows.column_names, typed=self._typed, key=self._key, time=self._time)
        mask = tombstones(rows, key=self._key, values=values)
        return set() if mask is None else {at for at, dead in enumerate(mask.to_pylist()) if dead}

    def _change(self, record: Record, deleted: bool) -> Change:
        value = None if deleted else record.value
        return Change(record.key, value, deleted, record.partition, record.offset)

    def forget(self, watcher: Watcher) -> None:
        """For a watcher that is closed."""
        with self._news:
            if watcher in self._watchers:
                self._watchers.remove(watcher)


class Watcher:
    """A table's changes, of each key the last since it was looked at. For one thread; a context manager."""

    def __init__(self, table: Table, news: threading.Condition) -> None:
        self.pending: dict[Any, Change] = {}
        self._table = table
        self._news = news
        self._closed = False

    def __iter__(self) -> Iterator[Change]:
        return self

    def __next__(self) -> Change:
        change = self.get(None)
        if change is None:
            raise StopIteration
        return change

    @property
    def ended(self) -> bool:
        """Whether it or its table was closed, and nothing is left to be seen."""
        return not self.pending and (self._closed or self._table.closed)

    def get(self, timeout: float | None = None) -> Change | None:
        """The next change, or None after `timeout` seconds, or where watcher or table was closed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._news:
            while not self.pending:
                self._table.raise_failure()
                left = None if deadline is None else deadline - time.monotonic()
                if self.ended or (left is not None and left <= 0):
                    return None
                self._news.wait(left)
            return self.pending.pop(next(iter(self.pending)))

    def close(self) -> None:
        """Watches no more."""
        self._table.forget(self)
        with self._news:
            self._closed = True
            self._news.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
