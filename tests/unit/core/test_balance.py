"""What the controller does by itself, one rule each; then any history of decisions at random."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from raystream import messages as m
from raystream.core import balance, topic_names
from raystream.core.draft import Draft
from raystream.core.elections import NO_LEADER
from raystream.core.metadata import OFFSETS_TOPIC, BrokerRecord, MetadataImage, PartitionRecord
from raystream.core.placement import target
from raystream.core.records import from_pair, to_pair
from raystream.errors import RaystreamError
from tests.unit.core.controller_house import House

OFFSETS_ID = "f" * 32


def test_an_internal_topic_gets_more_replicas_as_brokers_join() -> None:
    house = House(1)
    house.create(OFFSETS_TOPIC, OFFSETS_ID, internal=True, partitions=2)
    house.create("t")
    house.serve()
    assert house.controller.upkeep() == []
    for brokers, factor in ((2, 2), (3, 3), (4, 3)):
        house.join()
        house.keep_up()
        assert {len(record.isr) for record in house.image.partitions_of(OFFSETS_ID)} == {factor}, brokers
        assert house.image.topic(OFFSETS_TOPIC).replication_factor == factor
    assert len(house.partition().replicas) == 1, "a user's topic keeps its factor"


def test_an_internal_topic_waits_for_no_more_replicas_than_it_has() -> None:
    house = House(1)
    house.create(OFFSETS_TOPIC, OFFSETS_ID, internal=True)
    house.join()
    house.join()
    house.commit(house.controller.upkeep())
    assert len(house.partition(0, OFFSETS_ID).adding) == 2
    assert house.image.topic(OFFSETS_TOPIC).replication_factor == 1
    assert house.controller.upkeep() == [], "it is under way"
    house.catch_up()
    house.commit(house.controller.upkeep())
    assert house.image.topic(OFFSETS_TOPIC).replication_factor == 3


def test_the_groups_log_is_led_beside_a_coordinator() -> None:
    house = House(3)
    house.create(OFFSETS_TOPIC, OFFSETS_ID, internal=True)
    house.serve()
    for broker in range(3):
        house.hear(broker, coordinator=f"coordinator-{broker}")
    house.keep_up()
    preferred, *others = house.partition(0, OFFSETS_ID).replicas
    assert house.partition(0, OFFSETS_ID).leader == preferred
    house.hear(others[0], coordinator="")
    assert house.controller.upkeep() == [], "the leader has one"
    house.hear(preferred, coordinator="")
    house.keep_up()
    assert house.partition(0, OFFSETS_ID).leader == others[1], "the one whose coordinator lives"
    house.hear(others[1], coordinator="")
    assert house.controller.upkeep() == [], "nobody else has one"
    house.hear(preferred, coordinator="coordinator-anew")
    house.keep_up()
    assert house.partition(0, OFFSETS_ID).leader == preferred


def test_replicas_leave_a_drained_broker_for_the_least_loaded_in_another_rack() -> None:
    house = House(5, racks={0: "a", 1: "a", 2: "b", 3: "b", 4: "c"})
    house.create("t", partitions=10, replication_factor=2)
    house.serve()
    house.drain(0)
    house.keep_up()
    records = house.partitions()
    assert all(len(record.isr) == 2 and 0 not in record.replicas for record in records)
    assert all(len({house.racks[broker] for broker in record.replicas}) == 2 for record in records)
    for counted in (Counter(b for record in records for b in record.replicas), Counter(r.leader for r in records)):
        assert max(counted.values()) - min(counted.values()) <= 2, counted
        assert set(counted) == {1, 2, 3, 4}


def test_what_a_drained_broker_led_is_led_by_who_takes_its_place() -> None:
    house = House(3)
    house.create("t", replication_factor=1)
    house.serve()
    leader = house.partition().leader
    house.drain(leader)
    house.commit(house.controller.upkeep())
    assert (house.partition().leader, house.partition().removing) == (leader, (leader,)), "it leads until then"
    house.keep_up()
    assert house.partition().leader not in (leader, NO_LEADER)


def test_an_internal_topic_gives_up_the_replica_that_nobody_else_can_take() -> None:
    house = House(3)
    house.create(OFFSETS_TOPIC, OFFSETS_ID, internal=True)
    house.serve()
    house.drain(2)
    house.keep_up()
    assert set(house.partition(0, OFFSETS_ID).replicas) == {0, 1}
    assert house.image.topic(OFFSETS_TOPIC).replication_factor == 2
    house.drain(2, drain=False)
    house.keep_up()
    assert house.image.topic(OFFSETS_TOPIC).replication_factor == 3


def test_a_move_to_a_broker_that_is_drained_meanwhile_goes_elsewhere() -> None:
    house = House(4)
    house.create("t", replication_factor=1)
    house.serve()
    house.drain(house.partition().leader)
    house.commit(house.controller.upkeep())
    (first,) = house.partition().adding
    house.drain(first)
    house.commit(house.controller.upkeep())
    (second,) = house.partition().adding
    assert second != first


def test_leads_go_back_to_preferred_replicas_that_are_open_again() -> None:
    house = House(3)
    house.create("t", partitions=6, replication_factor=3)
    house.serve()
    preferred = [record.leader for record in house.partitions()]
    house.fence(0)
    house.hear(0)
    assert house.controller.upkeep() == [], "not in sync yet"
    house.keep_up()
    assert [record.leader for record in house.partitions()] == preferred


def test_a_drained_broker_gets_no_leads_back() -> None:
    house = House(4)
    house.create("t", replication_factor=3)
    house.serve()
    first = house.partition().leader
    house.commit([balance.led_by(house.partition(), balance.successor(house.image, house.partition()))])
    assert [record.leader for record in house.controller.upkeep()] == [first]  # type: ignore[union-attr]
    house.drain(first)
    assert all(record.leader != first for record in house.controller.upkeep())  # type: ignore[union-attr]


def test_so_much_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "MAX_CHANGES", 4)
    monkeypatch.setattr(balance, "MAX_MOVES", 6)
    house = House(2)
    house.create("t", partitions=20, replication_factor=1)
    house.serve()
    house.drain(0)
    for expected in (4, 2, 0):
        records = house.controller.upkeep()
        assert len(records) == expected
        house.commit(records)
    house.keep_up()
    assert all(record.replicas == (1,) for record in house.partitions())


def test_moves_that_cannot_go_on_do_not_hold_up_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "MAX_MOVES", 1)
    house = House(3)
    house.create("t", partitions=6, replication_factor=1)
    house.serve()
    house.drain(0)
    house.commit(house.controller.upkeep())
    assert house.controller.upkeep() == []
    house.fence(1, 2)
    assert house.join() == 3
    house.commit(house.controller.upkeep())
    assert [record.adding for record in house.partitions() if record.adding][-1] == (3,)


def test_a_draft_leaves_the_image_as_it_is() -> None:
    house = House(2)
    house.create("t", replication_factor=2)
    house.serve()
    before = list(house.image.snapshot())
    draft = Draft(house.image)
    draft.add([dataclasses.replace(house.partition(), replicas=(0,), isr=(0,), leader=0)])
    draft.add([BrokerRecord(9, 1), *house.controller.delete_topic(m.DeleteTopicRequest(name="t"))])
    assert draft.image.topics == {} and 9 in draft.image.brokers
    assert draft.image.version == house.image.version + len(draft.records)
    assert list(house.image.snapshot()) == before


# Any history --------------------------------------------------------------------------------------------------------


class Chaos:
    """Random decisions on 1 to 7 brokers; the image is checked after each."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        racks = {broker: self.random.choice(["", "a", "b"]) for broker in range(60)}
        self.house = House(self.random.randint(1, 5), racks=racks)
        self.house.create(OFFSETS_TOPIC, OFFSETS_ID, internal=True, partitions=2)
        self.created = 0
        self.disks: dict[int, str] = {}

    def step(self) -> str:
        house, image = self.house, self.house.image
        before = {(r.topic_id, r.partition): r for r in house.partitions()}
        lives = {b.broker_id: b.incarnation for b in image.brokers.values()}
        said = list(image.snapshot())
        step = self.random.choice([name for name in dir(self) if name.startswith("do_")])
        try:
            getattr(self, step)()
        except RaystreamError:
            assert list(image.snapshot()) == said, f"{step} was refused and changed something"
        for record in house.partitions():
            self.check(record, before.get((record.topic_id, record.partition)))
        for broker in image.brokers.values():
            assert broker.incarnation >= lives.get(broker.broker_id, 0)
            if broker.directory_id:
                assert self.disks.setdefault(broker.broker_id, broker.directory_id) == broker.directory_id
        return step

    def check(self, record: PartitionRecord, before: PartitionRecord | None) -> None:
        image = self.house.image
        topic = image.topics_by_id[record.topic_id]
        wanted = {1, 2, 3} if topic_names.is_internal(topic.name) else {topic.replication_factor}
        assert len(target(record)) in wanted, record
        assert len(set(record.replicas)) == len(record.replicas), record
        assert set(record.isr) | set(record.elr) | set(record.adding) | set(record.removing) <= set(record.replicas)
        assert not set(record.isr) & set(record.elr), record
        assert record.leader == NO_LEADER or record.leader in record.isr, record
        assert not any(image.brokers[broker].fenced for broker in record.isr), record
        held = image.replicas.get(record.topic_id, {})
        assert all(broker in record.replicas for number, broker in held if number == record.partition), record
        if before is not None and before != record:
            assert record.partition_epoch > before.partition_epoch, (before, record)
            assert record.leader_epoch >= before.leader_epoch + (record.leader != before.leader), (before, record)
            assert record.incarnation >= before.incarnation, (before, record)

    def broker(self) -> int:
        return self.random.choice(list(self.house.image.brokers))

    def record(self) -> PartitionRecord:
        return self.random.choice(self.house.partitions())

    def topic(self) -> str:
        return self.random.choice(list(self.house.image.topics))

    def do_join(self) -> None:
        if len(self.house.image.brokers) < 7:
            self.house.join()

    def do_restart(self) -> None:
        self.house.register(self.broker(), clean=self.random.random() < 0.9)

    def do_fence(self) -> None:
        self.house.fence(self.broker())

    def do_hear(self) -> None:
        self.house.hear(self.broker(), **self.random.choice([{}, {"coordinator": ""}]))

    def do_hear_all(self) -> None:
        for broker in self.house.image.brokers.values():
            if broker.directory_id:
                self.house.hear(broker.broker_id)

    def do_drain(self) -> None:
        remove = self.random.random() < 0.4
        self.house.drain(self.broker(), drain=self.random.random() < 0.6, remove=remove)

    def do_create(self) -> None:
        self.created += 1
        factor = self.random.choice([None, 1, 2, 3])
        config = {"min_insync_replicas": self.random.randint(0, 2)}
        self.house.create(
            f"t{self.created}", f"{self.created:032}", partitions=2, replication_factor=factor, config=config
        )

    def do_delete(self) -> None:
        self.house.delete(self.topic())

    def do_alter(self) -> None:
        self.house.alter(
            self.topic(),
            replication_factor=self.random.choice([None, 1, 2, 3]),
            partitions=self.random.choice([None, None, 3]),
            config=self.random.choice([{}, {"min_insync_replicas": self.random.randint(0, 3)}]),
        )

    def do_reassign(self) -> None:
        record = self.record()
        replicas = self.random.sample(list(self.house.image.brokers), len(target(record)))
        topic = self.house.image.topics_by_id[record.topic_id].name
        request = m.ReassignRequest(topic=topic, replicas=((record.partition, tuple(replicas)),))
        self.house.commit(self.house.controller.reassign(request))

    def do_elect(self) -> None:
        request = m.ElectLeadersRequest(unclean=self.random.random() < 0.3)
        self.house.commit(self.house.controller.elect_leaders(request))

    def do_lose_actor(self) -> None:
        record = self.record()
        broker = self.random.choice(record.replicas)
        key = (record.topic_id, record.partition)
        served = self.random.choice([(), ((*key, "successor", ""),), ((*key, "", "broken"),)])
        self.house.change(broker, lost=(key,), served=served)

    def do_serve(self) -> None:
        self.house.serve()

    def do_shrink(self) -> None:
        record = self.record()
        members = [b for b in record.isr if b == record.leader or self.random.random() < 0.5]
        self.house.set_isr(record, *members)

    def do_catch_up(self) -> None:
        self.house.catch_up()

    def do_upkeep(self) -> None:
        self.house.commit(self.house.controller.upkeep())


@pytest.mark.parametrize("seed", range(30))
def test_any_history_keeps_the_rules_and_upkeep_comes_to_an_end(seed: int) -> None:
    chaos = Chaos(seed)
    house = chaos.house
    steps = Counter(chaos.step() for _ in range(250))
    assert len(steps) > 10
    house.keep_up()
    chaos.do_hear_all()
    house.keep_up()
    for record in house.partitions():
        chaos.check(record, None)
        draining = {b.broker_id for b in house.image.brokers.values() if b.draining}
        free = set(balance.able(house.image)) - set(target(record))
        assert record.leader == NO_LEADER or not free or not draining.intersection(target(record)), record
        first = record.replicas[0]
        assert record.leader in (NO_LEADER, first) or first not in record.isr or first in draining, record
    again = MetadataImage()
    for entry in house.log:
        again.replay(from_pair(*to_pair(entry)))
    assert list(again.snapshot()) == list(house.image.snapshot())
