"""Commits that nobody waits for: transactions that end while one is committed, together, in order, and failing so."""

from __future__ import annotations

import pytest

from raystream import messages as m
from raystream.client.ended import Ended, together
from raystream.client.producer import Producer
from raystream.client.transactional_producer import TransactionalProducer
from raystream.errors import DeliveryFailed, InvalidRecord, InvalidTransactionState, RequestTimeout
from tests.fakes.cluster import FakeCluster, FakeTopic, refused
from tests.fakes.log import eventually
from tests.fakes.transactions import TransactionalCoordinator, seen


def hold(coordinator: TransactionalCoordinator) -> None:
    """Ends are decided and not complete until `release`."""
    coordinator.markers = False


def release(coordinator: TransactionalCoordinator, cluster: FakeCluster) -> None:
    cluster.on_loop(lambda: release_on_loop(coordinator))


def release_on_loop(coordinator: TransactionalCoordinator) -> None:
    coordinator.markers = True
    coordinator.write_markers()


def test_those_that_end_while_one_is_committed_are_committedtogether_and_in_order(
    producer: Producer, topic: FakeTopic, coordinator: TransactionalCoordinator, cluster: FakeCluster
) -> None:
    hold(coordinator)
    commits = []
    for number in range(10):
        producer.begin_transaction()
        producer.send("t", str(number), partition=0)
        producer.send("t", str(number), partition=1)
        commits.append(producer.commit_transaction(wait=False))
        if number == 0:
            eventually(lambda: "end" in coordinator.calls)
    assert not any(commit.done() for commit in commits) and len(topic.partitions[0].headers) == 1
    release(coordinator, cluster)
    for commit in commits:
        commit.result(10)
    assert seen(topic) == [b"%d" % number for number in range(10)] * 2
    assert coordinator.calls.count("add") == 2, "ten transactions, two at the coordinator"
    epochs = [header.producer_epoch for header in topic.partitions[0].headers if not header.is_control]
    assert epochs == [0, 1]


def test_flush_waits_for_the_commits_on_their_way(producer: Producer, topic: FakeTopic) -> None:
    for number in range(30):
        with producer.transaction(wait=False):
            producer.send("t", str(number), partition=0)
    producer.flush()
    assert seen(topic) == [b"%d" % number for number in range(30)]


def test_closing_and_a_commit_that_is_waited_for_wait_for_those_before(producer: Producer, topic: FakeTopic) -> None:
    for number in range(10):
        with producer.transaction(wait=number % 5 == 4):
            producer.send("t", str(number), partition=0)
        if number % 5 == 4:
            assert len(seen(topic)) == number + 1
    with producer.transaction(wait=False):
        producer.send("t", "last", partition=0)
    producer.close()
    assert seen(topic)[-1] == b"last"


def test_one_that_waits_for_its_turn_and_is_aborted_takes_nothing_with_it(
    producer: Producer, topic: FakeTopic, coordinator: TransactionalCoordinator, cluster: FakeCluster
) -> None:
    hold(coordinator)
    with producer.transaction(wait=False):
        producer.send("t", "a", partition=0)
    with producer.transaction(wait=False):
        producer.send("t", "b", partition=0)
    producer.begin_transaction()
    dropped = producer.send("t", "c", partition=0)
    cluster.on_loop(lambda: cluster.loop.asyncio_loop.call_later(0.2, lambda: release_on_loop(coordinator)))
    producer.abort_transaction()
    assert isinstance(dropped.exception(10), InvalidTransactionState)
    with producer.transaction():
        producer.send("t", "d", partition=0)
    assert seen(topic) == [b"a", b"b", b"d"]
    sent = [header.last_offset_delta + 1 for header in topic.partitions[0].headers if not header.is_control]
    assert sum(sent) == 3, "what was aborted was never sent"


def test_where_one_fails_the_next_call_says_so_and_the_one_after_goes_on(producer: Producer, topic: FakeTopic) -> None:
    topic.partitions[0].faults.append(refused(InvalidRecord("no")))
    producer.begin_transaction()
    producer.send("t", "a", partition=0)
    with pytest.raises(InvalidRecord):
        producer.commit_transaction(wait=False).result(10)
    with pytest.raises(DeliveryFailed, match="no"):
        producer.begin_transaction()
    with producer.transaction():
        producer.send("t", "x", partition=0)
    producer.flush()
    assert seen(topic) == [b"x"]


def test_a_failure_takes_along_those_that_wait_and_the_one_that_is_open(
    producer: Producer, topic: FakeTopic, coordinator: TransactionalCoordinator, cluster: FakeCluster
) -> None:
    hold(coordinator)
    with producer.transaction(wait=False):
        producer.send("t", "a", partition=0)
    eventually(lambda: "end" in coordinator.calls)
    topic.partitions[0].faults.append(refused(InvalidRecord("no")))
    waiting = []
    for number in range(3):
        producer.begin_transaction()
        producer.send("t", str(number), partition=0)
        waiting.append(producer.commit_transaction(wait=False))
    producer.begin_transaction()
    open_too = producer.send("t", "y", partition=1)
    release(coordinator, cluster)
    for commit in waiting:
        with pytest.raises(InvalidRecord):
            commit.result(10)
    assert open_too.exception(10) is not None
    with pytest.raises(DeliveryFailed, match="3 records for t"):
        producer.commit_transaction(wait=False)
    producer.abort_transaction()
    with producer.transaction():
        producer.send("t", "z", partition=1)
    assert seen(topic) == [b"a", b"z"]


def test_a_failure_that_nobody_has_seen_is_told_by_flush_and_by_close(
    producer: Producer, topic: FakeTopic, coordinator: TransactionalCoordinator, cluster: FakeCluster
) -> None:
    assert isinstance(producer, TransactionalProducer)

    def fail_one() -> None:
        topic.partitions[0].faults.append(refused(InvalidRecord("no")))
        with producer.transaction(wait=False):
            producer.send("t", "a", partition=0)
        eventually(lambda: producer._sender.unseen is not None)

    with producer.transaction(wait=False):
        producer.send("t", "fine", partition=0)
    producer.flush()
    fail_one()
    with pytest.raises(DeliveryFailed, match="no"):
        producer.begin_transaction()
    fail_one()
    with pytest.raises(DeliveryFailed, match="no"):
        producer.flush()
    fail_one()
    with pytest.raises((DeliveryFailed, InvalidRecord), match="no"):
        producer.close()
    assert seen(topic) == [b"fine"]


def test_an_unanswered_commit_that_nobody_waited_for_is_asked_for_again(
    producer: Producer,
    topic: FakeTopic,
    coordinator: TransactionalCoordinator,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raystream.client.transactional.COORDINATOR_WAIT_MS", 300.0)
    hold(coordinator)
    with producer.transaction(wait=False):
        producer.send("t", "a", partition=0)
    eventually(lambda: "end" in coordinator.calls)
    producer.begin_transaction()
    producer.send("t", "b", partition=0)
    eventually(lambda: producer._sender.failure is not None)
    with pytest.raises(RequestTimeout):
        producer.commit_transaction(wait=False)
    producer.abort_transaction()
    with pytest.raises(InvalidTransactionState, match="not known whether"):
        producer.begin_transaction()
    release(coordinator, cluster)
    producer.commit_transaction()
    assert seen(topic) == [b"a"]
    with producer.transaction():
        producer.send("t", "c", partition=0)
    assert seen(topic) == [b"a", b"c"]


def test_only_so_many_are_on_their_way(producer: Producer, topic: FakeTopic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raystream.client.transactional_producer.MAX_UNDER_WAY", 3)
    assert isinstance(producer, TransactionalProducer)
    for number in range(50):
        with producer.transaction(wait=False):
            producer.send("t", str(number), partition=0)
        assert len(producer._under_way) <= 3
    producer.flush()
    assert len(seen(topic)) == 50


def test_positions_of_those_that_are_committedtogether_are_the_last_of_each_partition(
    producer: Producer, coordinator: TransactionalCoordinator, cluster: FakeCluster
) -> None:
    def moved(offset: int, epoch: int = 1) -> m.CommitRequest:
        position = m.CommittedOffset(topic="t", partition=0, offset=offset)
        return m.CommitRequest(group="g", member_id="m", member_epoch=epoch, offsets=(position,))

    ended = [Ended(n, (moved(n, epoch),), lambda: None) for n, epoch in ((1, 1), (2, 1), (3, 2))]
    assert together(ended) == (moved(2), moved(3, 2)), "each epoch is checked by itself"
