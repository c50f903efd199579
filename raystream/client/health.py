"""What a cluster's metadata says is not in order, a sentence for each thing. Asks nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from raystream import messages as m
from raystream.config import MIB, MIN_FREE_BYTES
from raystream.types import Health

FREE_SLACK_BYTES: Final = 4 * MIB
"""A batch is refused that would go below the reserve: so close to it, the next may be."""


def health(reply: m.MetadataReply) -> Health:
    """The cluster's health by metadata of all topics, internal ones among them."""
    topics = reply.topics or ()
    offline = [f"partition {t.name}-{p.partition} {_offline(p)}" for t in topics for p in t.partitions if not p.actor]
    problems = [*offline, *_of_brokers(reply), *(sentence for topic in topics for sentence in _short(topic))]
    users = [topic for topic in topics if not topic.name.startswith("__")]
    return Health(
        ok=not problems,
        brokers=len(reply.brokers),
        topics=len(users),
        partitions=sum(len(topic.partitions) for topic in users),
        offline_partitions=len(offline),
        problems=tuple(problems),
    )


def min_insync_replicas(topic: m.TopicMetadata, partition: m.PartitionMetadata) -> int:
    """How many replicas must be in sync for acks="all", by the rule that leaders are held to."""
    default = 2 if topic.replication_factor >= 3 else 1
    return min(int(topic.config.get("min_insync_replicas") or default), len(partition.replicas))


def _offline(partition: m.PartitionMetadata) -> str:
    if partition.leader < 0:
        eligible = f" (in sync: {_listed(partition.isr)})" if partition.isr else ""
        return f"has no leader: none of its replicas on brokers {_listed(partition.replicas)} may lead now{eligible}"
    return f"is offline: {partition.error or 'its actor is starting'}"


def has_controller(reply: m.MetadataReply) -> bool:
    """Whether the broker that answered knows one: without it nobody notices who is gone."""
    return any(broker.controller for broker in reply.brokers)


def _of_brokers(reply: m.MetadataReply) -> Iterator[str]:
    if not has_controller(reply):
        yield (
            "the brokers have no controller: fewer than a majority of the voters are up. Nothing in the metadata can "
            "change, and what it says of leaders and replicas may be old"
        )
    for broker in reply.brokers:
        if broker.fenced:
            yield f"broker {broker.broker_id} ({broker.node}) is not heard"
        elif 0 <= broker.free_bytes < MIN_FREE_BYTES + FREE_SLACK_BYTES:
            yield (
                f"broker {broker.broker_id} ({broker.node}): the disk of {broker.data_dir} has "
                f"{broker.free_bytes / MIB:,.1f} MiB free, and {MIN_FREE_BYTES / MIB:.0f} MiB are kept for "
                "metadata and deletions: writes to its partitions are refused until there is room"
            )
    if not any(broker.coordinator for broker in reply.brokers):
        yield "the group coordinator is starting"


def _short(topic: m.TopicMetadata) -> Iterator[str]:
    """Partitions that are served with fewer replicas in sync than they have, and those that take no acks="all"."""
    for p in topic.partitions:
        if not p.actor:
            continue
        what = f"partition {topic.name}-{p.partition} has {len(p.isr)} of {len(p.replicas)} replicas in sync"
        wanted = min_insync_replicas(topic, p)
        if len(p.isr) < wanted:
            yield f'{what}, fewer than min_insync_replicas={wanted}: acks="all" waits'
        elif len(p.isr) < len(p.replicas):
            yield what


def _listed(brokers: tuple[int, ...]) -> str:
    return ", ".join(map(str, brokers))
