"""Commits that nobody waits for: transactions that end while one is committed, together, in order, and failing so."""

from __future__ import annotations

import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any
from unittest.mock import Mock, call

import pyarrow as pa
import pytest

from raystream import messages as m
from raystream.client.ended import Ended, together
from raystream.client.producer import Producer
from raystream.client.transactional_producer import TransactionalProducer
from raystream.errors import (
    DeliveryFailed,
    FencedMember,
    InvalidArgument,
    InvalidRecord,
    InvalidTransactionState,
    RequestTimeout,
    TopicNotFound,
)
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


@pytest.fixture
def unanswered(coordinator: TransactionalCoordinator, monkeypatch: pytest.MonkeyPatch) -> TransactionalCoordinator:
    """Ends are not complete until `release`, and nobody waits for long."""
    monkeypatch.setattr("raystream.client.transactional.COORDINATOR_WAIT_MS", 300.0)
    hold(coordinator)
    return coordinator


def test_those_that_end_while_one_is_committed_are_committed_together_and_in_order(
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
    producer: Producer, topic: FakeTopic, unanswered: TransactionalCoordinator, cluster: FakeCluster
) -> None:
    with producer.transaction(wait=False):
        producer.send("t", "a", partition=0)
    eventually(lambda: "end" in unanswered.calls)
    producer.begin_transaction()
    producer.send("t", "b", partition=0)
    eventually(lambda: producer._sender.failure is not None)
    with pytest.raises(RequestTimeout):
        producer.commit_transaction(wait=False)
    producer.abort_transaction()
    with pytest.raises(InvalidTransactionState, match="not known whether"):
        producer.begin_transaction()
    release(unanswered, cluster)
    producer.commit_transaction()
    assert seen(topic) == [b"a"]
    with producer.transaction():
        producer.send("t", "c", partition=0)
    assert seen(topic) == [b"a", b"c"]


def test_only_so_many_are_on_their_way(
    producer: Producer,
    topic: FakeTopic,
    coordinator: TransactionalCoordinator,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raystream.client.transactional_producer.MAX_UNDER_WAY", 3)
    hold(coordinator)
    begun: list[int] = []

    def work() -> None:
        for number in range(5):
            with producer.transaction(wait=False):
                producer.send("t", str(number), partition=0)
            begun.append(number)

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: len(begun) == 3)
    time.sleep(0.2)
    assert begun == [0, 1, 2], "the next one waits for the first of them"
    release(coordinator, cluster)
    thread.join(10)
    producer.flush()
    assert seen(topic) == [b"0", b"1", b"2", b"3", b"4"]


def test_wait_is_a_yes_or_a_no(producer: Producer) -> None:
    no: Any = "no"
    with pytest.raises(InvalidArgument, match="wait='no' is neither True nor False"), producer.transaction(wait=no):
        pass
    producer.begin_transaction()
    with pytest.raises(InvalidArgument, match="wait='no'"):
        producer.commit_transaction(wait=no)
    producer.abort_transaction()


def test_positions_of_those_that_are_committed_together_are_the_last_of_each_partition() -> None:
    def moved(offset: int, epoch: int = 1) -> m.CommitRequest:
        position = m.CommittedOffset(topic="t", partition=0, offset=offset)
        return m.CommitRequest(group="g", member_id="m", member_epoch=epoch, offsets=(position,))

    ended = [Ended(n, (moved(n, epoch),), lambda: None) for n, epoch in ((1, 1), (2, 1), (3, 2))]
    assert together(ended) == (moved(2), moved(3, 2)), "each epoch is checked by itself"


# What reviews have found ----------------------------------------------------------------------------------------------


def test_what_ended_behind_an_unanswered_commit_is_known_not_to_be_committed(
    producer: Producer, topic: FakeTopic, unanswered: TransactionalCoordinator, cluster: FakeCluster
) -> None:
    commits = []
    for number in range(2):
        producer.begin_transaction()
        producer.send("t", str(number), partition=0)
        commits.append(producer.commit_transaction(wait=False))
        eventually(lambda: "end" in unanswered.calls)
    with pytest.raises(RequestTimeout):
        commits[0].result(10)
    with pytest.raises(InvalidTransactionState, match="not committed: nobody knows whether the one before it is"):
        commits[1].result(10)
    release(unanswered, cluster)
    producer.commit_transaction()
    assert seen(topic) == [b"0"]
    with pytest.raises(DeliveryFailed, match="1 record for t could not be delivered"):
        producer.begin_transaction()
    with producer.transaction():
        producer.send("t", "2", partition=0)
    assert seen(topic) == [b"0", b"2"]


def test_an_answer_that_was_asked_for_again_is_no_news_later(
    producer: Producer, topic: FakeTopic, unanswered: TransactionalCoordinator, cluster: FakeCluster
) -> None:
    producer.begin_transaction()
    producer.send("t", "a", partition=0)
    with pytest.raises(RequestTimeout):
        producer.commit_transaction(wait=False).result(10)
    release(unanswered, cluster)
    producer.commit_transaction()
    with producer.transaction():
        producer.send("t", "b", partition=0)
    assert seen(topic) == [b"a", b"b"]


def test_aborting_in_the_midst_of_sending_leaves_nothing_unsettled(cluster: FakeCluster, topic: FakeTopic) -> None:
    TransactionalCoordinator(cluster)
    producer = cluster.producer(transactional_id="tx", linger_ms=0)
    for turn in range(60):
        producer.begin_transaction()
        for _ in range(50):
            producer.send("t", b"x" * 100, partition=0)
        time.sleep(turn % 20 / 10_000)
        for _ in range(20):
            producer.send("t", b"x" * 100, partition=0)
        producer.abort_transaction()
    assert producer._ledger.wait_settled(producer._ledger.unsettled(), time.monotonic() + 5) == 0
    assert seen(topic) == []


def test_a_frame_whose_topic_vanishes_does_not_stop_the_next_transaction(
    producer: Producer, topic: FakeTopic, cluster: FakeCluster
) -> None:
    other = cluster.create("other")

    def rows(value: bytes) -> pa.RecordBatch:
        return pa.record_batch([pa.array([value], pa.binary())], names=["value"])

    def slices() -> Iterator[pa.RecordBatch]:
        yield rows(b"1")
        sink = producer._sender.sinks["other"]
        cluster.on_loop(lambda: producer._sender._lose(sink, TopicNotFound("gone")))
        yield rows(b"2")

    def send() -> None:
        with producer.transaction():
            producer.send_frame("other", pa.RecordBatchReader.from_batches(rows(b"").schema, slices()))

    with pytest.raises(DeliveryFailed, match="gone"):
        send()
    with producer.transaction():
        producer.send("t", "x", partition=0)
    assert seen(topic) == [b"x"] and seen(other) == []


def test_a_commit_that_is_waited_for_lingers_for_nobody(cluster: FakeCluster, topic: FakeTopic) -> None:
    TransactionalCoordinator(cluster)
    producer = cluster.producer(transactional_id="tx", linger_ms=60_000)

    def work() -> None:
        for wait in (False, True):
            with producer.transaction(wait=wait):
                producer.send("t", "x", partition=0)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and seen(topic) == [b"x", b"x"]


@pytest.mark.parametrize("wait", [True, False])
def test_the_consumer_hears_of_the_positions_once_they_are_committed(
    producer: Producer, coordinator: TransactionalCoordinator, cluster: FakeCluster, *, wait: bool
) -> None:
    request = m.CommitRequest(group="g", offsets=(m.CommittedOffset(topic="t", partition=0, offset=7),))
    consumer = Mock(offsets_for_transaction=lambda batch: request)
    if not wait:
        hold(coordinator)
    with producer.transaction(wait=wait):
        producer.send("t", "x", partition=0)
        producer.commit_offsets(consumer)
    if not wait:
        assert consumer.committed_elsewhere.call_args_list == []
        release(coordinator, cluster)
        producer.flush()
    assert consumer.committed_elsewhere.call_args_list == [call(request)]


def test_an_interrupt_before_an_end_is_on_its_way_leaves_the_transaction_open(
    producer: Producer, topic: FakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(work: Coroutine[Any, Any, Any]) -> Any:
        monkeypatch.undo()
        work.close()
        raise KeyboardInterrupt

    def send(value: str) -> None:
        with producer.transaction(wait=False):
            producer.send("t", value, partition=0).result(10)
            monkeypatch.setattr(producer._loop, "submit", interrupted)

    with pytest.raises(KeyboardInterrupt):
        send("a")
    with producer.transaction():
        producer.send("t", "b", partition=0)
    assert seen(topic) == [b"b"]


def test_an_exit_tells_of_a_commit_that_failed(
    producer: Producer, coordinator: TransactionalCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(request: m.EndTransactionRequest, *, timeout_ms: float) -> m.EndTransactionReply:
        raise FencedMember("another has it")

    monkeypatch.setattr(coordinator, "end_transaction", refuse)
    with producer.transaction(wait=False):
        producer.send("t", "a", partition=0)
    said = producer._deliver_at_exit(time.monotonic() + 5)
    assert said == "raystream: a producer was not closed, and its last transaction failed: another has it"
