"""The one vocabulary for places in a log, used by `start`, `end`, `seek` and `reset_offsets`.

`parse` turns what the user wrote into a frozen `Place`; relative words are fixed to an instant there. `resolve` turns
a place into offsets by asking the partitions' leaders. This file knows no consumer and no view.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raystream import messages as m
from raystream.client.routing import CALL_TIMEOUT_MS, Leader, Routing
from raystream.errors import InvalidArgument, PartitionNotFound
from raystream.types import EARLIEST, LATEST, TopicPartition

Offsets = dict[TopicPartition, int]
_WORDS: Final = (EARLIEST, LATEST)


@dataclass(frozen=True, slots=True)
class Place:
    """A parsed position: exactly one of `word`, `timestamp_ms` and `offsets` is set."""

    word: str | None = None
    timestamp_ms: int | None = None
    offsets: Mapping[TopicPartition, int] | None = None
    text: str = ""

    def __str__(self) -> str:
        return self.text


def parse(position: Any, topics: Sequence[str], *, now_ms: int, what: str = "start") -> Place:
    """Checks a position. Raises InvalidArgument with a sentence that says what would be right."""
    if isinstance(position, str):
        return _word(position, what)
    if isinstance(position, dt.datetime):
        return Place(timestamp_ms=instant_ms(position), text=position.isoformat())
    if isinstance(position, dt.timedelta):
        if position < dt.timedelta(0):
            raise InvalidArgument(f"{what}={position!r} lies in the future: a timedelta means that long ago")
        return Place(timestamp_ms=now_ms - round(position.total_seconds() * 1000), text=f"{position} ago")
    if isinstance(position, Mapping):
        return Place(offsets=_named(position, topics, what), text=repr(position))
    raise InvalidArgument(
        f"{what}={position!r} is no position: give 'earliest', 'latest', a datetime, a timedelta, "
        "{partition: offset} or {topic: {partition: offset}}"
    )


def instant_ms(instant: dt.datetime) -> int:
    """Milliseconds since the epoch; a naive datetime is UTC."""
    aware = instant if instant.tzinfo is not None else instant.replace(tzinfo=dt.UTC)
    return (aware - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def _word(position: str, what: str) -> Place:
    if position in _WORDS:
        return Place(word=position, text=position)
    near = difflib.get_close_matches(position.lower(), _WORDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "the words are 'earliest' and 'latest'"
    raise InvalidArgument(f"{what}={position!r} is no position; {hint}")


def _named(position: Mapping[Any, Any], topics: Sequence[str], what: str) -> Offsets:
    nested = [key for key in position if isinstance(key, str)]
    if nested and len(nested) != len(position):
        raise InvalidArgument(f"{what} mixes topics and partitions: give {{topic: {{partition: offset}}}}")
    if nested:
        for name in nested:
            if topics and name not in topics:
                raise InvalidArgument(f"{what} names topic {name!r}, which is not among {', '.join(topics)}")
            if not isinstance(position[name], Mapping):
                raise InvalidArgument(f"{what}[{name!r}] must be {{partition: offset}}, not {position[name]!r}")
        return {
            TopicPartition(name, _integer(p, what, "partition")): _integer(o, what, "offset")
            for name in nested
            for p, o in position[name].items()
        }
    if position and len(topics) != 1:
        raise InvalidArgument(f"{what} must name the topic too: {{topic: {{partition: offset}}}}")
    return {
        TopicPartition(topics[0], _integer(p, what, "partition")): _integer(o, what, "offset")
        for p, o in position.items()
    }


def _integer(value: Any, what: str, kind: str) -> int:
    number = value.__index__() if hasattr(value, "__index__") and not isinstance(value, bool) else None
    if number is None or not 0 <= number < 2**63:
        raise InvalidArgument(f"{what} holds {kind} {value!r}: {kind}s are integers from 0 on")
    return int(number)


async def partitions_of(routing: Routing, topic: str) -> list[TopicPartition]:
    """Every partition of the topic, in order. Raises TopicNotFound."""
    metadata = await routing.topic(topic)
    return [TopicPartition(topic, p.partition) for p in metadata.partitions]


async def resolve(
    routing: Routing,
    place: Place,
    partitions: Iterable[TopicPartition],
    *,
    unnamed: str = EARLIEST,
    committed: bool = False,
    timeout_ms: float = CALL_TIMEOUT_MS,
) -> Offsets:
    """The offset of `place` in each of `partitions`, asked for at once from all leaders.

    An instant after the last record is the end, which is the last stable offset where only what is `committed` is read.
    Partitions that a mapping leaves out get the place `unnamed`.
    Raises PartitionNotFound for a mapping that names a partition its topic lacks.
    """
    wanted = list(partitions)
    named = place.offsets or {}
    for topic in {partition.topic for partition in named}:
        count = len((await routing.topic(topic, timeout_ms=timeout_ms)).partitions)
        beyond = [p.partition for p in named if p.topic == topic and p.partition >= count]
        if beyond:
            raise PartitionNotFound(f"topic {topic!r} has partitions 0 to {count - 1}, not {beyond[0]}")

    async def one(partition: TopicPartition) -> int:
        if place.offsets is None:
            return await _ask(routing, partition, _timestamp(place), committed, timeout_ms)
        if partition in named:
            return named[partition]
        return await _ask(routing, partition, _timestamp(Place(word=unnamed)), committed, timeout_ms)

    return dict(zip(wanted, await asyncio.gather(*map(one, wanted)), strict=True))


def _timestamp(place: Place) -> int:
    if place.timestamp_ms is not None:
        return max(place.timestamp_ms, 0)
    return m.EARLIEST_TIMESTAMP if place.word == EARLIEST else m.LATEST_TIMESTAMP


async def compacted(routing: Routing, partitions: Iterable[TopicPartition]) -> set[TopicPartition]:
    """The partitions that may hold less records than offsets."""
    wanted = list(partitions)
    asked = [_offset(routing, partition, m.EARLIEST_TIMESTAMP, False, CALL_TIMEOUT_MS) for partition in wanted]
    replies = await asyncio.gather(*asked)
    return {partition for partition, reply in zip(wanted, replies, strict=True) if reply.compacted}


async def _ask(
    routing: Routing, partition: TopicPartition, timestamp_ms: int, committed: bool, timeout_ms: float
) -> int:
    reply = await _offset(routing, partition, timestamp_ms, committed, timeout_ms)
    if reply.offset < 0:  # nothing at or after that instant
        return await _ask(routing, partition, m.LATEST_TIMESTAMP, committed, timeout_ms)
    return reply.offset


async def _offset(
    routing: Routing, partition: TopicPartition, timestamp_ms: int, committed: bool, timeout_ms: float
) -> m.OffsetReply:
    async def call(leader: Leader, left_ms: float) -> m.OffsetReply:
        request = m.ListOffsetsRequest(
            topic_id=leader.topic_id,
            partition=partition.partition,
            timestamp_ms=timestamp_ms,
            leader_epoch=leader.epoch,
            committed=committed,
        )
        return await leader.port.list_offsets(request, timeout_ms=left_ms)

    return await routing.call_partition(partition.topic, partition.partition, call, timeout_ms=timeout_ms)


def by_topic(offsets: Mapping[TopicPartition, int]) -> dict[str, dict[int, int]]:
    """Offsets in the form that `start` and `seek` take back: {topic: {partition: offset}}."""
    nested: dict[str, dict[int, int]] = {}
    for (topic, partition), offset in sorted(offsets.items()):
        nested.setdefault(topic, {})[partition] = offset
    return nested
