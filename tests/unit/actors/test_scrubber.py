"""The scrubber of a partition actor, over replicas on disks in memory."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from raystream import messages as m
from raystream.actors import scrubber as scrubbing
from raystream.actors.compaction import Compactor
from raystream.actors.leading import Leading
from raystream.actors.replica import Replica
from raystream.actors.scrubber import Scrubber
from raystream.actors.writer import Ticket
from raystream.config import MIB, SCRUB_BYTES_PER_S, SCRUB_INTERVAL_MS
from raystream.errors import ActorLost, CorruptLog, Unavailable
from raystream.storage.segment import Segment
from tests.fakes.compacting import keyed
from tests.fakes.logs import DIRECTORY, TOPIC_ID
from tests.fakes.replicas import Replicas

VALUE = b"v" * 400_000  # three of them roll a segment


class SmallSegments(Replicas):
    """Replicas whose logs roll at 1 MiB."""

    def spec(self, broker: int) -> m.ReplicaSpec:
        return replace(super().spec(broker), config={"segment_bytes": MIB})


class Elsewhere:
    """The other replicas of a world, and its controller."""

    def __init__(self, world: Replicas, broker: int) -> None:
        self.world = world
        self.broker = broker
        self.asked: list[int] = []
        self.stepped_down = 0
        self.writer_turns = 0
        self.has_nothing = False

    def fetch(self, actor: str, request: m.FetchRequest) -> m.FetchReply:
        self.asked.append(int(actor))
        if {int(actor), self.broker} & self.world.cut_off:
            raise ActorLost("nobody is there")
        reply = self.world.replicas[int(actor)].fetch(request, 0)
        return replace(reply, chunks=()) if self.has_nothing else reply

    def step_down(self, spec: m.ReplicaSpec) -> None:
        self.stepped_down += 1
        others = [broker for broker in spec.isr if broker != spec.broker_id and broker not in self.world.cut_off]
        if self.broker in self.world.cut_off or not others:
            raise ActorLost("nobody is there")
        self.world.elect(others[0])


def scrubber_of(world: Replicas, broker: int, **options: Any) -> tuple[Scrubber, Elsewhere]:
    elsewhere = Elsewhere(world, broker)

    def wait(ms: float) -> bool:
        world.clock.sleep_ms(ms)
        return False

    def on_writer(work: Callable[[], Any]) -> Any:
        elsewhere.writer_turns += 1
        return work()

    def replicas() -> list[Replica]:
        return [world.replicas[broker]] if broker in world.replicas else []

    made = Scrubber(replicas, world.files[broker], world.clock, on_writer, elsewhere, **{"wait": wait, **options})
    made.round()
    return made, elsewhere


def pass_over(world: Replicas, scrubber: Scrubber) -> None:
    """Until the first pass is through."""
    world.clock.advance(scrubbing.FIRST_PASS_WITHIN_MS)
    while scrubber.round():
        pass


@pytest.fixture
def world() -> Replicas:
    made = SmallSegments()
    for _ in range(5):
        made.append(VALUE)
        made.work()
    made.pass_time(1_000)
    assert [replica.log.segment_count for replica in made.replicas.values()] == [3, 3, 3]
    return made


def damage(world: Replicas, broker: int, segment: Segment, position: int = 300_000) -> None:
    content = bytearray(world.files[broker].read(segment.path))
    content[position] ^= 1
    world.files[broker].corrupt(segment.path, bytes(content))


def fetch(world: Replicas, broker: int, offset: int, **fields: Any) -> m.FetchReply:
    request = m.FetchRequest(topic_id=TOPIC_ID, partition=0, offset=offset, max_bytes=1 << 30, **fields)
    return world.replicas[broker].fetch(request, 0)


def same_files(world: Replicas) -> bool:
    names = [name for name in world.files[0].listdir(DIRECTORY) if name.endswith(".log")]
    logs = [[files.read(f"{DIRECTORY}/{name}") for name in names] for files in world.files]
    return logs[0] == logs[1] == logs[2]


@pytest.mark.parametrize("broker", [0, 1])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_pass_finds_damage_and_repairs_it_from_another_replica(
    world: Replicas, broker: int, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    scrubber, elsewhere = scrubber_of(world, broker)
    segment = world.replicas[broker].log.segments[place]
    damage(world, broker, segment)
    with caplog.at_level(logging.WARNING, "raystream.partition"):
        pass_over(world, scrubber)
    assert same_files(world)
    assert world.replicas[broker].damage == ()
    assert "damaged" not in world.files[broker].listdir(DIRECTORY)
    assert elsewhere.stepped_down == 0
    assert elsewhere.writer_turns == (2 if place == -1 else 1)  # a checkpoint, and what others write to
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    assert segment.path in caplog.text and "repaired from" in caplog.text
    world.append(b"on")
    world.work()
    assert [len(world.stored(each)) for each in world.brokers] == [6, 6, 6]


def test_a_follower_asks_the_leader_first_and_the_next_where_that_is_damaged_too(world: Replicas) -> None:
    world.elect(2)
    world.pass_time(1_000)
    scrubber, elsewhere = scrubber_of(world, 1)
    for broker in (2, 1):
        damage(world, broker, world.replicas[broker].log.segments[0])
    pass_over(world, scrubber)
    assert elsewhere.asked == [2, 0]
    assert world.files[1].read(f"{DIRECTORY}/{0:020d}.log") == world.files[0].read(f"{DIRECTORY}/{0:020d}.log")


def test_a_leader_that_cannot_be_repaired_lets_another_lead(world: Replicas) -> None:
    scrubber, elsewhere = scrubber_of(world, 0)
    damage(world, 0, world.replicas[0].log.segments[0])
    elsewhere.has_nothing = True
    pass_over(world, scrubber)
    assert elsewhere.stepped_down == 1 and world.leader == 1
    assert not isinstance(world.replicas[0].role, Leading)
    world.work()
    scrubber.round()
    assert elsewhere.stepped_down == 1  # not before it is time
    world.clock.advance(int(scrubbing.RETRY_MS))
    elsewhere.has_nothing = False
    scrubber.round()
    assert world.replicas[0].damage == () and same_files(world)


def test_damaged_bytes_are_not_served_and_the_others_are(world: Replicas) -> None:
    scrubber, _ = scrubber_of(world, 0)
    segment = world.replicas[0].log.segments[1]
    damage(world, 0, segment, 700_000)  # the second of its two batches
    world.cut_off = {0}
    pass_over(world, scrubber)
    bad = segment.base_offset + 1
    (known,) = world.replicas[0].damage
    assert (known.offset, known.end_offset) == (bad, bad + 1)
    for mapped in (True, False):
        reply = fetch(world, 0, 0, mapped=mapped)
        sizes = [span.length for span in reply.spans] or [len(chunk) for chunk in reply.chunks]
        assert sum(sizes) < 3 * 401_000
        with pytest.raises(Unavailable, match="repaired from another replica"):
            fetch(world, 0, bad, mapped=mapped)
        fetch(world, 0, bad + 1, mapped=mapped)


def test_what_is_known_to_be_damaged_is_known_to_the_next_life(world: Replicas) -> None:
    scrubber, _ = scrubber_of(world, 2)
    damage(world, 2, world.replicas[2].log.segments[-1])
    world.cut_off = {2}
    pass_over(world, scrubber)
    known = world.replicas[2].damage
    assert known
    world.crash(2, random.Random(0))
    world.cut_off = set()
    world.start(2)
    world.announce()
    assert world.replicas[2].damage == known
    assert world.replicas[2].log.end_offset == 5  # never taken for a torn tail
    scrubber, elsewhere = scrubber_of(world, 2)  # looks at once, without waiting for its pass
    assert elsewhere.asked == [0]
    assert world.replicas[2].damage == () and same_files(world)


def test_what_a_reader_stumbles_over_is_looked_at_at_once() -> None:
    world = Replicas()
    for number in range(5):
        world.append(b"%d" % number)
    world.work()
    world.pass_time(1_000)
    scrubber, _ = scrubber_of(world, 1)
    (segment,) = world.replicas[1].log.segments
    second = segment.locate(1)[1]
    damage(world, 1, segment, second + segment.header_at(second).zone_at + 40)
    segment.seal()  # look-ups read headers on the way
    with pytest.raises(CorruptLog) as caught:
        fetch(world, 1, 3, follower=True)
    assert isinstance(scrubber.noticed(world.replicas[1], caught.value), Unavailable)
    scrubber.round()
    assert same_files(world) and fetch(world, 1, 3, follower=True).chunks


def test_what_is_not_committed_yet_is_no_damage(world: Replicas) -> None:
    scrubber, _ = scrubber_of(world, 0)
    world.append(b"not committed")
    segment = world.replicas[0].log.segments[-1]
    damage(world, 0, segment, segment.tail.size - 1)
    pass_over(world, scrubber)
    assert world.replicas[0].damage == ()
    world.work()
    world.clock.advance(SCRUB_INTERVAL_MS)
    scrubber.round()
    assert same_files(world)


def test_a_single_replica_can_only_report(caplog: pytest.LogCaptureFixture) -> None:
    world = Replicas(1)
    world.append(VALUE)
    scrubber, elsewhere = scrubber_of(world, 0)
    replica = world.replicas[0]
    damage(world, 0, replica.log.segments[0])
    pass_over(world, scrubber)
    assert len(replica.damage) == 1 and (elsewhere.asked, elsewhere.stepped_down) == ([], 0)
    assert "is damaged from position" in caplog.text
    with pytest.raises(CorruptLog, match="is damaged from position"):
        fetch(world, 0, 0)
    error = CorruptLog("bad", path=replica.log.segments[0].path)
    assert scrubber.noticed(replica, error) is error
    world.append(b"writes go on")
    assert isinstance(replica.role, Leading)


def test_a_pass_keeps_to_the_rate_and_comes_once_a_day(world: Replicas) -> None:
    scrubber, _ = scrubber_of(world, 0)
    log = world.replicas[0].log
    world.clock.advance(scrubbing.FIRST_PASS_WITHIN_MS)
    for _ in range(2):
        began = world.clock.monotonic_ms()
        scrubber.round()
        took_ms = world.clock.monotonic_ms() - began
        assert took_ms >= 0.98 * log.size_bytes / SCRUB_BYTES_PER_S * 1_000
        scrubber.round()
        assert world.clock.monotonic_ms() == began + took_ms  # nothing is due
        world.clock.advance(SCRUB_INTERVAL_MS)


def test_actors_of_one_disk_take_turns(world: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    scrubber, _ = scrubber_of(world, 0)
    damage(world, 0, world.replicas[0].log.segments[0])
    other = world.files[0].lock(f"data/{scrubbing.LOCK_NAME}")
    pass_over(world, scrubber)
    assert not same_files(world)
    other.release()
    monkeypatch.setattr(scrubbing, "SLICE_BYTES", 1)
    turns = 1
    while scrubber.round():
        turns += 1
        world.files[0].lock(f"data/{scrubbing.LOCK_NAME}").release()
    assert turns == 3 and same_files(world)


def test_a_replica_that_is_closed_meanwhile_is_left_alone(world: Replicas) -> None:
    scrubber, _ = scrubber_of(world, 0)
    replica = world.replicas[0]
    damage(world, 0, replica.log.segments[-1])
    before = world.files[0].read(replica.log.segments[-1].path)
    world.clock.advance(scrubbing.FIRST_PASS_WITHIN_MS)
    replica.close()
    scrubber.round()
    assert world.files[0].read(replica.log.segments[-1].path) == before
    del world.replicas[0]
    assert not scrubber.round()


def test_the_thread_ends_in_the_middle_of_a_pass(world: Replicas) -> None:
    scrubber, _ = scrubber_of(world, 0, bytes_per_s=1_000.0, wait=None)
    world.clock.advance(scrubbing.FIRST_PASS_WITHIN_MS)
    scrubber.start()
    scrubber.stop()
    assert not scrubber._thread.is_alive()


class Compacted(Replicas):
    """Replicas of a compacted topic, of which some compact and others do not."""

    def spec(self, broker: int) -> m.ReplicaSpec:
        return replace(super().spec(broker), config={"segment_bytes": MIB, "cleanup_policy": "compact"})

    def fill(self) -> None:
        for i in range(8):
            leader = self.replicas[self.leader]
            request = m.AppendRequest(topic_id=TOPIC_ID, partition=0, leader_epoch=self.epoch)
            ticket = Ticket(leader.check(request, keyed([(b"k%d" % (i % 3), b"%d" % i + VALUE)])[0]))
            leader.offer(ticket)
            leader.commit()
            self.work()
        self.pass_time(1_000)

    def compact(self, *brokers: int) -> None:
        served = [self.replicas[broker] for broker in brokers]
        assert len(Compactor(lambda: served, self.clock, lambda work: work()).round()) == len(brokers)


def test_what_all_have_compacted_alike_is_repaired() -> None:
    world = Compacted()
    world.fill()
    world.compact(0, 1, 2)
    damage(world, 1, world.replicas[1].log.segments[0])
    scrubber, _ = scrubber_of(world, 1)
    pass_over(world, scrubber)
    assert same_files(world) and world.replicas[1].status().error is None


@pytest.mark.parametrize("compacted", [(1,), (0, 2)])
def test_a_follower_that_was_compacted_otherwise_is_filled_anew(compacted: tuple[int, ...]) -> None:
    world = Compacted()
    world.fill()
    world.compact(*compacted)
    damage(world, 1, world.replicas[1].log.segments[0])
    scrubber, elsewhere = scrubber_of(world, 1)
    pass_over(world, scrubber)
    error = world.replicas[1].status().error
    assert error is not None and error.startswith(m.CORRUPT_LOG) and world.replicas[1].log.segments[0].path in error
    assert elsewhere.stepped_down == 0


def test_a_leader_that_was_compacted_otherwise_lets_another_lead_first() -> None:
    world = Compacted()
    world.fill()
    world.compact(0)
    damage(world, 0, world.replicas[0].log.segments[0])
    scrubber, elsewhere = scrubber_of(world, 0)
    pass_over(world, scrubber)
    assert elsewhere.stepped_down == 1 and world.replicas[0].status().error is None
    world.pass_time(1_000)
    world.clock.advance(int(scrubbing.RETRY_MS))
    scrubber.round()
    assert (world.replicas[0].status().error or "").startswith(m.CORRUPT_LOG)


def test_nobody_is_filled_anew_from_what_is_damaged_itself() -> None:
    world = Compacted()
    world.fill()
    world.compact(1)
    for broker in world.brokers:
        damage(world, broker, world.replicas[broker].log.segments[0])
    scrubber, _ = scrubber_of(world, 1)
    pass_over(world, scrubber)
    assert world.replicas[1].status().error is None
