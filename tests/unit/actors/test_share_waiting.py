"""Who waits for a queue's records is awakened by what may bring some, and partitions are watched only meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from raystream import messages as m
from raystream.actors import share_waiting
from raystream.actors.share_waiting import ShareWaiting
from raystream.clock import SystemClock
from raystream.core.coordinator import Coordinator
from raystream.core.records import Decision
from raystream.core.share_groups import Acquired
from tests.fakes.log import FakeCluster, eventually

JOIN = m.ShareHeartbeatRequest(group="w", member_id="a", intent=m.JOIN, topics=("t",), sequence=1)


class House:
    """A coordinator's state behind a lock, with its waiting room."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.state = Coordinator()
        self.lock = threading.Lock()
        self.cluster = cluster
        self.looks = 0
        self.numbers = 1
        self.waiting = ShareWaiting(cluster.routing, cluster.loop, SystemClock(), self.note)
        topic_id = cluster.topics["t"].metadata.topic_id
        self.note(lambda state, now_ms: state.know_topics({"t": topic_id}))
        self.note(lambda state, now_ms: state.share_heartbeat(JOIN, {"t": 1}, now_ms))

    def note(self, operation: Callable[[Coordinator, float], Decision]) -> Any:
        with self.lock:
            decision = operation(self.state, 0.0)
            for record in decision.records:
                self.state.replay(record, 0.0)
            awakened = self.state.shares.awakened()
        self.waiting.wake(awakened)
        return decision.reply

    def acquire(self, wait_ms: int = 3_000, most: int = 10) -> list[tuple[int, int]]:
        self.numbers += 1
        request = m.ShareAcquireRequest(
            group="w",
            member_id="a",
            max_records=most,
            max_wait_ms=wait_ms,
            sequence=self.numbers,
            received=self.numbers - 1,
        )

        def decide() -> Acquired:
            self.looks += 1
            found: Acquired = self.note(lambda state, now_ms: state.shares.acquire(request, now_ms))
            return found

        return [found[2:4] for found in self.waiting.acquire(request, decide).ranges]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t")
        yield cluster


def test_what_is_in_the_log_already_is_found(cluster: FakeCluster) -> None:
    cluster.append("t", [b"a", b"b"])
    assert House(cluster).acquire() == [(0, 2)]


def test_who_waits_gets_what_is_appended(cluster: FakeCluster) -> None:
    house = House(cluster)
    timer = threading.Timer(0.2, cluster.append, ("t", [b"a"]))
    timer.start()
    assert house.acquire() == [(0, 1)]
    assert house.looks < 10, "it does not spin"


def test_who_waits_gets_what_is_released(cluster: FakeCluster) -> None:
    cluster.append("t", [b"a", b"b"])
    house = House(cluster)
    assert house.acquire() == [(0, 2)]
    release = m.ShareAcknowledgeRequest(group="w", member_id="a", ranges=(("t", 0, 1, 2, m.RELEASE, 0),), sequence=1)
    timer = threading.Timer(0.2, house.note, (lambda state, now_ms: state.shares.acknowledge(release, now_ms),))
    timer.start()
    assert house.acquire() == [(1, 2)]


def test_what_retention_took_is_heard_of(cluster: FakeCluster) -> None:
    part = cluster.append("t", [b"a", b"b", b"c"])
    part.start_offset = 2
    house = House(cluster)
    assert house.acquire() == [(2, 3)]
    assert house.state.shares.describe("w", 0).shares[0].lost == 2


def test_a_wait_ends_in_time_with_nothing(cluster: FakeCluster) -> None:
    house = House(cluster)
    begun = time.monotonic()
    assert house.acquire(wait_ms=200) == []
    assert 0.19 < time.monotonic() - begun < 2
    assert house.acquire(wait_ms=0) == []


def test_beyond_the_bound_nobody_waits(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_waiting, "MAX_WAITING", 0)
    begun = time.monotonic()
    assert House(cluster).acquire(wait_ms=1_900) == []
    assert time.monotonic() - begun < 1


def test_a_partition_is_watched_only_while_somebody_waits(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_waiting, "WANTED_MS", 50.0)
    monkeypatch.setattr(share_waiting, "POLL_WAIT_MS", 20)
    house = House(cluster)
    house.acquire(wait_ms=100)
    eventually(lambda: not house.waiting._wanted)
    fetches = len(cluster.topics["t"].partitions[0].fetches)
    assert fetches > 0
    time.sleep(0.2)
    assert len(cluster.topics["t"].partitions[0].fetches) == fetches
    cluster.append("t", [b"a"])
    assert house.acquire() == [(0, 1)]


def test_who_has_waited_longest_wakes_first(cluster: FakeCluster) -> None:
    waiting = House(cluster).waiting
    woken: list[int] = []
    with contextlib.ExitStack() as waiters:
        for number in range(20):
            waiter: Any = waiters.enter_context(waiting._waiter("w"))
            waiter.set = partial(woken.append, number)
        waiting.wake({"w"})
    assert woken == list(range(20))
