"""The controller's decisions: what records a request leads to, or why it is refused. Nothing here changes the image.

A decision's records are to be on the metadata log, and replayed, before the next is made and before anybody learns of
it. Most return just the records; where there is an answer too, a `Decision`. Those that raise change nothing.

Guarantees: a broker id is given to one disk only, ever; who speaks for an earlier life of a broker is refused: Fenced.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Final

from raystream import config as settings
from raystream.config import MAX_PARTITIONS, TopicConfig
from raystream.core import arguments, balance, quotas, topic_names
from raystream.core.draft import Draft, forgetting
from raystream.core.elections import Elections
from raystream.core.metadata import (
    BrokerRecord,
    ClusterRecord,
    MetadataImage,
    PartitionRecord,
    ReplicaRecord,
    TopicRecord,
)
from raystream.core.placement import loads, place
from raystream.core.records import Decision, Record, Removed, removed
from raystream.core.replication import IsrChange
from raystream.errors import (
    Fenced,
    InvalidArgument,
    InvalidConfig,
    InvalidTopicName,
    NotEnoughBrokers,
    NotFound,
    TopicExists,
    Unavailable,
)
from raystream.messages import (
    CORRUPT_LOG,
    LET_GO,
    LOST_LOG,
    AlterIsrRequest,
    AlterTopicRequest,
    BrokerHeartbeatRequest,
    ClientQuota,
    CreateTopicRequest,
    DeleteTopicRequest,
    DrainBrokerRequest,
    ElectLeadersRequest,
    ReassignRequest,
    RegisterBrokerReply,
    RegisterBrokerRequest,
    ReplicasChangedRequest,
)

Records = list[Record | Removed]
DEFAULT_REPLICATION_FACTOR: Final = 3
MAX_PARTITIONS_PER_CLUSTER: Final = 100_000


def was_removed(broker: BrokerRecord) -> bool:
    """Whether the record only keeps a removed broker's id from being given again. No disk is behind it."""
    return not broker.directory_id and broker.fenced and broker.draining


class Controller:
    """Decides over one image."""

    def __init__(self, image: MetadataImage) -> None:
        self._image = image
        self._elections = Elections(image)

    def format(self, cluster_id: str) -> Records:
        """An empty log becomes a cluster's."""
        return [] if self._image.cluster_id else [ClusterRecord(cluster_id)]

    # Brokers --------------------------------------------------------------------------------------------------------

    def register_broker(self, request: RegisterBrokerRequest) -> Decision:
        """A broker that starts, for the first time or again: a new incarnation, fenced until it is heard of.

        The reply is a RegisterBrokerReply. Raises InvalidArgument for a disk that is not what it says, or of another
        cluster, and Unavailable where no cluster has been founded.
        """
        broker_id = self._broker_id(request)
        records = self._elections.broker_registered(broker_id, clean=request.clean)
        record = records[0]
        assert isinstance(record, BrokerRecord)
        record = dataclasses.replace(
            record,
            actor=request.actor,
            directory_id=request.directory_id,
            node_id=request.node_id,
            node=request.node,
            rack=request.rack,
            data_dir=request.data_dir,
            pid=request.pid,
        )
        spare = [b for b in self._image.brokers.values() if was_removed(b) and b.broker_id < broker_id]
        reply = RegisterBrokerReply(
            cluster_id=self._image.cluster_id, broker_id=broker_id, incarnation=record.incarnation
        )
        return Decision((record, *records[1:], *map(removed, spare)), reply)

    def _broker_id(self, request: RegisterBrokerRequest) -> int:
        """Who the broker is: whose disk it has. Ids are never given twice."""
        ours, disk = self._image.cluster_id, f"{request.data_dir} (directory id {request.directory_id})"
        if not ours:
            raise Unavailable("no cluster has been founded here yet: try again")
        if not request.directory_id:
            raise InvalidArgument(f"the broker of {request.data_dir} does not say which disk it has")
        if request.cluster_id not in (None, ours):
            raise InvalidArgument(
                f"{request.data_dir} belongs to cluster {request.cluster_id}, and this is cluster {ours}: start the "
                "broker with another data directory, or move that one away"
            )
        known = {broker.directory_id: broker.broker_id for broker in self._image.brokers.values()}
        asked = request.broker_id
        if asked is None:  # a new disk, or one that was given an id and had not written it down
            return known.get(request.directory_id, max(self._image.brokers, default=-1) + 1)
        holder = self._image.brokers.get(asked)
        if holder is None and not self._image.brokers and asked >= 0:
            return asked  # the founder
        if holder is None or was_removed(holder):
            raise InvalidArgument(
                f"broker {asked} was removed from cluster {ours}: to let the node join again as a new broker, move "
                f"{disk} away, or start it with another data directory"
            )
        if holder.directory_id != request.directory_id:
            raise InvalidArgument(
                f"broker {asked} is another disk's: {holder.data_dir} on {holder.node} (directory id "
                f"{holder.directory_id}), not {disk}; start the broker with an empty data directory and it gets an id "
                "of its own"
            )
        return asked

    def broker_heard(self, request: BrokerHeartbeatRequest) -> Records:
        """A broker that lives: from now on it can be in ISRs and lead. Raises Fenced for an earlier life."""
        known = self._speaker(request.broker_id, request.incarnation)
        records = self._elections.broker_unfenced(known.broker_id, known.incarnation)
        if known.coordinator != request.coordinator:
            now = records[0] if records else known
            assert isinstance(now, BrokerRecord)
            records = [dataclasses.replace(now, coordinator=request.coordinator), *records[1:]]
        return records

    def fence(self, broker_id: int) -> Records:
        """A broker that has not been heard for too long leads nothing and is in no ISR until it is heard again."""
        known = self._image.brokers.get(broker_id)
        return [] if known is None else self._elections.broker_fenced(broker_id, known.incarnation)

    def drain_broker(self, request: DrainBrokerRequest) -> Records:
        """A broker gets no new replicas, and `upkeep` moves away those it has; or that is taken back; or it is removed.

        Raises NotFound, and InvalidArgument where its replicas would have no place, or, for a removal, while it has
        any.
        """
        broker_id = request.broker_id
        known = self._image.brokers.get(broker_id)
        if known is None or was_removed(known):
            if request.remove and 0 <= broker_id <= max(self._image.brokers, default=-1):
                return []  # it was removed before
            there = sorted(b.broker_id for b in self._image.brokers.values() if not was_removed(b))
            raise NotFound(f"there is no broker {broker_id}; there are: {', '.join(map(str, there)) or 'none'}")
        if request.remove:
            return self._remove(known)
        if known.draining == request.drain:
            return []
        if request.drain:
            self._check_others_can_take(broker_id)
        return [dataclasses.replace(known, draining=request.drain)]

    def _check_others_can_take(self, broker_id: int) -> None:
        staying = [b for b in self._image.brokers.values() if not b.draining and b.broker_id != broker_id]
        if not staying:
            raise InvalidArgument(f"no broker would be left to take what broker {broker_id} holds: add one first")
        for topic, replicas in balance.brokers_needed(self._image, broker_id):
            if replicas > len(staying):
                raise InvalidArgument(
                    f"topic {topic!r} keeps {replicas} replicas, and {len(staying)} brokers would be left without "
                    f"broker {broker_id}: add one, or lower the topic's replication_factor first"
                )

    def _remove(self, known: BrokerRecord) -> Records:
        broker_id = known.broker_id
        holding = sum(broker_id in record.replicas for record in balance.all_partitions(self._image))
        if holding:
            raise InvalidArgument(
                f"broker {broker_id} holds replicas of {holding:,} partitions: drain it, and remove it when it is empty"
            )
        if len(self._image.brokers) == 1:
            raise InvalidArgument(f"broker {broker_id} is the only one: a cluster cannot be without")
        if broker_id < max(self._image.brokers):
            return [removed(known)]
        # Its id would be the next to be given: this keeps it taken until a later one is.
        return [BrokerRecord(broker_id, known.incarnation + 1, fenced=True, draining=True)]

    def _speaker(self, broker_id: int, incarnation: int) -> BrokerRecord:
        known = self._image.brokers.get(broker_id)
        if known is None or known.incarnation != incarnation or was_removed(known):
            now = "unknown" if known is None or was_removed(known) else f"at incarnation {known.incarnation}"
            raise Fenced(f"broker {broker_id} is {now}, and speaks with {incarnation}: it has to register again")
        return known

    def set_quota(self, request: ClientQuota) -> Records:
        """What clients of one id may move. Raises InvalidArgument."""
        return quotas.decide(self._image.quotas, request)

    # Topics ---------------------------------------------------------------------------------------------------------

    def create_topic(
        self, request: CreateTopicRequest, *, topic_id: str, raw_schema: bytes, internal: bool = False
    ) -> Records:
        """A new topic with its partitions. Raises InvalidTopicName, InvalidConfig, InvalidArgument, TopicExists, and
        NotEnoughBrokers where as many are registered, but not heard now.

        With `exist_ok` an existing topic of the same kind gives no records; one of the other kind is TopicExists.
        """
        if not internal:
            topic_names.check(request.name, self._image.topics)
        existing = self._image.topics.get(request.name)
        if existing is not None:
            return self._existing(existing, request)
        config = settings.build(TopicConfig, request.config)
        factor = self._replication_factor(request.replication_factor)
        _check_min_insync(request.name, config, factor)
        partitions = _partition_count(request.partitions)
        typed = request.schema is not None
        _check_compaction(request.name, config, typed=typed, key=request.key)
        schema = request.schema if request.schema is not None else raw_schema
        topic = TopicRecord(
            topic_id=topic_id,
            name=request.name,
            typed=typed,
            schemas=(base64.b64encode(schema).decode(),),
            key=request.key,
            time=request.time,
            config=dataclasses.asdict(config),
            replication_factor=factor,
        )
        return [topic, *self._new_partitions(self._image, topic, 0, partitions)]

    def _existing(self, topic: TopicRecord, request: CreateTopicRequest) -> Records:
        if not request.exist_ok:
            raise TopicExists(f"topic {request.name!r} exists already: pass exist_ok=True to take it as it is")
        if topic.typed != (request.schema is not None):
            kind = "typed" if topic.typed else "raw"
            raise TopicExists(f"topic {request.name!r} exists already and is {kind}")
        if request.schema is not None:
            if topic.schema_bytes[-1] != request.schema or topic.key != request.key:
                raise TopicExists(f"topic {request.name!r} exists already with another schema or key column")
            if topic.time != request.time:
                raise TopicExists(f"topic {request.name!r} exists already with another time column: {topic.time!r}")
        return []

    def alter_topic(self, request: AlterTopicRequest) -> Records:
        """Changed settings, more partitions, another replication factor. Raises TopicNotFound, InvalidConfig,
        InvalidArgument, and NotEnoughBrokers where replicas have no place now.

        Replicas that come in catch up while the partition is in use; those that go, go when enough others are in sync.
        """
        topic = self._user_topic(request.name)
        config = settings.build(TopicConfig, topic.config)
        if request.config:
            config = settings.changed(config, request.config)
            _check_compaction(request.name, config, typed=topic.typed, key=topic.key)
            topic = dataclasses.replace(topic, config=dataclasses.asdict(config))
        if request.replication_factor is not None:
            factor = self._replication_factor(request.replication_factor, at_least_possible=topic.replication_factor)
            topic = dataclasses.replace(topic, replication_factor=factor)
        if "min_insync_replicas" in request.config or request.replication_factor is not None:
            _check_min_insync(request.name, config, topic.replication_factor)
        have = len(self._image.partitions[topic.topic_id])
        wanted = have if request.partitions is None else _partition_count(request.partitions)
        if wanted < have:
            raise InvalidArgument(
                f"topic {request.name!r} has {have} partitions; their number can grow, not shrink to {wanted}"
            )
        draft = Draft(self._image)
        draft.add(balance.with_topic(self._image, topic))
        if request.replication_factor is not None:
            moving = balance.Balance(draft)
            for record in draft.image.partitions_of(topic.topic_id):
                moving.bring_to(record, topic.replication_factor)
        draft.add(self._new_partitions(draft.image, topic, have, wanted))
        return draft.records

    def delete_topic(self, request: DeleteTopicRequest) -> Records:
        """The topic's end. Raises TopicNotFound; internal topics cannot be deleted.

        Its partitions and replicas get tombstones of their own: a compacted log would keep their last records for ever.
        """
        topic = self._user_topic(request.name)
        served = self._image.replicas.get(topic.topic_id, {}).values()
        return [*map(removed, served), *map(removed, self._image.partitions_of(topic.topic_id)), removed(topic)]

    def _new_partitions(self, image: MetadataImage, topic: TopicRecord, first: int, end: int) -> list[PartitionRecord]:
        if first == end:
            return []
        total = image.partition_count() + end - first
        if total > MAX_PARTITIONS_PER_CLUSTER:
            raise InvalidArgument(
                f"the cluster would hold {total:,} partitions; {MAX_PARTITIONS_PER_CLUSTER:,} are allowed"
            )
        brokers = balance.able(image)
        if len(brokers) < topic.replication_factor:
            raise NotEnoughBrokers(f"topic {topic.name!r} keeps {topic.replication_factor} replicas{self._heard()}")
        held, leads = loads(balance.all_partitions(image))
        racks = {broker.broker_id: broker.rack for broker in image.brokers.values()}
        load = {broker: held.get(broker, 0) for broker in brokers}
        placed = place(end - first, topic.replication_factor, load, leads, racks)
        return [
            PartitionRecord(
                topic_id=topic.topic_id,
                partition=first + number,
                replicas=replicas,
                isr=replicas,
                leader=replicas[0],
                leader_epoch=0,
                incarnation=0,
            )
            for number, replicas in enumerate(placed)
        ]

    def _user_topic(self, name: str) -> TopicRecord:
        if topic_names.is_internal(name):
            raise InvalidTopicName(f"{name!r} is raystream's own topic: it cannot be changed")
        return self._image.topic(name)

    def _replication_factor(self, wanted: int | None, *, at_least_possible: int = 0) -> int:
        live = len(balance.able(self._image))
        if not live:
            raise Unavailable("no broker has registered yet, or none is heard of now")
        if wanted is None:
            return min(DEFAULT_REPLICATION_FACTOR, live)
        factor = arguments.whole("replication_factor", wanted)
        there = sum(not broker.draining for broker in self._image.brokers.values())
        if not 1 <= factor <= max(there, at_least_possible):
            brokers = "1 broker" if there == 1 else f"{there} brokers"
            possible = "only 1" if there == 1 else f"1 to {there}"
            raise InvalidArgument(f"replication_factor={factor}: this cluster has {brokers}, so {possible} is possible")
        if factor > max(live, at_least_possible):
            raise NotEnoughBrokers(f"replication_factor={factor}{self._heard()}")
        return factor

    def _heard(self) -> str:
        """Who could take replicas and cannot now."""
        brokers = [broker for broker in self._image.brokers.values() if not broker.draining]
        silent = sorted(broker.broker_id for broker in brokers if broker.fenced)
        missing = f" (not heard: {', '.join(map(str, silent))}): try again once enough are back" if silent else ""
        return f": {len(brokers) - len(silent)} of {len(brokers)} brokers can take one now{missing}"

    # Replicas -------------------------------------------------------------------------------------------------------

    def replicas_changed(self, request: ReplicasChangedRequest) -> Records:
        """Which actors serve a broker's replicas now, after others have died. Raises Fenced for an earlier life.

        What a lost replica led is led by another one in sync, or, where there is none, by its successor: in a new
        epoch either way. One that followed stays in the ISR, for its disk has what it said. A lead also goes away from
        a replica that cannot be opened, if another one in sync is open; one with a corrupt log leaves the ISR and the
        ELR. What is said of partitions that are gone, or not this broker's, is passed over.
        """
        self._speaker(request.broker_id, request.incarnation)
        draft = Draft(self._image)
        for topic_id, number in request.lost:
            known = draft.image.replica(topic_id, number, request.broker_id)
            if known is not None:
                draft.add([dataclasses.replace(known, actor="", error="") if known.opened else removed(known)])
            if draft.image.partitions.get(topic_id, {}).get(number) is not None:
                draft.add(Elections(draft.image).replica_lost(topic_id, number, request.broker_id, fit=True))
        for served in request.served:
            record = draft.image.partitions.get(served.topic_id, {}).get(served.partition)
            if record is None or request.broker_id not in record.replicas:
                continue
            before = draft.image.replica(served.topic_id, served.partition, request.broker_id)
            opened = bool(served.actor) or (before is not None and before.opened)
            error = served.error
            if before is not None and before.error == f"{LET_GO}{error}":
                error = before.error
            now = ReplicaRecord(served.topic_id, served.partition, request.broker_id, served.actor, error, opened)
            if before != now:
                draft.add([now])
            if served.error.startswith(CORRUPT_LOG):
                draft.add(self._corrupt(draft.image, record, request.broker_id))
                continue
            other = balance.successor(draft.image, record)
            if served.error and record.leader == request.broker_id and balance.serves(draft.image, record, other):
                draft.add([balance.led_by(record, other)])
        return draft.records

    def _corrupt(self, image: MetadataImage, record: PartitionRecord, broker_id: int) -> Records:
        """A replica whose disk is not what it said is in no ISR and no ELR, if anybody else is: then the broker may
        begin it anew. Where it is the only one, what is left of it must be kept."""
        if not {*record.isr, *record.elr} - {broker_id}:
            return []
        return Elections(image).replica_lost(record.topic_id, record.partition, broker_id, fit=False)

    def alter_isr(self, request: AlterIsrRequest) -> Records:
        """See `Elections.alter_isr`."""
        change = IsrChange(request.leader, request.leader_epoch, request.partition_epoch, request.isr)
        return forgetting(self._image, self._elections.alter_isr(request.topic_id, request.partition, change))

    def reassign(self, request: ReassignRequest) -> Records:
        """Moves partitions to other brokers. Raises TopicNotFound, PartitionNotFound, InvalidArgument."""
        topic = self._image.topic(request.topic)
        draft = Draft(self._image)
        for number, replicas in request.replicas:
            for broker in set(replicas) - set(self._image.partition(topic.topic_id, number).replicas):
                known = self._image.brokers.get(broker)
                if known is not None and known.draining:
                    gone = "was removed" if was_removed(known) else "is being drained"
                    raise InvalidArgument(f"broker {broker} {gone}: it takes no new replicas")
            draft.add(Elections(draft.image).reassign(topic.topic_id, number, replicas))
        return draft.records

    def elect_leaders(self, request: ElectLeadersRequest) -> Records:
        """Leads go to preferred replicas where these are in sync and open. Raises TopicNotFound.

        With `unclean` what a leader held whose files are gone or corrupt is let go of: another live replica leads, or
        it begins empty.
        """
        records: Records = []
        for name in self._image.topics if request.topic is None else [request.topic]:
            for record in self._image.partitions_of(self._image.topic(name).topic_id):
                led = self._image.replica(record.topic_id, record.partition, record.leader)
                if request.unclean and led is not None and led.error.startswith(CORRUPT_LOG):
                    records += self._without(record, led)
                    continue
                preferred = balance.fit(self._image, record, record.replicas[0])
                records += self._elections.elect(
                    record.topic_id, record.partition, preferred=preferred, unclean=request.unclean
                )
        return records

    def _without(self, record: PartitionRecord, led: ReplicaRecord) -> Records:
        elected = self._elections.elect(record.topic_id, record.partition, unclean=True, lost=led.broker_id)
        if elected:
            return elected
        begun = self._elections.replica_lost(record.topic_id, record.partition, led.broker_id, fit=True)
        error = led.error if led.error.startswith(LOST_LOG) else f"{LET_GO}{led.error}"
        return [dataclasses.replace(led, opened=False, error=error), *begun]

    def upkeep(self) -> Records:
        """What the controller does by itself; see `balance.upkeep`. To be called again until it returns nothing."""
        return balance.upkeep(self._image)


def _check_compaction(topic: str, config: TopicConfig, *, typed: bool, key: str | None) -> None:
    if config.compacts and typed and key is None:
        raise InvalidConfig(
            f"cleanup_policy={config.cleanup_policy!r}: topic {topic!r} is typed and has no key column, by which it "
            "could be compacted: create it with key="
        )


def _check_min_insync(topic: str, config: TopicConfig, factor: int) -> None:
    if config.min_insync_replicas > factor:
        raise InvalidConfig(
            f"min_insync_replicas={config.min_insync_replicas}: topic {topic!r} keeps {factor} "
            f'replica{"s" * (factor != 1)}, so acks="all" could never be had; {factor} is the most'
        )


def _partition_count(wanted: object) -> int:
    count = arguments.whole("partitions", wanted)
    if not 1 <= count <= MAX_PARTITIONS:
        raise InvalidArgument(f"partitions={count}: a topic has 1 to {MAX_PARTITIONS:,} partitions")
    return count
