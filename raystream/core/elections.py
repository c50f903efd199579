"""The controller's decisions about replicas: who is in sync, leads, comes and goes (KIP-455, 497, 841, 903, 966).

Each decision returns records, or raises and changes nothing; replaying them is the only thing that changes the image.

Guarantees. Only members of the ISR and of the ELR are elected, unless somebody asks for an unclean election. All of
them have all that is committed on their disks; those in the ELR may be fenced. Every election has a leader epoch of its
own, and every change of a partition another partition epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from raystream.core.metadata import BrokerRecord, MetadataImage, PartitionRecord
from raystream.core.records import Record, Removed
from raystream.core.replication import IsrChange
from raystream.errors import Fenced, FencedLeaderEpoch, InvalidArgument, NotLeader, Unavailable

Records = list[Record | Removed]
NO_LEADER: Final = -1
MIN_INSYNC_REPLICAS: Final = "min_insync_replicas"


class Elections:
    """Decides over one image. A decision's records are to be replayed before the next is made."""

    def __init__(self, image: MetadataImage) -> None:
        self._image = image

    # Brokers --------------------------------------------------------------------------------------------------------

    def broker_registered(self, broker_id: int, *, clean: bool) -> Records:
        """A broker that starts, for the first time or again: a new incarnation, fenced until it is heard of.

        `clean` says that its disk holds all that it ever said was flushed. Where it does not, or nobody can tell (a
        wiped disk, a page cache that was relied on and is lost), the broker is in no ISR and no ELR from here on.
        """
        known = self._image.brokers.get(broker_id)
        if known is None:
            record = BrokerRecord(broker_id, 1, fenced=True)
        else:
            record = BrokerRecord(broker_id, known.incarnation + 1, fenced=True, draining=known.draining)
        return [record, *self._left(broker_id, clean=clean)]

    def broker_fenced(self, broker_id: int, incarnation: int) -> Records:
        """A broker that is not heard any more: it leads nothing and is in no ISR. Raises Fenced for an earlier life."""
        known = self._broker(broker_id, incarnation)
        if known.fenced:
            return []
        return [dataclasses.replace(known, fenced=True), *self._left(broker_id, clean=True)]

    def broker_unfenced(self, broker_id: int, incarnation: int) -> Records:
        """A broker that is heard again, and leads what nobody else could. Raises Fenced for an earlier life."""
        known = self._broker(broker_id, incarnation)
        if not known.fenced:
            return []
        records: Records = [dataclasses.replace(known, fenced=False)]
        for record in self._partitions():
            if record.leader == NO_LEADER and (broker_id in record.isr or broker_id in record.elr):
                records.append(self._changed(record, back=broker_id))
        return records

    def _left(self, broker_id: int, *, clean: bool) -> Iterator[PartitionRecord]:
        for record in self._partitions():
            counted = broker_id in record.isr or (not clean and broker_id in record.elr)
            if counted or record.leader == broker_id:
                yield self._changed(record, gone=broker_id, unclean=() if clean else (broker_id,))

    def _broker(self, broker_id: int, incarnation: int) -> BrokerRecord:
        known = self._image.brokers.get(broker_id)
        if known is None or known.incarnation != incarnation:
            now = "unknown" if known is None else f"at incarnation {known.incarnation}"
            raise Fenced(f"broker {broker_id} is {now}, and speaks with {incarnation}: it has to register again")
        return known

    # The ISR --------------------------------------------------------------------------------------------------------

    def alter_isr(self, topic_id: str, number: int, change: IsrChange) -> Records:
        """The ISR as its leader wants it; a reassignment that this makes possible is completed.

        Raises NotLeader and FencedLeaderEpoch for whoever does not lead (any more), Fenced for a change to a state that
        is not the current one, Unavailable where a broker that is to join is fenced or in another life, and
        InvalidArgument.
        """
        record = self._image.partition(topic_id, number)
        name = f"partition {number} of topic id {topic_id}"
        if change.leader_epoch < record.leader_epoch:
            raise FencedLeaderEpoch(f"{name} is at leader epoch {record.leader_epoch}, not {change.leader_epoch}")
        if change.leader != record.leader or change.leader_epoch != record.leader_epoch:
            raise NotLeader(f"{name} is led by broker {record.leader}, not by {change.leader}")
        if change.partition_epoch != record.partition_epoch:
            raise Fenced(f"{name} is at partition epoch {record.partition_epoch}, not {change.partition_epoch}")
        isr = tuple(broker for broker, _ in change.isr)
        if change.leader not in isr or len(set(isr)) != len(isr) or not set(isr) <= set(record.replicas):
            raise InvalidArgument(f"{isr} cannot be the ISR of {name}: its replicas are {record.replicas}")
        for broker, incarnation in change.isr:
            if broker not in record.isr and not self._may_join(broker, incarnation):
                raise Unavailable(f"broker {broker} is fenced, or not at incarnation {incarnation} any more")
        return [self._completed(self._changed(record, isr=isr))]

    def _may_join(self, broker_id: int, incarnation: int) -> bool:
        known = self._image.brokers.get(broker_id)
        return known is not None and not known.fenced and known.incarnation == incarnation

    def min_insync_changed(self, topic_id: str) -> Records:
        """The topic's `min_insync_replicas` is another: partitions with enough replicas in sync need no ELR any more,
        and reassignments that waited for more are completed."""
        records: Records = []
        for record in self._image.partitions_of(topic_id):
            after = self._completed(self._changed(record))
            if dataclasses.replace(after, partition_epoch=record.partition_epoch) != record:
                records.append(after)
        return records

    def min_insync_replicas(self, record: PartitionRecord, replicas: Sequence[int] | None = None) -> int:
        """What the topic asks for, by default 2 of three replicas or more; never more than there are replicas, those
        that a reassignment is bringing in aside: writes need not wait until they have caught up."""
        topic = self._image.topics_by_id.get(record.topic_id)
        count = len(replicas) if replicas is not None else len(set(record.replicas) - set(record.adding))
        default = 2 if topic is not None and topic.replication_factor >= 3 else 1
        wanted = default if topic is None else topic.config.get(MIN_INSYNC_REPLICAS) or default
        return min(int(wanted), count)

    # Leaders --------------------------------------------------------------------------------------------------------

    def elect(
        self, topic_id: str, number: int, *, preferred: bool = False, unclean: bool = False, lost: int = NO_LEADER
    ) -> Records:
        """A leader for a partition that has none; with `preferred`, the first of its replicas where that is in sync.

        `unclean` takes any live replica where nobody is eligible: what is committed and not there is lost. `lost` is a
        leader that holds nothing any more.
        """
        record = self._image.partition(topic_id, number)
        if preferred and self._preferred_is_better(record):
            return [self._changed(record, leader=record.replicas[0])]
        if record.leader not in (NO_LEADER, lost):
            return []
        if self._eligible(record.replicas, record.isr, record.elr, gone=lost) != NO_LEADER:
            return [self._changed(record, gone=lost, unclean=(lost,))]
        live = next((broker for broker in record.replicas if broker != lost and self._is_live(broker)), None)
        if unclean and live is not None:
            return [self._changed(record, isr=(live,), leader=live, unclean=record.replicas)]
        return []

    def _preferred_is_better(self, record: PartitionRecord) -> bool:
        first = record.replicas[0]
        return record.leader != first and first in record.isr and self._is_live(first)

    def _is_live(self, broker_id: int) -> bool:
        known = self._image.brokers.get(broker_id)
        return known is not None and not known.fenced

    def _eligible(
        self,
        replicas: Sequence[int],
        isr: Collection[int],
        elr: Collection[int],
        *,
        gone: int = NO_LEADER,
        back: int = -1,
    ) -> int:
        """The first live replica of the ISR, else of the ELR, else -1. `gone` is not live, `back` is, whatever the
        image says yet."""
        live = [broker for broker in replicas if broker != gone and (broker == back or self._is_live(broker))]
        for eligible in (isr, elr):
            for broker in live:
                if broker in eligible:
                    return broker
        return NO_LEADER

    def replica_lost(self, topic_id: str, number: int, broker_id: int, *, fit: bool) -> Records:
        """One replica's actor is gone, or cannot open its log, on a broker that lives.

        `fit` says that the disk holds all that it said was flushed; else the replica is in no ISR and no ELR from here
        on. Where it led, another begins an epoch, or, where nobody else can, its successor: never one in the same.
        """
        record = self._image.partition(topic_id, number)
        if not fit:
            counted = broker_id in record.isr or broker_id in record.elr
            return [self._changed(record, gone=broker_id, unclean=(broker_id,))] if counted else []
        if record.leader != broker_id:
            return []
        other = self._eligible(record.replicas, record.isr, (), gone=broker_id)
        changed = self._changed(record, leader=broker_id if other == NO_LEADER else other)
        return [dataclasses.replace(changed, leader_epoch=record.leader_epoch + 1, incarnation=record.incarnation + 1)]

    # Reassignment ---------------------------------------------------------------------------------------------------

    def reassign(self, topic_id: str, number: int, replicas: Sequence[int]) -> Records:
        """Moves a partition to other brokers, or orders its replicas anew; the first is preferred. Ends one under way.

        New replicas come in at once and catch up; when the ISR holds all of them, the old ones go, with `alter_isr`.
        Where there is nothing to wait for, they go at once. Raises InvalidArgument.
        """
        record = self._image.partition(topic_id, number)
        target = tuple(replicas)
        unknown = [broker for broker in target if broker not in self._image.brokers]
        if unknown:
            there = ", ".join(map(str, sorted(self._image.brokers)))
            raise InvalidArgument(f"there is no broker {unknown[0]} to hold partition {number}; there are: {there}")
        if not target or len(set(target)) != len(target):
            raise InvalidArgument(f"{target} cannot hold a partition: name registered brokers, each once")
        before = tuple(broker for broker in record.replicas if broker not in record.adding)
        removing = tuple(broker for broker in record.replicas if broker not in target)
        adding = tuple(broker for broker in target if broker not in before)
        if (target + removing, adding, removing) == (record.replicas, record.adding, record.removing):
            return []
        moved = dataclasses.replace(
            record,
            replicas=target + removing,
            adding=adding,
            removing=removing,
            partition_epoch=record.partition_epoch + 1,
        )
        return [self._completed(moved)]

    def _completed(self, record: PartitionRecord) -> PartitionRecord:
        """The record without the replicas that are to go, where enough of the others are in sync and all the new ones.

        Their going begins a leader epoch: what they said, or say late, is not heard if they are ever replicas again.
        """
        if not (record.adding or record.removing):
            return record
        target = tuple(broker for broker in record.replicas if broker not in record.removing)
        isr = tuple(broker for broker in record.isr if broker in target)
        enough = len(isr) >= max(self.min_insync_replicas(record, target), 1)
        if not (enough and set(record.adding) <= set(isr)):
            return record
        leader = record.leader if record.leader in isr else self._eligible(target, isr, ())
        moved = bool(record.removing) or leader != record.leader
        return dataclasses.replace(
            record,
            replicas=target,
            isr=isr,
            elr=(),
            leader=leader,
            leader_epoch=record.leader_epoch + moved,
            adding=(),
            removing=(),
        )

    # Changes --------------------------------------------------------------------------------------------------------

    def _partitions(self) -> Iterator[PartitionRecord]:
        for held in self._image.partitions.values():
            yield from held.values()

    def _changed(
        self,
        record: PartitionRecord,
        *,
        isr: tuple[int, ...] | None = None,
        leader: int | None = None,
        gone: int = NO_LEADER,
        back: int = NO_LEADER,
        unclean: Collection[int] = (),
    ) -> PartitionRecord:
        """The partition's next state: with another ISR, or led by another, or without a broker that is `gone`, or with
        one that is `back`. What `unclean` ones have on their disks is not known.

        Whoever leaves the ISR while it is too small for the high watermark to move stays eligible; nobody needs to be
        once it is large enough, for then the ISR alone has what is committed from then on.
        """
        after = tuple(broker for broker in (record.isr if isr is None else isr) if broker != gone)
        candidates = dict.fromkeys((*record.elr, *record.isr))
        elr = tuple(broker for broker in candidates if broker not in after and broker not in unclean)
        if leader is None:
            leader = record.leader
            if leader == NO_LEADER or leader not in after:
                leader = self._eligible(record.replicas, after, elr, gone=gone, back=back)
        if leader != NO_LEADER and leader not in after:
            after = (*after, leader)
        if len(after) >= self.min_insync_replicas(record):
            elr = ()
        return dataclasses.replace(
            record,
            isr=after,
            elr=tuple(broker for broker in elr if broker not in after),
            leader=leader,
            leader_epoch=record.leader_epoch + (leader != record.leader),
            partition_epoch=record.partition_epoch + 1,
        )
