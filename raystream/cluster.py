"""`connect()` and the `Cluster` it returns: the one place that joins actors and clients."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from raystream.actors.session import Session, open_session, show_notices
from raystream.client import sql
from raystream.client.admin import Admin, check_columns
from raystream.client.consumer import Consumer
from raystream.client.consuming import Consuming
from raystream.client.frames import frame_schema
from raystream.client.loop import BackgroundLoop
from raystream.client.producer import Producer
from raystream.client.reader import VIEW_OPTIONS, View
from raystream.client.routing import Routing
from raystream.client.share_consumer import ShareConsumer
from raystream.client.table import Table
from raystream.client.transactional_producer import producer_kind
from raystream.config import ConsumerConfig, ProducerConfig, build, check_names
from raystream.errors import Closed, KeysMove, TopicNotFound
from raystream.jobs import ConsumerJob
from raystream.pipelines import Pipeline
from raystream.types import (
    EARLIEST,
    LATEST,
    BrokerDescription,
    ClientQuota,
    GroupDescription,
    Health,
    OffsetMove,
    PartitionLag,
    Position,
    Rows,
    TopicDescription,
    WriteResult,
)

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger("raystream")

DEAD_LETTER_WAIT_S: Final = 60.0


def connect(
    address: str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    namespace: str = "raystream",
) -> Cluster:
    """Finds the raystream cluster at hand, or starts one.

    Without an address: the Ray this process is in (task, actor, earlier `ray.init`); `$RAY_ADDRESS`; the live cluster
    that owns the data directory; else a new local Ray whose data lies in `data_dir`, `$RAYSTREAM_DATA` or
    `./.raystream`. `"auto"` and `"host:port"` name a Ray cluster; raystream is brought up on it if it is absent, with
    its data in `data_dir`, `$RAYSTREAM_DATA` or `~/.raystream` on the node.

    Raises ClusterNotFound, DataDirectoryInUse (names pid and path), DataDirectoryUnusable.
    """
    show_notices()
    session = open_session(address, data_dir, namespace)
    cluster = Cluster(lambda: session)
    names = [topic.name for topic in cluster._topic_metadata()]
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    logger.info("connected to %s, data in %s, topics: %s", cluster.address, cluster.data_dir, listed or "none yet")
    return cluster


class Cluster(Consuming):
    """A connection to a raystream cluster. Thread-safe; a context manager; can be pickled into Ray tasks and actors.

    Calls raise RequestTimeout when no answer comes within their deadline, ClusterGone once the cluster's owner has
    exited, and otherwise the errors they name. Closing stops only what this process started; the data stays.
    """

    def __init__(self, open_connection: Callable[[], Session]) -> None:
        self._open_connection = open_connection
        self._opening = threading.Lock()
        self._producers: list[Producer] = []
        self._tables: weakref.WeakSet[Table] = weakref.WeakSet()
        self._consumers: weakref.WeakSet[Consumer | ShareConsumer] = weakref.WeakSet()
        self._closed = False

    # The connection -------------------------------------------------------------------------------------------------

    @cached_property
    def _session(self) -> Session:
        # A cluster that came into a task connects when it is first used: Ray answers no calls while it unpickles.
        with self._opening:
            return self.__dict__.get("_session") or self._open_connection()

    @property
    def _loop(self) -> BackgroundLoop:
        return self._session.loop

    @property
    def _routing(self) -> Routing:
        return self._session.routing

    @property
    def _admin(self) -> Admin:
        return Admin(self._routing)

    @property
    def address(self) -> str:
        """The Ray address, "host:port"."""
        return self._session.address

    @property
    def data_dir(self) -> str:
        """Where the cluster keeps its data, on its own node."""
        return self._session.data_dir

    def close(self) -> None:
        """Closes this object's producers and consumers and lets go of the cluster."""
        if self._closed:
            return
        self._closed = True
        errors = []
        clients: list[Table | Consumer | ShareConsumer | Producer]
        clients = [*self._tables, *self._consumers, *self._producers]
        for client in clients:
            try:
                client.close()
            except Exception as error:
                errors.append(error)
        if "_session" in self.__dict__:
            self._session.release()
        if errors:
            raise errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[str], Cluster], tuple[str]]:
        return _reconnect, (self._session.namespace,)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"at {self.address}, data in {self.data_dir}"
        return f"<raystream cluster {state}>"

    def _repr_html_(self) -> str:
        return f"<p><b>raystream</b> at {self.address}, data in <code>{self.data_dir}</code></p>" + (
            "" if self._closed else self.topics()._repr_html_()
        )

    def _run(self, work: Any) -> Any:
        if self._closed:
            work.close()
            raise Closed("this connection is closed: call connect() again")
        return self._loop.run(work)

    def _topic_metadata(self) -> tuple[Any, ...]:
        reply = self._run(self._routing.metadata())
        return reply.topics or ()

    # Topics ---------------------------------------------------------------------------------------------------------

    def create_topic(
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
        """Creates a topic and returns once it is durable and served.

        Without `schema` the topic is raw: key, value, headers, timestamp. With one (a pyarrow.Schema, or a frame to
        take it from) it is typed; `key` names its key column and `time` its event-time column. `config` takes the
        settings of `raystream.config.TopicConfig`. Raises TopicExists (unless `exist_ok`), InvalidTopicName,
        InvalidConfig, InvalidArgument.
        """
        description: TopicDescription = self._run(
            self._admin.create_topic(
                name,
                partitions=partitions,
                replication_factor=replication_factor,
                schema=schema,
                key=key,
                time=time,
                config=config or {},
                exist_ok=exist_ok,
            )
        )
        return description

    def topics(self) -> Rows[TopicDescription]:
        """Every topic, with what it holds."""
        rows: Rows[TopicDescription] = self._run(self._admin.topics())
        return rows

    def describe_topic(self, name: str) -> TopicDescription:
        """One topic with its partitions. Raises TopicNotFound."""
        description: TopicDescription = self._run(self._admin.describe_topic(name))
        return description

    def alter_topic(
        self, name: str, config: Mapping[str, Any] | None = None, replication_factor: int | None = None
    ) -> TopicDescription:
        """Changes settings (None puts one back to its default), and how many replicas each partition has: new ones
        catch up while the topic is in use. Raises TopicNotFound, InvalidConfig, InvalidArgument."""
        description: TopicDescription = self._run(
            self._admin.alter_topic(name, config or {}, replication_factor=replication_factor)
        )
        return description

    def reassign(self, name: str, replicas: Mapping[int, Sequence[int]]) -> TopicDescription:
        """Begins to move partitions: `{partition: [broker id, …]}`, the preferred leader first. New replicas are filled
        while the topic is in use; then the old ones go. Raises TopicNotFound, PartitionNotFound, InvalidArgument."""
        description: TopicDescription = self._run(self._admin.reassign(name, replicas))
        return description

    def elect_leaders(self, topic: str | None = None, unclean: bool = False) -> None:
        """Gives leads back to the first replica of each partition, of one topic or of all, where that is in sync.

        `unclean` takes any living replica for a partition that has nobody eligible: what that one lacks is lost.
        """
        self._run(self._admin.elect_leaders(topic, unclean=unclean))

    def drain_broker(self, broker_id: int, drain: bool = True) -> None:
        """Moves every replica and lead away from a broker, while topics are in use; `drain=False` takes that back.

        `brokers()` shows when it holds none any more. Raises InvalidArgument where the others cannot take them.
        """
        self._run(self._admin.drain_broker(broker_id, drain=drain))

    def remove_broker(self, broker_id: int) -> None:
        """Forgets a broker that holds nothing any more. Raises InvalidArgument while it does."""
        self._run(self._admin.drain_broker(broker_id, drain=True, remove=True))

    def add_partitions(self, name: str, partitions: int) -> TopicDescription:
        """Raises the number of partitions to `partitions`. Keys may then go to other partitions than before: where the
        topic has a key column, KeysMove is warned of."""
        description: TopicDescription = self._run(self._admin.alter_topic(name, {}, partitions))
        if description.key is not None:
            warnings.warn(
                f"topic {name!r} has the key column {description.key!r}: with {description.partitions} partitions, new "
                "records of a key may go to another partition than its earlier ones",
                KeysMove,
                stacklevel=2,
            )
        return description

    def delete_topic(self, name: str) -> None:
        """Deletes a topic, its records and the groups' positions in it. Raises TopicNotFound."""
        self._run(self._admin.delete_topic(name))

    def delete_records(self, name: str, before: Mapping[int, int]) -> dict[int, int]:
        """Deletes what lies below `{partition: offset}` (-1: everything so far). Returns the new start offsets."""
        starts: dict[int, int] = self._run(self._admin.delete_records(name, before))
        return starts

    # Groups, brokers ------------------------------------------------------------------------------------------------

    def groups(self) -> Rows[GroupDescription]:
        """Every consumer group and share group."""
        rows: Rows[GroupDescription] = self._run(self._admin.groups())
        return rows

    def describe_group(self, group: str) -> GroupDescription:
        """One group: members, where they run, lag per partition. Raises GroupNotFound."""
        description: GroupDescription = self._run(self._admin.describe_group(group))
        return description

    def lag(self, group: str) -> Rows[PartitionLag]:
        """How many records the group is behind, per partition. Raises GroupNotFound.

        Counted to the high watermark, as Kafka's tools do, whatever the members' isolation: records of transactions
        that are open count as well. `consumer.lag()` counts to the last stable offset where it reads what is committed.
        """
        rows: Rows[PartitionLag] = self._run(self._admin.lag(group))
        return rows

    def reset_offsets(
        self, group: str, topic: str, to: Position | None = None, dry_run: bool = False, *, shift: int | None = None
    ) -> Rows[OffsetMove]:
        """Moves the group's positions in a topic. Raises GroupNotEmpty while members run.

        `to` is a position: "earliest", "latest", a datetime, a timedelta ago, or {partition: offset}; one beyond the
        end raises OffsetOutOfRange. Instead `shift` moves each position by so many records, within what there is.
        Returns what was before and what comes after, per partition; with `dry_run` nothing moves.
        """
        rows: Rows[OffsetMove] = self._run(self._admin.reset_offsets(group, topic, to, shift=shift, dry_run=dry_run))
        return rows

    def delete_group(self, group: str) -> None:
        """Forgets a group and its positions. Raises GroupNotFound, GroupNotEmpty."""
        self._run(self._admin.delete_group(group))

    def brokers(self) -> Rows[BrokerDescription]:
        """Every broker."""
        rows: Rows[BrokerDescription] = self._run(self._admin.brokers())
        return rows

    def set_quota(
        self, client_id: str, *, produce_bytes_per_s: int | None = None, fetch_bytes_per_s: int | None = None
    ) -> None:
        """Limits what producers and consumers made with this `client_id` may move on each node, all together.

        They are held back, a second's worth at a time, and lose nothing; what waits in a producer counts against its
        delivery timeout. None is no limit. The client id "" stands for every id without a quota of its own, each for
        itself. Raises InvalidArgument.
        """
        self._run(
            self._admin.set_quota(
                client_id, produce_bytes_per_s=produce_bytes_per_s, fetch_bytes_per_s=fetch_bytes_per_s
            )
        )

    def quotas(self) -> Rows[ClientQuota]:
        """Every quota, by client id."""
        rows: Rows[ClientQuota] = self._run(self._admin.quotas())
        return rows

    def health(self) -> Health:
        """Whether everything is served, and what is not."""
        health: Health = self._run(self._admin.health())
        return health

    # Writing and reading --------------------------------------------------------------------------------------------

    def write(self, topic: str, frame: Any, key: str | None = None, time: str | None = None) -> WriteResult:
        """Writes a frame and waits until it is durable; creates a typed topic from it if there is none.

        `key` and `time` are the new topic's. Raises InvalidArgument where one that exists has others.
        """
        try:
            there = self._run(self._routing.topic(topic))
        except TopicNotFound:
            self.create_topic(topic, schema=frame_schema(frame), key=key, time=time, exist_ok=True)
        else:
            check_columns(there, key=key, time=time)
        with self.producer() as producer:
            result: WriteResult = producer.send_frame(topic, frame).result()
        return result

    def producer(
        self,
        *,
        key_serializer: Callable[[Any], bytes | None] | None = None,
        value_serializer: Callable[[Any], bytes | None] | None = None,
        partitioner: Callable[[str, bytes | None, Any, int], int] | None = None,
        client_id: str = "",
        transactional_id: str | None = None,
        **settings: Any,
    ) -> Producer:
        """A producer. `settings` are those of `raystream.config.ProducerConfig`: acks, linger_ms, compression, …

        With a `transactional_id` it sends inside `with producer.transaction():`. The id is one that stays the same when
        the program is started again: the new producer fences the earlier one and ends what that left open.
        """
        producer = producer_kind(transactional_id)(
            self._routing,
            self._loop,
            build(ProducerConfig, settings),
            key_serializer=key_serializer,
            value_serializer=value_serializer,
            partitioner=partitioner,
            client_id=client_id,
        )
        self._remember(producer)
        return producer

    def read(
        self,
        topic: str,
        start: Position = EARLIEST,
        end: Position = LATEST,
        columns: Sequence[str] | None = None,
        filter: Any = None,
        **options: Any,
    ) -> View:
        """A bounded read of a topic, whose bounds are fixed now. Nothing is read until the view is asked."""
        check_names(options, VIEW_OPTIONS, "read()")
        return View(self._routing, self._loop, topic, start=start, end=end, columns=columns, filter=filter, **options)

    def sql(self, query: str, **options: Any) -> duckdb.DuckDBPyRelation:
        """A query over topics as tables, by DuckDB (the extra `sql`): `cluster.sql("select count(*) from flights")`.

        Every topic that it names is read as `read(topic, **options)` reads it, with bounds fixed now. What is returned
        has `df()`, `pl()`, `to_arrow_table()`. Names with other signs than letters, digits and `_` stand in double
        quotes. Raises TopicNotFound, and InvalidArgument for what is no single SELECT.
        """
        return sql.query(query, lambda topic: self.read(topic, **options))

    def table(
        self,
        topic: str,
        *,
        key_deserializer: Callable[[bytes], Any] | None = None,
        value_deserializer: Callable[[bytes], Any] | None = None,
        **settings: Any,
    ) -> Table:
        """A topic's latest value per key as a live mapping, read from the beginning in the background.

        `settings` are those of `raystream.config.ConsumerConfig`. Raises TopicNotFound, and InvalidArgument for a typed
        topic without a key column.
        """
        table = Table(
            self._routing,
            self._loop,
            topic,
            build(ConsumerConfig, settings),
            key_deserializer=key_deserializer,
            value_deserializer=value_deserializer,
        )
        self._tables.add(table)
        return table

    def run_consumers(
        self,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None = None,
        each_batch: Callable[[Any], Any] | None = None,
        each_record: Callable[[Any], Any] | None = None,
        workers: int = 1,
        name: str | None = None,
        num_cpus: float = 0,
        *,
        share: str | None = None,
        start: Position = LATEST,
        consumer_options: Mapping[str, Any] | None = None,
        run_options: Mapping[str, Any] | None = None,
        **ray_remote_args: Any,
    ) -> ConsumerJob:
        """Runs a consumer's loop as `workers` Ray tasks. Raises PlacementFailed when Ray has no room within 10 s.

        The workers are members of `group`, or of the share group `share`: then any of them takes any record, and what a
        handler raises on is delivered again. `start` and `consumer_options` are as for `consumer`, `run_options`
        (on_error, retries, dead_letter) as for `Consumer.run`, or as for `ShareConsumer.run`; everything else goes to
        `ray.remote`.
        """
        return ConsumerJob.start(
            self,
            topics,
            group,
            share=share,
            each_batch=each_batch,
            each_record=each_record,
            workers=workers,
            name=name,
            num_cpus=num_cpus,
            ray_remote_args=ray_remote_args,
            consumer_options={"start": start, **(consumer_options or {})},
            run_options=run_options,
        )

    def pipeline(
        self, source: str | Sequence[str], transform: Callable[[Any], Any], sink: str, *, group: str, **options: Any
    ) -> Pipeline:
        """Consume, transform, produce: `transform(batch)` returns what goes to `sink`. Unless `exactly_once=False`
        every batch is a transaction with its position. `.run()` works here, `.start(workers=…)` as Ray tasks. `options`
        are those of `raystream.pipelines.Pipeline`."""
        return Pipeline(self, source, transform, sink, group=group, **options)

    def _send_dead_letter(
        self, topic: str, value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        """Waits until the record is durable: the consumer commits past it only then."""
        with self.producer(linger_ms=0) as producer:
            producer.send(topic, value, key=key, headers=headers).result(DEAD_LETTER_WAIT_S)

    def _remember(self, producer: Producer) -> None:
        self._producers = [other for other in self._producers if not other.closed]
        self._producers.append(producer)


def _reconnect(namespace: str) -> Cluster:
    """The cluster of the Ray that this process is in; unpickling a Cluster in a task or actor comes here."""
    return Cluster(lambda: open_session(None, None, namespace))
