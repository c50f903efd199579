"""Exactly once: lost requests, lost replies, late arrivals, refusals, expiry. And who hears of failures."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from typing import Any

import pytest

from raystream.batch import BatchHeader
from raystream.errors import (
    ActorLost,
    Closed,
    ClusterGone,
    CoordinatorNotAvailable,
    CorruptBatch,
    DeliveryFailed,
    DeliveryTimeout,
    FencedProducer,
    InvalidRecord,
    NotLeader,
    OutOfOrderSequence,
    Overloaded,
    RecordTooLarge,
    RequestTimeout,
    StorageError,
    TopicNotFound,
    UnknownProducer,
)
from tests.fakes.cluster import FakeCluster, FakePartition, FakeTopic, Fault, lost_reply, lost_request, refused

WAIT_S = 20


def part(topic: FakeTopic) -> FakePartition:
    return topic.partitions[0]


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(
    "fault",
    [
        lost_request(),
        lost_reply(),
        refused(NotLeader("moved")),
        refused(Overloaded("full")),
        refused(StorageError("fsync failed")),
        refused(Closed("the actor is stopping")),
        Fault(after=ActorLost("died after it wrote")),
        Fault(late=True, delay_ms=50),
        Fault(delay_ms=30),
    ],
    ids=lambda fault: f"{fault.before or fault.after or ('late' if fault.late else 'slow')}",
)
def test_one_fault_neither_loses_nor_doubles(cluster: FakeCluster, fault: Fault) -> None:
    topic = cluster.create()
    part(topic).faults.append(fault)
    producer = cluster.producer(linger_ms=0)
    first = producer.send("t", b"first")
    second = producer.send("t", b"second")
    assert (first.result(WAIT_S).offset, second.result(WAIT_S).offset) == (0, 1)
    assert topic.column() == [b"first", b"second"]


def test_a_retry_sends_the_same_bytes_and_its_age(cluster: FakeCluster) -> None:
    topic = cluster.create()
    part(topic).faults.extend([lost_reply(), lost_reply()])
    producer = cluster.producer()
    producer.send("t", b"x").result(WAIT_S)
    ages = [request.age_ms for request in part(topic).requests]
    assert len(ages) == 3
    assert ages[0] == 0 < ages[1] < ages[2]
    assert producer.stats.retries == 2
    assert topic.column() == [b"x"]


def test_the_verdict_of_a_leader_whose_epoch_is_over_is_not_taken(cluster: FakeCluster) -> None:
    """It lacks what its successor has acknowledged. Sent anew in another producer epoch the batch would stand twice."""
    topic = cluster.create()
    partition = part(topic)
    partition.placed.leader_epoch = 7
    producer = cluster.producer(linger_ms=0)
    producer.send("t", b"first").result(WAIT_S)

    def fault(_: BatchHeader) -> Fault | None:
        number = len(partition.requests)
        partition.placed.leader_epoch = 5 if number == 2 else 7  # 5 as a broker has it that is cut off
        return {2: lost_reply(), 3: refused(OutOfOrderSequence("a gap"))}.get(number)

    partition.fault = fault
    assert producer.send("t", b"second").result(WAIT_S).offset == 1
    assert [request.leader_epoch for request in partition.requests] == [7, 7, 5, 7]
    assert topic.column() == [b"first", b"second"]


@pytest.mark.parametrize("seed", range(5))
def test_random_faults_with_five_in_flight(cluster: FakeCluster, seed: int) -> None:
    """Every record once, in order, whatever is lost, late or refused."""
    rng = random.Random(seed)
    topic = cluster.create("t", 2)

    def fault(_: BatchHeader) -> Fault | None:
        return rng.choice(
            [
                *[None] * 6,
                Fault(delay_ms=rng.random() * 20),
                Fault(late=True, delay_ms=rng.random() * 40),
                lost_request(),
                lost_reply(),
                refused(NotLeader("moved")),
                Fault(after=ActorLost("died"), delay_ms=rng.random() * 10),
            ]
        )

    for partition in topic.partitions:
        partition.fault = fault
    producer = cluster.producer(linger_ms=0, max_batch_bytes=2048)
    sent = []
    for number in range(200):
        sent.append(producer.send("t", str(number).encode().ljust(200), partition=number % 2))
        if rng.random() < 0.05:
            time.sleep(0.002)
    producer.flush(WAIT_S)
    for number, partition in enumerate(topic.partitions):
        values = [int(value) for value in partition.column()]
        assert values == list(range(number, 200, 2))
    for number, one in enumerate(sent):
        where = one.result(0)
        assert int(topic.partitions[where.partition].column()[where.offset]) == number


# Giving up ------------------------------------------------------------------------------------------------------------


def test_after_an_expiry_the_epoch_is_raised_and_late_tries_are_barred(cluster: FakeCluster) -> None:
    topic = cluster.create()
    gate: asyncio.Event = cluster.on_loop(asyncio.Event)
    part(topic).fault = lambda header: Fault(late=True, gate=gate) if header.producer_epoch == 0 else None
    producer = cluster.producer(delivery_timeout_ms=300, linger_ms=0)
    lost = producer.send("t", b"lost")
    assert isinstance(lost.exception(WAIT_S), DeliveryTimeout)
    producer.send("t", b"after").result(WAIT_S)
    cluster.on_loop(gate.set)
    assert producer.send("t", b"last").result(WAIT_S).offset == 1
    wait_until(lambda: not part(topic)._late)
    assert topic.column() == [b"after", b"last"]
    assert [h.producer_epoch for h in part(topic).headers] == [1, 1]
    assert [h.base_sequence for h in part(topic).headers] == [0, 1]
    assert cluster.coordinator_port.handed_out == 1


def test_what_is_in_flight_behind_an_expired_batch_is_never_doubled(cluster: FakeCluster) -> None:
    """The first of three batches expires unanswered; the others, refused as out of order, are encoded again."""
    topic = cluster.create()
    part(topic).fault = lambda h: lost_request() if (h.producer_epoch, h.base_sequence) == (0, 0) else None
    producer = cluster.producer(delivery_timeout_ms=400, max_batch_bytes=1 << 20, linger_ms=0)
    first = producer.send("t", b"0".ljust(1_000_000))
    wait_until(lambda: part(topic).requests)
    time.sleep(0.2)
    rest = [producer.send("t", str(n).encode().ljust(1_000_000)) for n in range(1, 4)]
    assert isinstance(first.exception(WAIT_S), DeliveryTimeout)
    outcomes = [one.exception(WAIT_S) for one in rest]
    assert outcomes == [None, None, None]
    assert [int(value) for value in topic.column()] == [1, 2, 3]


@pytest.mark.parametrize(
    "error",
    [
        RecordTooLarge("too large"),
        InvalidRecord("bad"),
        CorruptBatch("damaged"),
        ValueError("a bug"),
        ClusterGone("gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_for_good_fails_that_batch_and_the_next_goes_on(cluster: FakeCluster, error: Exception) -> None:
    topic = cluster.create()
    producer = cluster.producer(linger_ms=0)
    producer.send("t", b"before").result(WAIT_S)
    part(topic).faults.append(refused(error))
    with pytest.raises(type(error), match=str(error)):
        producer.send("t", b"bad").result(WAIT_S)
    assert producer.send("t", b"after").result(WAIT_S).offset == 1
    assert topic.column() == [b"before", b"after"]


@pytest.mark.parametrize(
    ("error", "identity"), [(UnknownProducer("forgotten"), (1, 1)), (FencedProducer("taken over"), (2, 0))]
)
def test_a_lost_identity_is_renewed_and_nothing_is_lost(
    cluster: FakeCluster, error: Exception, identity: tuple[int, int]
) -> None:
    topic = cluster.create()
    producer = cluster.producer(linger_ms=0)
    producer.send("t", b"before").result(WAIT_S)
    part(topic).faults.append(refused(error))
    assert producer.send("t", b"x").result(WAIT_S).offset == 1
    assert topic.column() == [b"before", b"x"]
    assert [(h.producer_id, h.producer_epoch) for h in part(topic).headers] == [(1, 0), identity]


def test_a_lost_identity_with_an_unknown_outcome_fails_the_batch(cluster: FakeCluster) -> None:
    topic = cluster.create()
    part(topic).faults.extend([Fault(late=True, delay_ms=10_000), refused(UnknownProducer("forgotten"))])
    producer = cluster.producer(linger_ms=0)
    with pytest.raises(UnknownProducer):
        producer.send("t", b"x").result(WAIT_S)
    assert producer.send("t", b"y").result(WAIT_S).offset == 0


def test_a_partition_that_lost_acknowledged_records_takes_new_ones(cluster: FakeCluster) -> None:
    """As after a power cut under flush="os": the sequence that comes next is unknown there."""
    topic = cluster.create()
    producer = cluster.producer(linger_ms=0)
    producer.send("t", b"lost later").result(WAIT_S)
    part(topic).producers = type(part(topic).producers)(cluster.clock)
    assert producer.send("t", b"x").result(WAIT_S).offset == 1
    assert part(topic).headers[-1].producer_epoch == 1


def test_no_leader_for_a_while(cluster: FakeCluster) -> None:
    topic = cluster.create()
    producer = cluster.producer(linger_ms=0)
    topic.offline.add(0)
    sent = producer.send("t", b"x")
    with pytest.raises(RequestTimeout):
        sent.result(0.1)
    topic.offline.clear()
    assert sent.result(WAIT_S).offset == 0


def test_records_without_a_key_avoid_a_partition_that_nobody_leads(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 2)
    topic.offline.add(0)
    producer = cluster.producer(linger_ms=0)
    assert {producer.send("t", b"x").result(WAIT_S).partition for _ in range(5)} == {1}


def test_the_coordinator_is_away_for_a_while(cluster: FakeCluster) -> None:
    cluster.create()
    cluster.coordinator_port.errors.extend([CoordinatorNotAvailable("starting"), ActorLost("died")])
    assert cluster.producer().send("t", b"x").result(WAIT_S).offset == 0


def test_the_coordinator_is_away_for_good(cluster: FakeCluster) -> None:
    cluster.create()
    cluster.coordinator_port.down = CoordinatorNotAvailable("starting")
    producer = cluster.producer(delivery_timeout_ms=200)
    with pytest.raises(DeliveryTimeout, match="nothing of it was written"):
        producer.send("t", b"x").result(WAIT_S)
    cluster.coordinator_port.down = ClusterGone("gone")
    with pytest.raises(ClusterGone):
        producer.send("t", b"x").result(WAIT_S)
    cluster.coordinator_port.down = None
    assert producer.send("t", b"x").result(WAIT_S).offset == 0


def test_a_topic_that_is_deleted_and_created_anew(cluster: FakeCluster) -> None:
    old = cluster.create()
    producer = cluster.producer(linger_ms=0)
    producer.send("t", b"old").result(WAIT_S)
    new = cluster.create()
    with pytest.raises(TopicNotFound, match="created anew"):
        producer.send("t", b"lost").result(WAIT_S)
    assert producer.send("t", b"new").result(WAIT_S).offset == 0
    assert (old.column(), new.column()) == ([b"old"], [b"new"])


def test_a_topic_that_is_deleted(cluster: FakeCluster) -> None:
    cluster.create()
    producer = cluster.producer(linger_ms=0)
    producer.send("t", b"old").result(WAIT_S)
    del cluster.topics["t"]
    with pytest.raises(TopicNotFound):
        producer.send("t", b"lost").result(WAIT_S)
    with pytest.raises(TopicNotFound, match="create_topic"):
        producer.send("t", b"refused")


def test_the_loop_ends_under_the_producer(cluster: FakeCluster) -> None:
    topic = cluster.create()
    part(topic).fault = lambda _: Fault(delay_ms=60_000)
    producer = cluster.producer(linger_ms=0)
    sent = [producer.send("t", b"x" * 1000) for _ in range(100)]
    wait_until(lambda: part(topic).requests)
    cluster.loop.stop()
    with pytest.raises(Closed):
        sent[0].result(WAIT_S)
    with pytest.raises(Closed):
        producer.send("t", b"x")


# Who hears of failures ------------------------------------------------------------------------------------------------


def test_failures_nobody_saw_are_raised_once(cluster: FakeCluster) -> None:
    topic = cluster.create()
    producer = cluster.producer()
    part(topic).faults.append(refused(InvalidRecord("bad")))
    producer.send_many("t", ["a", "b", "c"])
    with pytest.raises(DeliveryFailed, match=r"3 records for t.*InvalidRecord: bad") as raised:
        producer.flush(WAIT_S)
    ((name, partition, count, error),) = raised.value.failures
    assert (name, partition, count) == ("t", 0, 3)
    assert isinstance(error, InvalidRecord)
    producer.flush(WAIT_S)
    producer.close()


def test_failures_that_were_seen_are_not_raised(cluster: FakeCluster) -> None:
    topic = cluster.create()
    producer = cluster.producer()
    part(topic).faults.append(refused(InvalidRecord("bad")))
    a, b, c, d = producer.send_many("t", ["a", "b", "c", "d"])
    b.add_done_callback(lambda _: None)
    assert isinstance(a.exception(WAIT_S), InvalidRecord)
    assert isinstance(a.exception(WAIT_S), InvalidRecord)
    with pytest.raises(InvalidRecord):
        asyncio.run(_awaited(c))
    with pytest.raises(DeliveryFailed, match=r"^1 record for t"):
        producer.flush(WAIT_S)
    assert isinstance(d.exception(WAIT_S), InvalidRecord)
    producer.flush(WAIT_S)


async def _awaited(sent: Any) -> Any:
    return await sent


def test_leaving_with_raises_failures(cluster: FakeCluster) -> None:
    topic = cluster.create()
    part(topic).faults.append(refused(InvalidRecord("bad")))
    with pytest.raises(DeliveryFailed), cluster.producer() as producer:
        producer.send("t", b"x")


def test_an_exception_on_its_way_is_not_hidden(cluster: FakeCluster) -> None:
    topic = cluster.create()
    part(topic).faults.append(refused(InvalidRecord("bad")))

    def use() -> None:
        with cluster.producer() as producer:
            producer.send("t", b"x")
            raise KeyError("the user's")

    with pytest.raises(KeyError) as raised:
        use()
    assert any("1 record for t" in note for note in raised.value.__notes__)


# The end of the process -----------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from tests.fakes.cluster import FakeCluster, Fault
from raystream.client import producer as module
cluster = FakeCluster()
topic = cluster.create()
{setup}
producer = cluster.producer(linger_ms=60_000)
for number in range(1_000):
    producer.send("t", b"x" * 1000)
import atexit
module.atexit.unregister(module._deliver_at_exit)
atexit.register(lambda: print(topic.partitions[0].end_offset))
atexit.register(module._deliver_at_exit)
{end}
"""


def run(**parts: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(**{"setup": "", "end": "", **parts})],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


def test_a_producer_that_was_not_closed_delivers_at_exit() -> None:
    done = run()
    assert (done.stdout, done.stderr, done.returncode) == ("1000\n", "", 0)


def test_a_producer_that_was_not_closed_delivers_after_an_exception() -> None:
    done = run(end="1 / 0")
    assert done.stdout == "1000\n"
    assert "raystream" not in done.stderr.replace("ZeroDivisionError", "")


def test_a_producer_that_cannot_deliver_at_exit_says_what_it_lost() -> None:
    done = run(
        setup="module.EXIT_WAIT_S = 0.3; topic.partitions[0].fault = lambda _: Fault(delay_ms=60_000)",
    )
    assert "1,000 of its records were not delivered" in done.stderr


def test_a_forked_child_is_told(cluster: FakeCluster) -> None:
    cluster.create()
    producer = cluster.producer()
    producer.send("t", b"x").result(WAIT_S)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            producer.send("t", b"x")
        except Closed as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    assert b"forked" in os.read(read, 1000)
    os.close(read)
    producer.send("t", b"x").result(WAIT_S)


def test_out_of_order_forever_ends_in_a_timeout_or_a_new_epoch(cluster: FakeCluster) -> None:
    topic = cluster.create()
    part(topic).faults.extend(refused(OutOfOrderSequence("gap")) for _ in range(3))
    producer = cluster.producer(linger_ms=0)
    assert producer.send("t", b"x").result(WAIT_S).offset == 0
    assert part(topic).headers[0].producer_epoch == 3
    assert part(topic).headers[0].base_sequence == 0


@pytest.mark.parametrize("seed", range(3))
def test_random_faults_with_expiry(cluster: FakeCluster, seed: int) -> None:
    """What is acknowledged stands where it says, once; what expired "not in the log" is not there, "unknown" at most
    once; order holds among all that is there."""
    rng = random.Random(seed)
    topic = cluster.create("t", 2)

    def fault(_: BatchHeader) -> Fault | None:
        return rng.choice(
            [
                *[None] * 3,
                Fault(delay_ms=rng.random() * 60),
                Fault(late=True, delay_ms=rng.random() * 300),
                Fault(late=True, delay_ms=rng.random() * 30),
                lost_request(),
                lost_reply(),
                refused(NotLeader("moved")),
                refused(UnknownProducer("forgotten")) if rng.random() < 0.2 else None,
                refused(InvalidRecord("bad")) if rng.random() < 0.2 else None,
            ]
        )

    for partition in topic.partitions:
        partition.fault = fault
    producer = cluster.producer(linger_ms=0, max_batch_bytes=2048, delivery_timeout_ms=150, request_timeout_ms=100)
    sent = []
    for number in range(300):
        sent.append(producer.send("t", str(number).encode().ljust(200), partition=number % 2))
        if rng.random() < 0.1:
            time.sleep(0.005)
    outcomes = [one.exception(WAIT_S) for one in sent]
    wait_until(lambda: not any(partition._late for partition in topic.partitions))
    logs = [[int(value) for value in partition.column()] for partition in topic.partitions]
    for log in logs:
        assert log == sorted(set(log))
    for number, (one, error) in enumerate(zip(sent, outcomes, strict=True)):
        if error is None:
            assert logs[number % 2][one.result(0).offset] == number
        elif "not in the log" in str(error):
            assert number not in logs[number % 2]
    assert producer.stats.buffered_bytes == 0
