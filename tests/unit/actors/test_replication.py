"""Several replicas of a partition, leading and following, over disks in memory."""

from __future__ import annotations

import random

import pytest

from raystream import messages as m
from raystream.actors.writer import Ticket
from raystream.config import DAY_MS
from raystream.errors import ActorLost, NotEnoughReplicas, NotLeader, UnexpectedEndOffset, UnknownProducer
from tests.fakes.logs import DIRECTORY, TOPIC_ID
from tests.fakes.replicas import Replicas

VALUES = [(0, b"a"), (1, b"b"), (2, b"c")]


def written(world: Replicas) -> None:
    tickets = [world.append(value) for _, value in VALUES]
    world.work()
    assert [ticket.wait(0).base_offset for ticket in tickets] == [0, 1, 2]


def test_an_append_is_answered_when_every_member_of_the_isr_has_it() -> None:
    world = Replicas()
    ticket = world.append(b"a")
    assert not ticket.settled
    world.work()
    assert ticket.wait(0).base_offset == 0
    assert [world.stored(broker) for broker in world.brokers] == [[(0, b"a")]] * 3


def test_acks_1_is_answered_when_the_leader_has_it() -> None:
    assert Replicas().append(b"a", acks=1).settled


def test_the_followers_bytes_are_the_leaders() -> None:
    world = Replicas()
    written(world)
    logs = []
    for broker in world.brokers:
        files = world.files[broker]
        logs.append([files.read(f"{DIRECTORY}/{name}") for name in files.listdir(DIRECTORY) if name.endswith(".log")])
    assert logs[0] == logs[1] == logs[2]


def test_followers_learn_the_high_watermark_without_another_append() -> None:
    world = Replicas()
    written(world)
    world.pass_time(1_000)
    assert [replica.high_watermark for replica in world.replicas.values()] == [3, 3, 3]


def test_many_small_appends_travel_together() -> None:
    world = Replicas()
    world.append(b"0")
    world.work()
    for number in range(1, 50):
        world.append(b"%d" % number)
    assert len(world.queue) < 70  # the first few go out one by one, two followers each; pipelines are bounded
    world.work()
    assert len(world.stored(2)) == 50


def test_the_next_leader_has_every_acknowledged_record_and_its_producers() -> None:
    world = Replicas()
    world.append(b"a", producer=(7, 0, 0))
    world.work()
    world.elect(1)
    world.work()
    again = world.append(b"a", producer=(7, 0, 0))
    world.work()
    assert again.wait(0).duplicate
    assert world.append(b"b", producer=(7, 0, 1)) is not None
    world.work()
    assert world.stored(1) == [(0, b"a"), (1, b"b")]


def test_a_duplicate_is_answered_no_earlier_than_its_original() -> None:
    world = Replicas()
    first = world.append(b"a", producer=(7, 0, 0))
    again = world.append(b"a", producer=(7, 0, 0))
    assert not first.settled and not again.settled
    world.work()
    assert again.wait(0).duplicate


def test_what_only_a_former_leader_had_is_cut_off() -> None:
    world = Replicas()
    written(world)
    world.cut_off = {0}
    lost = world.append(b"only here")
    world.work()
    assert not lost.settled
    world.elect(1)
    with pytest.raises(ActorLost):
        lost.wait(0)
    world.set_isr(1, 2)
    world.append(b"d")
    world.work()
    world.cut_off = set()
    world.pass_time(3_000)
    assert [world.stored(broker) for broker in world.brokers] == [[*VALUES, (3, b"d")]] * 3
    assert set(world.isr) == {0, 1, 2}


def test_a_lagging_follower_leaves_the_isr_and_comes_back_when_it_has_caught_up() -> None:
    world = Replicas()
    world.pass_time(500)
    world.cut_off = {2}
    ticket = world.append(b"a")
    world.work()
    assert not ticket.settled
    world.pass_time(12_000)
    assert set(world.isr) == {0, 1}
    assert ticket.wait(0).base_offset == 0
    world.cut_off = set()
    world.pass_time(3_000)
    assert set(world.isr) == {0, 1, 2} and world.stored(2) == [(0, b"a")]


def test_too_small_an_isr_refuses_and_writes_nothing() -> None:
    world = Replicas(min_insync_replicas=2)
    world.set_isr(0)
    with pytest.raises(NotEnoughReplicas):
        world.append(b"a").wait(0)
    assert world.append(b"b", acks=1).wait(0).base_offset == 0


def test_an_empty_follower_catches_up_from_segments() -> None:
    world = Replicas(isr=(0, 1))
    world.stop(2)
    for number in range(200):
        world.append(b"%d" % number * 50)
        world.work()
    world.start(2)
    world.announce()
    world.pass_time(3_000)
    assert len(world.stored(2)) == 200 and set(world.isr) == {0, 1, 2}


def test_a_follower_whose_next_record_was_deleted_begins_anew() -> None:
    world = Replicas(isr=(0, 1))
    world.stop(2)
    written(world)
    world.pass_time(1_000)
    world.replicas[0].delete_before(2)
    world.announce()
    world.start(2)
    world.pass_time(3_000)
    assert world.replicas[2].log.start_offset == 2 and world.stored(2) == [(2, b"c")]


def test_a_replica_that_is_filled_after_a_deletion_knows_the_producers_of_what_was_deleted() -> None:
    world = Replicas(isr=(0, 1))
    world.stop(2)
    for producer in (7, 8, 9):
        world.append(b"%d" % producer, producer=(producer, 0, 0))
    world.append(b"last", producer=(9, 0, 1))
    world.work()
    world.pass_time(1_000)
    world.replicas[0].delete_before(3)
    world.announce()
    world.start(2)
    world.pass_time(3_000)
    world.crash(2, random.Random(1))
    world.start(2)
    world.pass_time(3_000)
    assert set(world.isr) == {0, 1, 2} and world.stored(2) == [(3, b"last")]
    world.elect(2)
    world.pass_time(1_000)
    for producer, sequence in ((7, 0), (8, 0), (9, 0), (9, 1)):
        again = world.append(b"x", producer=(producer, 0, sequence))
        world.work()
        assert again.wait(0).duplicate
    fresh = world.append(b"next", producer=(7, 0, 1))
    world.work()
    assert not fresh.wait(0).duplicate


def test_what_was_deleted_is_known_for_a_day() -> None:
    world = Replicas(isr=(0, 1))
    world.stop(2)
    world.append(b"7", producer=(7, 0, 0))
    world.work()
    world.pass_time(1_000)
    world.replicas[0].delete_before(1)
    world.announce()
    world.start(2)
    world.pass_time(3_000)
    world.elect(2)
    world.clock.advance(DAY_MS)
    world.pass_time(3_000)
    with pytest.raises(UnknownProducer):
        world.append(b"x", producer=(7, 0, 1)).wait(0)


def test_a_marker_is_answered_once_the_isr_has_it_and_stands_once() -> None:
    world = Replicas()
    request = m.WriteMarkerRequest(topic_id=TOPIC_ID, partition=0, producer_id=7, producer_epoch=1, commit=False)
    tickets = []
    for _ in range(2):
        leader = world.replicas[0]
        tickets.append(Ticket(leader.marker(request)))
        leader.offer(tickets[-1])
        leader.commit()
        assert not tickets[-1].settled
    world.work()
    assert [ticket.wait(0).duplicate for ticket in tickets] == [False, True]
    assert [replica.log.end_offset for replica in world.replicas.values()] == [1, 1, 1]


def test_deleting_records_reaches_the_followers() -> None:
    world = Replicas()
    written(world)
    world.replicas[0].delete_before(2)
    world.pass_time(2_000)
    assert [replica.log.start_offset for replica in world.replicas.values()] == [2, 2, 2]


def test_a_new_leader_serves_no_reads_before_it_knows_what_is_committed() -> None:
    world = Replicas()
    written(world)
    world.append(b"d")
    world.queue.pop(0)()
    world.queue.pop(0)()  # both followers have it, and nobody knows
    world.elect(1)
    with pytest.raises(NotLeader):
        world.leading().check_read()
    world.work()
    world.leading().check_read()


def test_a_follower_whose_committed_records_are_not_the_leaders_says_so() -> None:
    world = Replicas()
    written(world)
    world.pass_time(1_000)
    world.stop(1)
    for name in world.files[1].listdir(DIRECTORY):
        world.files[1].unlink(f"{DIRECTORY}/{name}")
    world.start(1)  # it has forgotten everything, and leads all the same
    world.elect(1)
    world.pass_time(2_000)
    assert world.replicas[0].status().error is not None
    assert world.stored(0) == VALUES


def test_a_batch_that_must_stand_elsewhere_is_refused() -> None:
    world = Replicas()
    written(world)
    with pytest.raises(UnexpectedEndOffset):
        world.append(b"late", expected_offset=2).wait(0)
    ticket = world.append(b"right", expected_offset=3)
    world.work()
    assert ticket.wait(0).base_offset == 3


@pytest.mark.parametrize("seed", range(20))
def test_acknowledged_records_survive_power_loss_of_any_but_one(seed: int) -> None:
    world, rng = Replicas(), random.Random(seed)
    acknowledged = []
    for number in range(60):
        ticket = world.append(b"%d" % number)
        for _ in range(rng.randrange(12)):
            if world.queue:
                world.queue.pop(rng.randrange(min(3, len(world.queue))))()
        if ticket.settled:
            acknowledged.append((ticket.wait(0).base_offset, b"%d" % number))
        if rng.random() < 0.1:
            dead = rng.choice([broker for broker in world.isr if broker in world.replicas])
            world.crash(dead, rng)
            world.isr = tuple(broker for broker in world.isr if broker != dead) or world.isr
            world.leader = next(iter(broker for broker in world.isr if broker in world.replicas))
            world.elect(world.leader)
            world.start(dead)
            world.announce()
            world.pass_time(2_000)
            assert set(acknowledged) <= set(world.stored(world.leader))
    world.pass_time(3_000)
    for broker in world.brokers:
        assert set(acknowledged) <= set(world.stored(broker))
