"""What an administrator asks: topics, groups, brokers, health. Coroutines over `Routing`; knows no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from raystream import messages as m
from raystream.client import resetting
from raystream.client.describing import Statuses, describe_groups, statuses
from raystream.client.health import has_controller, health
from raystream.client.routing import Leader, Routing
from raystream.config import nearest
from raystream.errors import (
    InvalidArgument,
    InvalidRecord,
    PartitionNotFound,
    TopicNotFound,
)
from raystream.schema import stored_schema
from raystream.types import (
    BrokerDescription,
    ClientQuota,
    GroupDescription,
    Health,
    OffsetMove,
    PartitionDescription,
    PartitionLag,
    Rows,
    TopicDescription,
)

CHANGE_TIMEOUT_MS: Final = 60_000.0
_KEY_TYPES: Final = "string, binary or integer"


class Admin:
    """One client's administrator. Used on one event loop only."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    # Topics ---------------------------------------------------------------------------------------------------------

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int,
        replication_factor: int | None,
        schema: Any,
        key: str | None,
        time: str | None,
        config: Mapping[str, Any],
        exist_ok: bool,
    ) -> TopicDescription:
        """Creates a topic and waits until it is served. See `Cluster.create_topic`."""
        request = m.CreateTopicRequest(
            name=name,
            partitions=_integer("partitions", partitions),
            replication_factor=None
            if replication_factor is None
            else _integer("replication_factor", replication_factor),
            schema=_serialized(schema, key, time),
            key=key,
            time=time,
            config=dict(config),
            exist_ok=exist_ok,
        )
        topic = await self._routing.call_controller(
            lambda port, left: port.create_topic(request, timeout_ms=max(left, CHANGE_TIMEOUT_MS)),
            timeout_ms=CHANGE_TIMEOUT_MS,
        )
        self._routing.forget(name)
        return await self._describe(topic)

    async def topics(self) -> Rows[TopicDescription]:
        """Every topic that is not internal."""
        reply = await self._routing.metadata()
        topics = reply.topics or ()
        held = await statuses(self._routing, topics)
        return Rows(_topic(topic, held) for topic in topics)

    async def describe_topic(self, name: str) -> TopicDescription:
        """One topic with its partitions. Raises TopicNotFound."""
        self._routing.forget(name)
        try:
            found = await self._routing.topic(name)
        except TopicNotFound:
            names = [topic.name for topic in (await self._routing.metadata()).topics or ()]
            hint = nearest(name, names)
            raise TopicNotFound(f"there is no topic {name!r}" + (f"; {hint}" if hint else "")) from None
        return await self._describe(found)

    async def alter_topic(
        self,
        name: str,
        config: Mapping[str, Any],
        partitions: int | None = None,
        replication_factor: int | None = None,
    ) -> TopicDescription:
        """Changes settings (None: back to the default), raises the number of partitions, or changes how many replicas
        each has."""
        request = m.AlterTopicRequest(
            name=name,
            config=dict(config),
            partitions=partitions,
            replication_factor=None
            if replication_factor is None
            else _integer("replication_factor", replication_factor),
        )
        topic = await self._routing.call_controller(
            lambda port, left: port.alter_topic(request, timeout_ms=max(left, CHANGE_TIMEOUT_MS)),
            timeout_ms=CHANGE_TIMEOUT_MS,
        )
        self._routing.forget(name)
        return await self._describe(topic)

    async def reassign(self, name: str, replicas: Mapping[int, Sequence[int]]) -> TopicDescription:
        """Begins to move partitions to other brokers. See `Cluster.reassign`."""
        placed = _placement(replicas)
        self._routing.forget(name)
        there = len((await self._routing.topic(name)).partitions)
        unknown = [partition for partition, _ in placed if partition >= there]
        if unknown:
            raise PartitionNotFound(f"topic {name!r} has partitions 0 to {there - 1}, not {unknown[0]}")
        request = m.ReassignRequest(topic=name, replicas=placed)
        topic = await self._routing.call_controller(
            lambda port, left: port.reassign(request, timeout_ms=max(left, CHANGE_TIMEOUT_MS)),
            timeout_ms=CHANGE_TIMEOUT_MS,
        )
        self._routing.forget(name)
        return await self._describe(topic)

    async def elect_leaders(self, topic: str | None, *, unclean: bool) -> None:
        """Gives leads back to preferred replicas. See `Cluster.elect_leaders`."""
        if topic is not None and not isinstance(topic, str):
            raise InvalidArgument(f"topic must be a topic's name, or None for all of them, not {topic!r}")
        if not isinstance(unclean, bool):
            raise InvalidArgument(f"unclean must be True or False, not {unclean!r}: it may lose records")
        request = m.ElectLeadersRequest(topic=topic, unclean=unclean)
        await self._routing.call_controller(
            lambda port, left: port.elect_leaders(request, timeout_ms=left), timeout_ms=CHANGE_TIMEOUT_MS
        )
        if topic is not None:  # of other topics, whoever led says that it does not any more
            self._routing.forget(topic)

    async def drain_broker(self, broker_id: int, *, drain: bool, remove: bool = False) -> None:
        """Moves everything away from a broker, or forgets a drained one. See `Cluster.drain_broker`."""
        request = m.DrainBrokerRequest(broker_id=_number("broker_id", broker_id), drain=drain, remove=remove)
        await self._routing.call_controller(
            lambda port, left: port.drain_broker(request, timeout_ms=left), timeout_ms=CHANGE_TIMEOUT_MS
        )

    async def delete_topic(self, name: str) -> None:
        """Deletes a topic with its records and its groups' positions in it. Raises TopicNotFound."""
        request = m.DeleteTopicRequest(name=name)
        await self._routing.call_controller(
            lambda port, left: port.delete_topic(request, timeout_ms=max(left, CHANGE_TIMEOUT_MS)),
            timeout_ms=CHANGE_TIMEOUT_MS,
        )
        self._routing.forget(name)

    async def delete_records(self, name: str, before: Mapping[int, int]) -> dict[int, int]:
        """Deletes what lies below an offset per partition (-1: everything). Answers the new start offsets."""

        async def one(partition: int, offset: int) -> int:
            async def call(leader: Leader, left_ms: float) -> m.OffsetReply:
                request = m.DeleteRecordsRequest(
                    topic_id=leader.topic_id, partition=partition, before_offset=_integer("offset", offset)
                )
                return await leader.port.delete_records(request, timeout_ms=left_ms)

            return (await self._routing.call_partition(name, partition, call)).offset

        starts = await asyncio.gather(*(one(partition, offset) for partition, offset in before.items()))
        return dict(zip(before, starts, strict=True))

    async def _describe(self, topic: m.TopicMetadata) -> TopicDescription:
        return _topic(topic, await statuses(self._routing, [topic]))

    # Groups ---------------------------------------------------------------------------------------------------------

    async def groups(self) -> Rows[GroupDescription]:
        """Every consumer group and share group."""
        infos = await self._routing.call_coordinator(
            lambda port, left: port.list_groups(m.GroupRequest(), timeout_ms=left)
        )
        return await describe_groups(self._routing, infos)

    async def describe_group(self, group: str) -> GroupDescription:
        """One group with its members and its lag per partition. Raises GroupNotFound."""
        info = await self._routing.call_coordinator(
            lambda port, left: port.describe_group(m.GroupRequest(group=group), timeout_ms=left)
        )
        (described,) = await describe_groups(self._routing, [info])
        return described

    async def lag(self, group: str) -> Rows[PartitionLag]:
        """How far the group is behind, per partition. Raises GroupNotFound."""
        return (await self.describe_group(group)).partition_list

    async def reset_offsets(
        self, group: str, topic: str, to: Any, *, shift: int | None, dry_run: bool
    ) -> Rows[OffsetMove]:
        """Moves the group's positions. Raises GroupNotEmpty while it has members. See `Cluster.reset_offsets`."""
        return await resetting.reset_offsets(self._routing, group, topic, to, shift=shift, dry_run=dry_run)

    async def delete_group(self, group: str) -> None:
        """Forgets a group and its positions. Raises GroupNotEmpty, GroupNotFound."""
        await self._routing.call_coordinator(
            lambda port, left: port.delete_group(m.GroupRequest(group=group), timeout_ms=left)
        )

    # Brokers --------------------------------------------------------------------------------------------------------

    async def brokers(self) -> Rows[BrokerDescription]:
        """Every broker."""
        reply = await self._routing.metadata(())
        return Rows(
            BrokerDescription(
                broker_id=broker.broker_id,
                node=broker.node,
                state=_state(broker, heard=has_controller(reply)),
                partitions=broker.replicas,
                data_dir=broker.data_dir,
                free_bytes=broker.free_bytes if broker.free_bytes >= 0 else None,
                pid=broker.pid,
                controller=broker.controller,
                rack=broker.rack,
            )
            for broker in reply.brokers
        )

    async def set_quota(
        self, client_id: str, *, produce_bytes_per_s: int | None, fetch_bytes_per_s: int | None
    ) -> None:
        """Limits what clients of one id may move. See `Cluster.set_quota`."""
        request = m.ClientQuota(
            client_id=client_id, produce_bytes_per_s=produce_bytes_per_s, fetch_bytes_per_s=fetch_bytes_per_s
        )
        await self._routing.call_controller(
            lambda port, left: port.set_quota(request, timeout_ms=left), timeout_ms=CHANGE_TIMEOUT_MS
        )

    async def quotas(self) -> Rows[ClientQuota]:
        """Every quota, by client id."""
        reply = await self._routing.metadata(())
        return Rows(ClientQuota(q.client_id, q.produce_bytes_per_s, q.fetch_bytes_per_s) for q in reply.quotas)

    async def health(self) -> Health:
        """Whether every partition is served with all its replicas in sync, every broker is heard and there is a
        coordinator, with a sentence for what is not."""
        return health(await self._routing.metadata(internal=True))


def _topic(topic: m.TopicMetadata, held: Statuses) -> TopicDescription:
    known = [held.get((topic.topic_id, p.partition)) for p in topic.partitions]
    rows = Rows(_partition(topic, p, status) for p, status in zip(topic.partitions, known, strict=True))
    return TopicDescription(
        name=topic.name,
        kind="typed" if topic.typed else "raw",
        partitions=len(topic.partitions),
        replication_factor=topic.replication_factor,
        records=_sum(None if s is None else s.end_offset - s.start_offset for s in known),
        size_bytes=_sum(None if s is None else s.size_bytes for s in known),
        key=topic.key,
        time=topic.time,
        id=topic.topic_id,
        schema=pa.ipc.read_schema(pa.py_buffer(topic.schemas[-1])) if topic.typed else None,
        config=dict(topic.config),
        partition_list=rows,
    )


def _partition(topic: m.TopicMetadata, p: m.PartitionMetadata, status: m.ReplicaStatus | None) -> PartitionDescription:
    return PartitionDescription(
        topic=topic.name,
        partition=p.partition,
        leader=p.leader if p.actor else None,
        leader_epoch=p.leader_epoch,
        replicas=p.replicas,
        isr=p.isr,
        start_offset=None if status is None else status.start_offset,
        end_offset=None if status is None else status.end_offset,
        size_bytes=None if status is None else status.size_bytes,
        segments=None if status is None else status.segments,
    )


def _sum(values: Iterable[int | None]) -> int | None:
    """None where one is not known."""
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def _state(broker: m.BrokerMetadata, *, heard: bool) -> str:
    if not heard:
        return "not known"
    if broker.fenced:
        return "not heard"
    return "draining" if broker.draining else "running"


def _placement(replicas: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Checked as far as it can be without the topic. Raises InvalidArgument."""
    if not isinstance(replicas, Mapping) or not replicas:
        raise InvalidArgument(f"give {{partition: [broker id, …]}}, the preferred leader first, not {replicas!r}")
    placed: dict[int, tuple[int, ...]] = {}
    for given, brokers in replicas.items():
        partition = _number("partition", given)
        if isinstance(brokers, (str, bytes)) or not isinstance(brokers, Iterable):
            raise InvalidArgument(f"partition {partition}: give a list of broker ids, not {brokers!r}")
        chosen = tuple(_number(f"partition {partition}: a broker id", broker) for broker in brokers)
        if not chosen or len(set(chosen)) != len(chosen):
            raise InvalidArgument(f"partition {partition}: give one broker or more, each once, not {list(chosen)}")
        placed[partition] = chosen
    return tuple(placed.items())


def check_columns(topic: m.TopicMetadata, *, key: str | None, time: str | None) -> None:
    """Raises InvalidArgument where a key or time column is asked for that the topic does not have as such."""
    for what, asked, has in (("key", key, topic.key), ("time", time, topic.time)):
        if asked is None or asked == has:
            continue
        if not topic.typed:
            raise InvalidArgument(
                f"topic {topic.name!r} exists and is raw: {what}={asked!r} is for typed ones; a raw one takes columns "
                "named value, key, headers and timestamp"
            )
        state = f"the {what} column {has!r}" if has is not None else f"no {what} column"
        raise InvalidArgument(
            f"topic {topic.name!r} exists and has {state}, not {asked!r}, and that is for good: leave {what}= out, or "
            "write to another topic"
        )


def arrow_schema(source: Any) -> pa.Schema:
    """The Arrow schema of a schema, a frame, or anything with `__arrow_c_schema__` or `__arrow_c_stream__`."""
    if isinstance(source, pa.Schema):
        return source
    schema = getattr(source, "schema", None)
    if isinstance(schema, pa.Schema):
        return schema
    try:
        if hasattr(source, "__arrow_c_schema__"):
            return pa.schema(source)
        if hasattr(source, "__arrow_c_stream__"):
            return pa.RecordBatchReader.from_stream(source).schema
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidRecord(f"Arrow cannot take a schema from this {type(source).__name__}: {error}") from None
    raise InvalidArgument(f"schema must be a pyarrow.Schema or a frame to take it from, not {type(source).__name__}")


def _serialized(source: Any, key: str | None, time: str | None) -> bytes | None:
    if source is None:
        if key is not None or time is not None:
            raise InvalidArgument("key= and time= name columns of a typed topic: give its schema= as well")
        return None
    schema = stored_schema(arrow_schema(source))
    if key is not None:
        kind = _column(schema, key, "key").type
        if not (pa.types.is_integer(kind) or _is_bytes(kind)):
            raise InvalidArgument(f"the key column {key!r} is {kind}; a key is {_KEY_TYPES}")
    if time is not None:
        kind = _column(schema, time, "time").type
        if not (pa.types.is_timestamp(kind) or kind == pa.int64()):
            raise InvalidArgument(f"the time column {time!r} is {kind}; it must be a timestamp, or int64 milliseconds")
    data: bytes = schema.serialize().to_pybytes()
    return data


def _is_bytes(kind: pa.DataType) -> bool:
    checks: Sequence[Any] = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
    )
    return any(check(kind) for check in checks)


def _column(schema: pa.Schema, name: str, role: str) -> pa.Field:
    if name not in schema.names:
        raise InvalidArgument(f"{role}={name!r} is not a column of the schema: {', '.join(schema.names)}")
    return schema.field(name)


def _number(name: str, value: Any) -> int:
    number = _integer(name, value)
    if number < 0:
        raise InvalidArgument(f"{name} must be 0 or above, not {number}")
    return number


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidArgument(f"{name} must be an integer, not {value!r}")
    return int(value)
