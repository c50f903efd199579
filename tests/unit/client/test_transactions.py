"""The transactional producer over partitions and a coordinator of plain objects: all or nothing, through lost replies,
refused batches and successors."""

from __future__ import annotations

import pytest

from raystream import messages as m
from raystream.batch import ATTR_TRANSACTIONAL
from raystream.client.ended import Ended
from raystream.client.producer import Producer
from raystream.client.transactional_producer import TransactionalProducer
from raystream.errors import (
    DeliveryFailed,
    FencedProducer,
    InvalidArgument,
    InvalidRecord,
    InvalidTransactionState,
    RequestTimeout,
    TransactionTimedOut,
)
from tests.fakes.cluster import FakeCluster, FakeTopic, lost_reply, lost_request, refused
from tests.fakes.log import eventually
from tests.fakes.transactions import TransactionalCoordinator, seen


def test_what_is_committed_is_seen_as_a_whole(
    producer: Producer, topic: FakeTopic, coordinator: TransactionalCoordinator
) -> None:
    for turn in range(3):
        with producer.transaction():
            for number in range(10):
                producer.send("t", f"{turn}-{number}", partition=number % 2)
            producer.flush()
            assert len(seen(topic)) == 10 * turn
        assert len(seen(topic)) == 10 * (turn + 1)
    headers = [header for partition in topic.partitions for header in partition.headers]
    assert all(header.attributes & ATTR_TRANSACTIONAL for header in headers)
    written = [header for header in topic.partitions[0].headers if not header.is_control]
    assert [header.producer_epoch for header in written if header.base_sequence == 0] == [0, 1, 2]
    assert coordinator.calls.count("init") == 1


def test_both_partitions_are_told_of_in_one_call(producer: Producer, coordinator: TransactionalCoordinator) -> None:
    with producer.transaction():
        producer.send_many("t", [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")])
    assert coordinator.calls == ["init", "add", "end", "end"]


def test_where_records_go_anywhere_the_next_partition_is_written_down_while_they_are_added(
    cluster: FakeCluster, coordinator: TransactionalCoordinator, topic: FakeTopic
) -> None:
    def markers() -> int:
        return sum(header.is_control for partition in topic.partitions for header in partition.headers)

    producer = cluster.producer(transactional_id="tx", linger_ms=60_000)
    with producer.transaction():
        producer.send("t", "a")
    with producer.transaction():
        producer.send("t", "b")
        eventually(lambda: coordinator.calls[-1] == "add")
        assert seen(topic) == [b"a"], "it lingers yet"
        producer.send("t", "c")
    assert seen(topic) != [b"a"] and markers() == 2, "one partition, one marker"
    assert coordinator.calls == ["init", *["add", "end", "end"] * 2]
    for number in range(3):
        with producer.transaction():
            producer.send("t", str(number), partition=0)
    assert markers() <= 6, "a partition that was written down for nothing teaches it"
    assert sorted(seen(topic)) == [b"0", b"1", b"2", b"a", b"b", b"c"]


def test_nothing_leaves_before_its_partition_is_written_down(
    producer: Producer, topic: FakeTopic, coordinator: TransactionalCoordinator
) -> None:
    coordinator.lose.append("add")
    with producer.transaction():
        producer.send("t", "x", partition=0).result(10)
        assert coordinator.calls == ["init", "add", "add"]
    assert seen(topic) == [b"x"]


def test_an_abort_is_seen_by_nobody(producer: Producer, topic: FakeTopic) -> None:
    producer.begin_transaction()
    producer.send("t", "x", partition=0).result(10)
    producer.abort_transaction()
    with producer.transaction():
        producer.send("t", "y", partition=0)
    assert seen(topic) == [b"y"]


def test_a_block_that_raises_aborts_and_lets_the_error_through(producer: Producer, topic: FakeTopic) -> None:
    def fail() -> None:
        with producer.transaction():
            producer.send("t", "x", partition=0).result(10)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert seen(topic) == []


def test_one_in_which_nothing_was_sent_costs_nobody_a_call(
    producer: Producer, coordinator: TransactionalCoordinator
) -> None:
    for _ in range(3):
        with producer.transaction():
            pass
    assert coordinator.calls == ["init"]


# Lost replies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["init", "add", "end"])
def test_a_lost_reply_doubles_and_loses_nothing(
    producer: Producer, topic: FakeTopic, coordinator: TransactionalCoordinator, name: str
) -> None:
    coordinator.lose.append(name)
    for turn in range(3):
        topic.partitions[0].faults.extend([lost_reply(), lost_request()])
        with producer.transaction():
            producer.send("t", str(turn), partition=0)
    assert seen(topic) == [b"0", b"1", b"2"]


def test_an_end_that_is_not_complete_is_asked_for_again(
    producer: Producer, topic: FakeTopic, cluster: FakeCluster, coordinator: TransactionalCoordinator
) -> None:
    coordinator.markers = False

    def later() -> None:
        cluster.loop.asyncio_loop.call_later(0.2, coordinator.write_markers)

    producer.begin_transaction()
    producer.send("t", "x", partition=0).result(10)
    cluster.on_loop(later)
    producer.commit_transaction()
    assert seen(topic) == [b"x"] and coordinator.calls.count("end") > 1


def test_a_commit_whose_outcome_is_unknown_can_be_asked_for_again_and_is_not_aborted(
    producer: Producer, topic: FakeTopic, coordinator: TransactionalCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raystream.client.transactional.COORDINATOR_WAIT_MS", 300.0)
    coordinator.markers = False

    def commit() -> None:
        with producer.transaction():
            producer.send("t", "x", partition=0)

    with pytest.raises(RequestTimeout):
        commit()
    assert seen(topic) == []
    coordinator.markers = True
    producer.commit_transaction()
    assert seen(topic) == [b"x"]
    with producer.transaction():
        producer.send("t", "y", partition=0)
    assert seen(topic) == [b"x", b"y"]


def test_a_commit_of_positions_alone_whose_outcome_is_unknown_is_not_aborted_unasked(
    producer: Producer, coordinator: TransactionalCoordinator, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raystream.client.transactional.COORDINATOR_WAIT_MS", 300.0)
    offsets = (m.CommitRequest(group="g", offsets=(m.CommittedOffset(topic="t", partition=0, offset=7),)),)
    producer.begin_transaction()
    assert isinstance(producer, TransactionalProducer)
    sender = producer._sender
    coordinator.lose.extend(["end"] * 1_000)
    moved: list[str] = []
    number = producer._end_block()
    producer._shut_sinks()
    with pytest.raises(RequestTimeout):
        cluster.loop.run(sender.commit(Ended(number, offsets, lambda: moved.append("moved"))))
    coordinator.lose.clear()
    with pytest.raises(InvalidTransactionState, match="was committed"):
        producer.abort_transaction()
    assert not moved
    producer.commit_transaction()
    assert moved
    with producer.transaction():
        producer.send("t", "x", partition=0)


# Failures -------------------------------------------------------------------------------------------------------------


def test_a_record_that_fails_takes_the_transaction_with_it(
    producer: Producer, topic: FakeTopic, coordinator: TransactionalCoordinator
) -> None:
    def send() -> None:
        with producer.transaction():
            producer.send("t", "a", partition=0).result(10)
            topic.partitions[1].faults.append(refused(InvalidRecord("no")))
            producer.send("t", "b", partition=1)

    with pytest.raises(DeliveryFailed, match="no"):
        send()
    assert seen(topic) == []
    with producer.transaction():
        producer.send("t", "c", partition=1)
    assert seen(topic) == [b"c"]


def test_after_a_failure_nothing_is_sent_and_nothing_committed(producer: Producer, topic: FakeTopic) -> None:
    producer.begin_transaction()
    topic.partitions[0].faults.append(refused(InvalidRecord("no")))
    with pytest.raises(InvalidRecord):
        producer.send("t", "a", partition=0).result(10)
    with pytest.raises(InvalidRecord):
        producer.send("t", "b", partition=1).result(10)
    with pytest.raises(InvalidTransactionState, match="can only be aborted"):
        producer.commit_transaction()
    producer.abort_transaction()
    assert topic.partitions[1].headers == []


def test_a_partition_that_lost_what_it_had_cannot_be_written_to_in_the_same_transaction(
    producer: Producer, topic: FakeTopic
) -> None:
    producer.begin_transaction()
    producer.send("t", "a", partition=0).result(10)
    topic.partitions[0].producers = type(topic.partitions[0].producers)(topic.partitions[0]._clock)
    with pytest.raises(InvalidTransactionState, match="lost what was sent"):
        producer.send("t", "b", partition=0).result(10)
    producer.abort_transaction()


def test_a_successor_fences(producer: Producer, topic: FakeTopic, cluster: FakeCluster) -> None:
    producer.begin_transaction()
    producer.send("t", "a", partition=0).result(10)
    successor = cluster.producer(transactional_id="tx", linger_ms=0)
    with successor.transaction():
        successor.send("t", "b", partition=0)
    with pytest.raises(FencedProducer):
        producer.send("t", "c", partition=0).result(10)
    with pytest.raises(FencedProducer):
        producer.abort_transaction()
    for again in (producer.begin_transaction, producer.commit_transaction, lambda: producer.send("t", "x")):
        with pytest.raises(FencedProducer):
            again()
    assert seen(topic) == [b"b"]


def test_one_that_timed_out_is_aborted_and_its_producer_goes_on(
    producer: Producer, topic: FakeTopic, cluster: FakeCluster, coordinator: TransactionalCoordinator
) -> None:
    producer.begin_transaction()
    producer.send("t", "a", partition=0).result(10)
    now_ms = coordinator._now_ms() + 61_000
    coordinator._now_ms = lambda: now_ms  # type: ignore[method-assign]
    cluster.on_loop(coordinator.expire)
    with pytest.raises(FencedProducer, match="timed out"):
        producer.send("t", "b", partition=0).result(10)
    producer.abort_transaction()
    producer.begin_transaction()
    producer.send("t", "c", partition=0)
    producer.flush()
    now_ms += 61_000
    cluster.on_loop(coordinator.expire)
    with pytest.raises(TransactionTimedOut):
        producer.commit_transaction()
    producer.abort_transaction()
    with producer.transaction():
        producer.send("t", "d", partition=0)
    assert seen(topic) == [b"d"]


def test_closing_aborts_what_is_open(producer: Producer, topic: FakeTopic) -> None:
    producer.begin_transaction()
    producer.send("t", "a", partition=0).result(10)
    producer.close()
    topic_end = topic.partitions[0].headers[-1]
    assert topic_end.is_control and seen(topic) == []


# Bad use --------------------------------------------------------------------------------------------------------------


def test_bad_use_is_a_typed_error(producer: Producer, cluster: FakeCluster) -> None:
    for call in (
        lambda: producer.send("t", "x"),
        lambda: producer.send_many("t", ["x"]),
        producer.commit_transaction,
        producer.abort_transaction,
    ):
        with pytest.raises(InvalidTransactionState, match="no transaction is open"):
            call()
    producer.begin_transaction()
    with pytest.raises(InvalidTransactionState, match="a transaction is open"):
        producer.begin_transaction()
    plain = cluster.producer()
    for name in ("transaction", "begin_transaction", "commit_transaction", "abort_transaction"):
        with pytest.raises(InvalidTransactionState, match="transactional_id"):
            getattr(plain, name)()
    for bad in ("", 7):
        with pytest.raises(InvalidArgument, match="is no name"):
            cluster.producer(transactional_id=bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="acks"):
        cluster.producer(transactional_id="x", acks=1)
