"""The controller's rules for replicas, each by a case made by hand. How they hold together is `tests/sim`'s."""

from __future__ import annotations

from typing import Any

import pytest

from raystream.core.elections import MIN_INSYNC_REPLICAS, NO_LEADER, Elections, Records
from raystream.core.metadata import BrokerRecord, MetadataImage, PartitionRecord, TopicRecord
from raystream.core.replication import IsrChange
from raystream.errors import Fenced, FencedLeaderEpoch, InvalidArgument, NotLeader, Unavailable

TOPIC = "t"


class World:
    """Brokers 1 to 5, all live, and one partition on 1, 2 and 3, led by 1."""

    def __init__(self, min_insync_replicas: int = 2, fenced: tuple[int, ...] = (), **partition: Any) -> None:
        self.image = MetadataImage()
        self.elections = Elections(self.image)
        for broker in range(1, 6):
            self.image.replay(BrokerRecord(broker, 1, fenced=broker in fenced))
        self.set_min_insync_replicas(min_insync_replicas)
        fields: dict[str, Any] = {
            "replicas": (1, 2, 3),
            "isr": (1, 2, 3),
            "leader": 1,
            "leader_epoch": 5,
            "partition_epoch": 10,
        }
        self.image.replay(PartitionRecord(TOPIC, 0, incarnation=0, **(fields | partition)))

    def set_min_insync_replicas(self, count: int) -> None:
        self.image.replay(TopicRecord(TOPIC, TOPIC, False, (), None, None, {MIN_INSYNC_REPLICAS: count}, 3))

    def decide(self, records: Records) -> PartitionRecord:
        """The partition after a decision."""
        for record in records:
            self.image.replay(record)
        return self.partition

    @property
    def partition(self) -> PartitionRecord:
        return self.image.partition(TOPIC, 0)

    def alter(self, *isr: int, **change: Any) -> PartitionRecord:
        """The leader asks for an ISR."""
        now = self.partition
        fields: dict[str, Any] = {
            "leader": now.leader,
            "leader_epoch": now.leader_epoch,
            "partition_epoch": now.partition_epoch,
        }
        members = tuple((broker, 1) for broker in isr)
        return self.decide(self.elections.alter_isr(TOPIC, 0, IsrChange(**(fields | {"isr": members} | change))))


# Brokers ------------------------------------------------------------------------------------------------------------


def test_a_leader_that_is_fenced_leaves_the_isr_and_another_member_leads_in_a_new_epoch() -> None:
    world = World()
    after = world.decide(world.elections.broker_fenced(1, 1))
    assert world.image.brokers[1].fenced
    assert (after.leader, after.isr, after.elr) == (2, (2, 3), ())
    assert (after.leader_epoch, after.partition_epoch) == (6, 11)


def test_a_follower_that_is_fenced_leaves_the_isr_in_the_same_leader_epoch() -> None:
    world = World()
    after = world.decide(world.elections.broker_fenced(3, 1))
    assert (after.isr, after.leader, after.leader_epoch, after.partition_epoch) == ((1, 2), 1, 5, 11)


def test_a_broker_that_starts_again_is_fenced_in_a_new_life_and_out_of_the_isr() -> None:
    world = World()
    after = world.decide(world.elections.broker_registered(1, clean=True))
    assert (world.image.brokers[1].incarnation, world.image.brokers[1].fenced) == (2, True)
    assert (after.isr, after.leader, after.leader_epoch) == ((2, 3), 2, 6)


def test_what_speaks_for_an_earlier_life_is_fenced() -> None:
    world = World()
    world.decide(world.elections.broker_registered(1, clean=True))
    for say in (world.elections.broker_fenced, world.elections.broker_unfenced):
        with pytest.raises(Fenced):
            say(1, 1)


def test_who_leaves_a_small_isr_stays_eligible_and_leads_when_it_is_back() -> None:
    world = World(isr=(1,))
    gone = world.decide(world.elections.broker_fenced(1, 1))
    assert (gone.leader, gone.isr, gone.elr) == (NO_LEADER, (), (1,))
    back = world.decide(world.elections.broker_unfenced(1, 1))
    assert (back.leader, back.isr, back.elr, back.leader_epoch) == (1, (1,), (), 7)


def test_a_lost_disk_is_neither_in_the_isr_nor_eligible() -> None:
    world = World(isr=(1,), elr=(2,))
    assert world.decide(world.elections.broker_registered(2, clean=False)).elr == ()
    after = world.decide(world.elections.broker_registered(1, clean=False))
    assert (after.leader, after.isr, after.elr) == (NO_LEADER, (), ())
    assert world.decide(world.elections.broker_unfenced(1, 2)).leader == NO_LEADER


def test_an_eligible_replica_leads_when_nobody_in_the_isr_can() -> None:
    world = World(isr=(1,), elr=(2,))
    after = world.decide(world.elections.broker_fenced(1, 1))
    assert (after.leader, after.isr, after.elr) == (2, (2,), (1,))


# The ISR ------------------------------------------------------------------------------------------------------------


def test_a_leader_shrinks_and_grows_the_isr() -> None:
    world = World()
    assert world.alter(1, 2).isr == (1, 2)
    assert world.alter(1, 2, 3).isr == (1, 2, 3)
    assert (world.partition.partition_epoch, world.partition.leader_epoch) == (12, 5)


def test_below_min_insync_those_who_left_are_eligible_until_it_is_large_enough_again() -> None:
    world = World()
    world.alter(1, 2)
    assert world.alter(1).elr == (2,)
    assert world.alter(1, 3).elr == ()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"leader_epoch": 4}, FencedLeaderEpoch),
        ({"leader_epoch": 6}, NotLeader),
        ({"leader": 2}, NotLeader),
        ({"partition_epoch": 9}, Fenced),
        ({"isr": ((2, 1),)}, InvalidArgument),
        ({"isr": ((1, 1), (4, 1))}, InvalidArgument),
        ({"isr": ((1, 1), (2, 1), (2, 1))}, InvalidArgument),
        ({"isr": ((1, 1), (3, 2))}, Unavailable),
    ],
)
def test_an_isr_change_is_refused(change: dict[str, Any], error: type[Exception]) -> None:
    world = World(isr=(1, 2))
    before = world.partition
    with pytest.raises(error):
        world.alter(1, 2, **change)
    assert world.partition == before


def test_a_fenced_broker_does_not_join() -> None:
    with pytest.raises(Unavailable):
        World(isr=(1, 2), fenced=(3,)).alter(1, 2, 3)


def test_a_lower_min_insync_ends_the_elr() -> None:
    world = World(isr=(1,), elr=(2,))
    assert world.elections.min_insync_changed(TOPIC) == []
    world.set_min_insync_replicas(1)
    assert world.decide(world.elections.min_insync_changed(TOPIC)).elr == ()


def test_min_insync_is_never_more_than_there_are_replicas() -> None:
    world = World(min_insync_replicas=5)
    assert world.elections.min_insync_replicas(world.partition) == 3


# Leaders ------------------------------------------------------------------------------------------------------------


def test_the_first_replica_is_preferred_where_it_is_in_sync() -> None:
    world = World(leader=2)
    after = world.decide(world.elections.elect(TOPIC, 0, preferred=True))
    assert (after.leader, after.leader_epoch, after.isr) == (1, 6, (1, 2, 3))
    assert World(leader=2, isr=(2, 3)).elections.elect(TOPIC, 0, preferred=True) == []
    assert World(leader=2, fenced=(1,)).elections.elect(TOPIC, 0, preferred=True) == []


def test_an_unclean_election_happens_only_when_it_is_asked_for() -> None:
    world = World(isr=(), elr=(1,), leader=NO_LEADER, fenced=(1,))
    assert world.elections.elect(TOPIC, 0) == []
    after = world.decide(world.elections.elect(TOPIC, 0, unclean=True))
    assert (after.leader, after.isr, after.elr, after.leader_epoch) == (2, (2,), (), 6)


def test_a_leaders_lost_actor_begins_another_epoch_elsewhere_or_here() -> None:
    after = (world := World()).decide(world.elections.replica_lost(TOPIC, 0, 1, fit=True))
    assert (after.leader, after.isr, after.leader_epoch, after.incarnation) == (2, (1, 2, 3), 6, 1)
    after = (world := World(isr=(1,))).decide(world.elections.replica_lost(TOPIC, 0, 1, fit=True))
    assert (after.leader, after.isr, after.leader_epoch) == (1, (1,), 6)
    assert World().elections.replica_lost(TOPIC, 0, 2, fit=True) == []


def test_an_unfit_replica_neither_leads_nor_is_eligible() -> None:
    after = (world := World(isr=(1, 2))).decide(world.elections.replica_lost(TOPIC, 0, 1, fit=False))
    assert (after.leader, after.isr, after.elr) == (2, (2,), ())


# Reassignment -------------------------------------------------------------------------------------------------------


def test_old_replicas_go_when_all_the_new_ones_are_in_sync() -> None:
    world = World()
    moving = world.decide(world.elections.reassign(TOPIC, 0, (4, 5)))
    assert (moving.replicas, moving.adding, moving.removing) == ((4, 5, 1, 2, 3), (4, 5), (1, 2, 3))
    assert world.alter(1, 2, 3, 4).removing == (1, 2, 3)
    moved = world.alter(1, 2, 3, 4, 5)
    assert (moved.replicas, moved.isr, moved.leader, moved.leader_epoch) == ((4, 5), (4, 5), 4, 6)
    assert (moved.adding, moved.removing, moved.elr) == ((), (), ())


def test_fewer_replicas_need_no_wait_and_another_order_no_new_epoch() -> None:
    world = World()
    assert world.decide(world.elections.reassign(TOPIC, 0, (2, 1))).leader_epoch == 6
    ordered = world.decide(world.elections.reassign(TOPIC, 0, (1, 2)))
    assert (ordered.replicas, ordered.leader_epoch) == ((1, 2), 6)
    assert world.elections.reassign(TOPIC, 0, (1, 2)) == []


def test_a_reassignment_is_taken_back() -> None:
    world = World()
    world.decide(world.elections.reassign(TOPIC, 0, (4, 5)))
    back = world.decide(world.elections.reassign(TOPIC, 0, (1, 2, 3)))
    assert (back.replicas, back.adding, back.removing) == ((1, 2, 3), (), ())


def test_a_lower_min_insync_completes_a_reassignment_that_waited_for_it() -> None:
    world = World(isr=(1, 3))
    assert world.decide(world.elections.reassign(TOPIC, 0, (1, 2))).removing == (3,)
    world.set_min_insync_replicas(1)
    assert world.decide(world.elections.min_insync_changed(TOPIC)).replicas == (1, 2)


@pytest.mark.parametrize("replicas", [(), (1, 1), (1, 9)])
def test_a_reassignment_names_registered_brokers_once(replicas: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument):
        World().elections.reassign(TOPIC, 0, replicas)
