"""Small calls over a thread's own connection."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from raystream import messages as m
from raystream.actors.endpoint import Endpoint
from raystream.actors.pipes import MAX_FRAME_BYTES, MAX_PIPES, Pipes
from raystream.core.replication import Probe, ProbeAnswer
from raystream.errors import ActorLost, FencedLeaderEpoch, RequestTimeout

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")

PROBE = Probe(leader=1, leader_epoch=2, round=3, incarnation=-1, sent_ms=4.5, leader_end_offset=6)
REQUEST = m.ReplicateRequest(topic_id="t", partition=0, request=PROBE)
ANSWER = ProbeAnswer(follower=2, incarnation=1, leader_epoch=2, round=3, end_offset=6, epochs=((0, 0), (2, 5)))


class Follower:
    """Answers as it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, bytes]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.error: Exception | None = None
        self.endpoint = Endpoint("test", {"replicate": self.replicate})

    def replicate(self, request: m.ReplicateRequest, batches: Any) -> Any:
        self.asked.append((request, bytes(batches)))
        self.hold.wait(10)
        if self.error is not None:
            raise self.error
        return ANSWER


@pytest.fixture
def follower() -> Iterator[Follower]:
    made = Follower()
    yield made
    made.hold.set()
    made.endpoint.stop()


@pytest.fixture
def pipes(follower: Follower) -> Iterator[Pipes]:
    assert follower.endpoint.address is not None
    made = Pipes(follower.endpoint.address)
    yield made
    made.close()


Answers = queue.Queue[tuple[Any, Exception | None]]


def ask(pipes: Pipes, answers: Answers, batches: bytes = b"", timeout_ms: float = 5_000) -> bool:
    return pipes.call("replicate", REQUEST, batches, timeout_ms, lambda *answer: answers.put(answer))


def test_requests_of_replication_and_their_answers_travel_whole(follower: Follower, pipes: Pipes) -> None:
    answers: Answers = queue.Queue()
    for _ in range(3):
        assert ask(pipes, answers, b"batches")
        assert answers.get(timeout=5) == (ANSWER, None)
    assert follower.asked == [(REQUEST, b"batches")] * 3


def test_an_error_of_the_other_side_arrives_as_it_is(follower: Follower, pipes: Pipes) -> None:
    follower.error = FencedLeaderEpoch("too old")
    answers: Answers = queue.Queue()
    assert ask(pipes, answers)
    assert isinstance(answers.get(timeout=5)[1], FencedLeaderEpoch)
    follower.error = None
    assert ask(pipes, answers)
    assert answers.get(timeout=5) == (ANSWER, None)


def test_large_calls_and_those_that_find_no_pipe_free_go_another_way(follower: Follower, pipes: Pipes) -> None:
    answers: Answers = queue.Queue()
    assert not ask(pipes, answers, b"x" * MAX_FRAME_BYTES)
    follower.hold.clear()
    assert all(ask(pipes, answers) for _ in range(MAX_PIPES))
    assert not ask(pipes, answers)
    follower.hold.set()
    assert [answers.get(timeout=5) for _ in range(MAX_PIPES)] == [(ANSWER, None)] * MAX_PIPES
    assert ask(pipes, answers)


def test_a_late_answer_is_never_anothers(follower: Follower, pipes: Pipes) -> None:
    follower.hold.clear()
    answers: Answers = queue.Queue()
    assert ask(pipes, answers, timeout_ms=50)
    assert isinstance(answers.get(timeout=5)[1], RequestTimeout)
    follower.hold.set()
    assert ask(pipes, answers)
    assert answers.get(timeout=5) == (ANSWER, None)


def test_an_actor_that_dies_is_lost(follower: Follower, pipes: Pipes) -> None:
    follower.hold.clear()
    answers: Answers = queue.Queue()
    assert ask(pipes, answers)
    follower.endpoint.stop()
    assert isinstance(answers.get(timeout=5)[1], ActorLost)
    assert not ask(pipes, answers)
    assert pipes.lost
