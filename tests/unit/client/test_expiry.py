"""What a record that was not acknowledged in time says of itself: nothing was written, or nobody knows."""

from __future__ import annotations

import pickle
import time

import pytest

from raystream.errors import DeliveryTimeout, DiskFull, NotEnoughReplicas, NotLeader, RaystreamError
from tests.fakes.cluster import FakeCluster, Fault, lost_reply, lost_request, refused

WAIT_S = 20


def test_a_record_that_expires_says_whether_it_may_be_there(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 2)
    topic.partitions[0].fault = lambda _: refused(NotLeader("nobody leads"))
    topic.partitions[1].fault = lambda _: lost_request()
    producer = cluster.producer(delivery_timeout_ms=200)
    with pytest.raises(DeliveryTimeout, match=r"nothing of it was written.*nobody leads") as refusals:
        producer.send("t", b"x", partition=0).result(WAIT_S)
    assert refusals.value.retriable
    with pytest.raises(DeliveryTimeout, match="unknown") as lost:
        producer.send("t", b"x", partition=1).result(WAIT_S)
    assert not lost.value.retriable


@pytest.mark.parametrize("error", [NotEnoughReplicas("1 replica is in sync"), DiskFull("no room")], ids=str)
def test_refusals_that_wrote_nothing_leave_a_record_that_can_be_sent_again(
    cluster: FakeCluster, error: RaystreamError
) -> None:
    topic = cluster.create()
    topic.partitions[0].fault = lambda _: refused(error)
    producer = cluster.producer(delivery_timeout_ms=200, linger_ms=0)
    first = producer.send("t", b"x")
    deadline = time.monotonic() + WAIT_S
    while not topic.partitions[0].requests and time.monotonic() < deadline:
        time.sleep(0.001)
    late = producer.send("t", b"y")  # waits behind the first
    for sent in (first, late):
        failure = sent.exception(WAIT_S)
        assert isinstance(failure, DeliveryTimeout)
        assert "nothing of it was written" in str(failure) and str(error) in str(failure)
        assert failure.retriable and pickle.loads(pickle.dumps(failure)).retriable
    assert first.exception(0).__cause__ is error  # type: ignore[union-attr]
    topic.partitions[0].fault = None
    assert producer.send("t", b"x").result(WAIT_S).offset == 0
    assert topic.column() == [b"x"]


@pytest.mark.parametrize("error", [NotEnoughReplicas("1 replica is in sync"), DiskFull("no room")], ids=str)
def test_a_lost_answer_before_the_refusals_leaves_it_unknown(cluster: FakeCluster, error: RaystreamError) -> None:
    topic = cluster.create()
    topic.partitions[0].faults.append(lost_reply())
    topic.partitions[0].fault = lambda _: refused(error)
    producer = cluster.producer(delivery_timeout_ms=200, linger_ms=0)
    failure = producer.send("t", b"x").exception(WAIT_S)
    assert isinstance(failure, DeliveryTimeout) and not failure.retriable
    assert "unknown" in str(failure) and failure.__cause__ is error
    assert topic.column() == [b"x"]


def test_the_last_moments_are_not_spent_on_a_try_that_would_hardly_be_answered(cluster: FakeCluster) -> None:
    """A refusal that takes a while: a try begun just before the deadline would go unanswered."""
    topic = cluster.create()
    topic.partitions[0].fault = lambda _: Fault(before=NotEnoughReplicas("1 replica is in sync"), delay_ms=8)
    producer = cluster.producer(delivery_timeout_ms=150, linger_ms=0)
    for _ in range(5):
        failure = producer.send("t", b"x").exception(WAIT_S)
        assert failure is not None and "nothing of it was written" in str(failure)
