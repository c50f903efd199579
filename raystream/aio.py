"""The public names as coroutines: `cluster = await raystream.aio.connect()`.

Thin over the synchronous objects: calls that wait run in threads, so the event loop never blocks; a consumer's waiting
is done on the loop itself. Every object has the synchronous one as `.sync`, and is an asynchronous context manager
where that is a context manager.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from raystream.aio_reading import THREADS, Table, View, in_thread
from raystream.aio_transactions import Rewinding, Transactions
from raystream.client.share_aio import ShareConsumer
from raystream.types import (
    EARLIEST,
    LATEST,
    BrokerDescription,
    ClientQuota,
    GroupDescription,
    Headers,
    Health,
    OffsetMove,
    PartitionLag,
    Position,
    Record,
    RecordMetadata,
    Rows,
    TopicDescription,
    TopicPartition,
    WriteResult,
)

if TYPE_CHECKING:
    import duckdb

    from raystream.client.committing import Committing
    from raystream.client.consumer import Consumer as SyncConsumer
    from raystream.client.delivered import Batch
    from raystream.client.producer import Producer as SyncProducer
    from raystream.cluster import Cluster as SyncCluster
    from raystream.jobs import ConsumerJob as SyncConsumerJob

__all__ = ["Cluster", "Consumer", "ConsumerJob", "Producer", "ShareConsumer", "Table", "View", "connect"]

P = ParamSpec("P")
T = TypeVar("T")


async def connect(
    address: str | None = None, *, data_dir: str | os.PathLike[str] | None = None, namespace: str = "raystream"
) -> Cluster:
    """As `raystream.connect`. Raises what that raises."""
    from raystream.cluster import connect as connect_and_wait  # imports Ray

    return Cluster(await in_thread(connect_and_wait, address, data_dir=data_dir, namespace=namespace))


class Cluster:
    """`raystream.Cluster` with coroutines. `.sync` is the cluster itself."""

    def __init__(self, cluster: SyncCluster) -> None:
        self.sync = cluster

    @property
    def address(self) -> str:
        """As `address` of raystream.Cluster."""
        return self.sync.address

    @property
    def data_dir(self) -> str:
        """As `data_dir` of raystream.Cluster."""
        return self.sync.data_dir

    async def close(self) -> None:
        """As `close` of raystream.Cluster."""
        await in_thread(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return repr(self.sync)

    async def create_topic(
        self,
        name: str,
        partitions: int = 1,
        replication_factor: int | None = None,
        schema: Any = None,
        key: str | None = None,
        time: str | None = None,
        config: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> TopicDescription:
        """As `create_topic` of raystream.Cluster."""
        return await in_thread(
            self.sync.create_topic, name, partitions, replication_factor, schema, key, time, config, exist_ok
        )

    async def topics(self) -> Rows[TopicDescription]:
        """As `topics` of raystream.Cluster."""
        return await in_thread(self.sync.topics)

    async def describe_topic(self, name: str) -> TopicDescription:
        """As `describe_topic` of raystream.Cluster."""
        return await in_thread(self.sync.describe_topic, name)

    async def alter_topic(
        self, name: str, config: Mapping[str, Any] | None = None, replication_factor: int | None = None
    ) -> TopicDescription:
        """As `alter_topic` of raystream.Cluster."""
        return await in_thread(self.sync.alter_topic, name, config, replication_factor)

    async def reassign(self, name: str, replicas: Mapping[int, Sequence[int]]) -> TopicDescription:
        """As `reassign` of raystream.Cluster."""
        return await in_thread(self.sync.reassign, name, replicas)

    async def elect_leaders(self, topic: str | None = None, unclean: bool = False) -> None:
        """As `elect_leaders` of raystream.Cluster."""
        await in_thread(self.sync.elect_leaders, topic, unclean)

    async def drain_broker(self, broker_id: int, drain: bool = True) -> None:
        """As `drain_broker` of raystream.Cluster."""
        await in_thread(self.sync.drain_broker, broker_id, drain)

    async def remove_broker(self, broker_id: int) -> None:
        """As `remove_broker` of raystream.Cluster."""
        await in_thread(self.sync.remove_broker, broker_id)

    async def add_partitions(self, name: str, partitions: int) -> TopicDescription:
        """As `add_partitions` of raystream.Cluster."""
        return await in_thread(self.sync.add_partitions, name, partitions)

    async def delete_topic(self, name: str) -> None:
        """As `delete_topic` of raystream.Cluster."""
        await in_thread(self.sync.delete_topic, name)

    async def delete_records(self, name: str, before: Mapping[int, int]) -> dict[int, int]:
        """As `delete_records` of raystream.Cluster."""
        return await in_thread(self.sync.delete_records, name, before)

    async def groups(self) -> Rows[GroupDescription]:
        """As `groups` of raystream.Cluster."""
        return await in_thread(self.sync.groups)

    async def describe_group(self, group: str) -> GroupDescription:
        """As `describe_group` of raystream.Cluster."""
        return await in_thread(self.sync.describe_group, group)

    async def lag(self, group: str) -> Rows[PartitionLag]:
        """As `lag` of raystream.Cluster."""
        return await in_thread(self.sync.lag, group)

    async def reset_offsets(
        self, group: str, topic: str, to: Position | None = None, dry_run: bool = False, *, shift: int | None = None
    ) -> Rows[OffsetMove]:
        """As `reset_offsets` of raystream.Cluster."""
        return await in_thread(self.sync.reset_offsets, group, topic, to, dry_run, shift=shift)

    async def delete_group(self, group: str) -> None:
        """As `delete_group` of raystream.Cluster."""
        await in_thread(self.sync.delete_group, group)

    async def brokers(self) -> Rows[BrokerDescription]:
        """As `brokers` of raystream.Cluster."""
        return await in_thread(self.sync.brokers)

    async def set_quota(
        self, client_id: str, *, produce_bytes_per_s: int | None = None, fetch_bytes_per_s: int | None = None
    ) -> None:
        """As `set_quota` of raystream.Cluster."""
        await in_thread(
            self.sync.set_quota,
            client_id,
            produce_bytes_per_s=produce_bytes_per_s,
            fetch_bytes_per_s=fetch_bytes_per_s,
        )

    async def quotas(self) -> Rows[ClientQuota]:
        """As `quotas` of raystream.Cluster."""
        return await in_thread(self.sync.quotas)

    async def health(self) -> Health:
        """As `health` of raystream.Cluster."""
        return await in_thread(self.sync.health)

    async def write(self, topic: str, frame: Any, key: str | None = None, time: str | None = None) -> WriteResult:
        """As `write` of raystream.Cluster."""
        return await in_thread(self.sync.write, topic, frame, key, time)

    def producer(self, **settings: Any) -> Producer:
        """A producer, to be used in `async with`, or closed with `await producer.close()`."""
        return Producer(self.sync.producer(**settings))

    @overload
    async def consumer(self, topics: Any, *, share: str, **settings: Any) -> ShareConsumer: ...

    @overload
    async def consumer(
        self, topics: Any, group: str | None = None, start: Position = LATEST, **settings: Any
    ) -> Consumer: ...

    async def consumer(self, topics: Any, group: Any = None, start: Position = LATEST, **settings: Any) -> Any:
        """As `consumer` of raystream.Cluster."""
        made: Any = await in_thread(functools.partial(self.sync.consumer, topics, group, start, **settings))
        return Consumer(made) if settings.get("share") is None else ShareConsumer(made)

    async def read(
        self,
        topic: str,
        start: Position = EARLIEST,
        end: Position = LATEST,
        columns: Sequence[str] | None = None,
        filter: Any = None,
        **options: Any,
    ) -> View:
        """As `read` of raystream.Cluster."""
        return View(await in_thread(self.sync.read, topic, start, end, columns, filter, **options))

    async def sql(self, query: str, **options: Any) -> duckdb.DuckDBPyRelation:
        """As `sql` of raystream.Cluster; what is returned computes when it is asked."""
        return await in_thread(self.sync.sql, query, **options)

    async def table(self, topic: str, **options: Any) -> Table:
        """As `table` of raystream.Cluster."""
        return Table(await in_thread(self.sync.table, topic, **options))

    def pipeline(self, *arguments: Any, **options: Any) -> Any:
        """As `pipeline` of raystream.Cluster; its calls wait, so run them in threads."""
        return self.sync.pipeline(*arguments, **options)

    async def run_consumers(self, topics: Any, group: str | None = None, **options: Any) -> ConsumerJob:
        """As `run_consumers` of raystream.Cluster."""
        return ConsumerJob(await in_thread(self.sync.run_consumers, topics, group, **options))


class Producer(Transactions):
    """`raystream`'s producer with coroutines. Records go out in the order in which `send` was called."""

    def __init__(self, producer: SyncProducer) -> None:
        self.sync = producer
        # One thread, so that a send which waits for room in the buffer keeps its place before later ones.
        self._order = ThreadPoolExecutor(1, thread_name_prefix="raystream-aio-send")

    async def _send(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._order, functools.partial(call, *args, **kwargs))

    async def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Headers | None = None,
        timestamp_ms: int | None = None,
        partition: int | None = None,
    ) -> RecordMetadata:
        """Sends a record and waits until it is acknowledged; several at once: `asyncio.gather(*map(…))`."""
        return await (await self._send(self.sync.send, topic, value, key, headers, timestamp_ms, partition))

    async def send_many(self, topic: str, records: Iterable[Any]) -> WriteResult:
        """As the producer's own `send_many`, waiting until everything is acknowledged."""
        return await (await self._send(self.sync.send_many, topic, records))

    async def send_frame(self, topic: str, frame: Any) -> WriteResult:
        """Sends a frame and waits until every row is acknowledged."""
        return await (await self._send(self.sync.send_frame, topic, frame))

    async def flush(self, timeout: float | None = None) -> None:
        """As `flush` of the producer."""
        await self._send(self.sync.flush, timeout)

    async def close(self, timeout: float | None = None) -> None:
        """As `close` of the producer."""
        await self._send(self.sync.close, timeout)
        self._order.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._send(self.sync.__exit__, kind, error, trace)
        self._order.shutdown(wait=False)


class Consumer(Rewinding):
    """`raystream`'s consumer with coroutines: `async for record in consumer`."""

    def __init__(self, consumer: SyncConsumer) -> None:
        self.sync = consumer

    def __aiter__(self) -> AsyncIterator[Record]:
        return self.sync.__aiter__()

    async def poll(self, timeout: float | None = 1.0) -> Batch | None:
        """As `poll` of the consumer."""
        return await self.sync.poll_async(timeout)

    async def batches(self) -> AsyncIterator[Batch]:
        """As `batches` of the consumer."""
        while (batch := await self.sync.poll_async(None)) is not None:
            yield batch

    async def run(
        self,
        each_record: Callable[[Record], Any] | None = None,
        each_batch: Callable[[Batch], Any] | None = None,
        **options: Any,
    ) -> None:
        """As `Consumer.run`; handlers may be coroutine functions, which then run on this event loop."""
        loop = asyncio.get_running_loop()
        record_handler, batch_handler = _on(loop, each_record), _on(loop, each_batch)
        run = functools.partial(self.sync.run, record_handler, batch_handler, **options)
        running = loop.run_in_executor(THREADS, run)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            self.sync.stop()
            raise

    def stop(self) -> None:
        """As `stop` of the consumer."""
        self.sync.stop()

    async def commit(
        self, batch: Batch | None = None, *, offsets: Mapping[str, Mapping[int, int]] | None = None
    ) -> None:
        """As `commit` of the consumer."""
        await in_thread(self.sync.commit, batch, offsets=offsets)

    def commit_async(self, batch: Batch | None = None) -> Committing:
        """As `commit_async` of the consumer: `await` what it returns, or do not wait."""
        return self.sync.commit_async(batch)

    async def seek(self, topic: str, partition: int, offset: int | Position) -> None:
        """As `seek` of the consumer."""
        await in_thread(self.sync.seek, topic, partition, offset)

    def pause(self, topic: str | None = None, partition: int | None = None) -> None:
        """As `pause` of the consumer."""
        self.sync.pause(topic, partition)

    def resume(self, topic: str | None = None, partition: int | None = None) -> None:
        """As `resume` of the consumer."""
        self.sync.resume(topic, partition)

    def assignment(self) -> list[TopicPartition]:
        """As `assignment` of the consumer."""
        return self.sync.assignment()

    def position(self, topic: str | None = None, partition: int | None = None) -> Any:
        """As `position` of the consumer."""
        return self.sync.position(topic, partition)

    async def committed(self, topic: str | None = None, partition: int | None = None) -> Any:
        """As `committed` of the consumer."""
        return await in_thread(self.sync.committed, topic, partition)

    async def lag(self) -> Rows[PartitionLag]:
        """As `lag` of the consumer."""
        return await in_thread(self.sync.lag)

    async def close(self, *, leave: bool | None = None) -> None:
        """As `close` of the consumer."""
        await in_thread(self.sync.close, processed=sys.exc_info()[1] is None, leave=leave)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await in_thread(self.sync.close, processed=error is None)


def _on(loop: asyncio.AbstractEventLoop, handler: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    if handler is None or not inspect.iscoroutinefunction(handler):
        return handler

    def handle(item: Any) -> Any:
        """As `handle` of the consumer."""
        return asyncio.run_coroutine_threadsafe(handler(item), loop).result()

    return handle


class ConsumerJob:
    """What `run_consumers` started, with coroutines."""

    def __init__(self, job: SyncConsumerJob) -> None:
        self.sync = job

    async def status(self) -> Any:
        """As `status` of the job."""
        return await in_thread(self.sync.status)

    async def stop(self, timeout: float | None = 30.0) -> None:
        """As `stop` of the job."""
        await in_thread(self.sync.stop, timeout)

    async def wait(self, timeout: float | None = None) -> None:
        """As `wait` of the job."""
        await in_thread(self.sync.wait, timeout)
