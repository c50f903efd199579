"""Small calls over a thread's own connection."""

from __future__ import annotations

import os
import queue
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raystream import messages as m
from raystream.actors import wire
from raystream.actors.endpoint import Endpoint, connect
from raystream.actors.pipes import MAX_FRAME_BYTES, MAX_PIPES, Pipes, _Pipe
from raystream.core.replication import Probe, ProbeAnswer
from raystream.errors import ActorLost, FencedLeaderEpoch, OffsetOutOfRange, RequestTimeout, StorageError
from raystream.messages import Span
from raystream.storage.files import DiskFiles
from raystream.storage.stored import Stored

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


def ask(pipes: Pipes, answers: Answers, batches: bytes | Stored = b"", timeout_ms: float = 5_000) -> bool:
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


def stored(path: Path, *lengths: int) -> tuple[Stored, bytes]:
    """Pieces of a file, and what they hold."""
    content = random.Random(1).randbytes(4 << 20)
    path.write_bytes(content)
    spans, expected = [], b""
    for number, length in enumerate(lengths):
        spans.append(Span(str(path), number * 1_000, length, 1))
        expected += content[number * 1_000 : number * 1_000 + length]
    return Stored(DiskFiles(), tuple(spans)), expected


def test_batches_in_segment_files_of_any_size_arrive_whole(follower: Follower, pipes: Pipes, tmp_path: Path) -> None:
    answers: Answers = queue.Queue()
    for lengths in [(3 << 20,), (1, 70_000, 2 << 20)]:
        batches, expected = stored(tmp_path / "segment", *lengths)
        assert len(batches) == len(expected)
        assert batches.read() == expected
        assert ask(pipes, answers, batches)
        assert answers.get(timeout=5) == (ANSWER, None)
        assert follower.asked.pop() == (REQUEST, expected)


@pytest.mark.parametrize("gone", ["deleted", "cut"])
def test_batches_that_are_gone_are_not_taken_for_others(
    follower: Follower, pipes: Pipes, tmp_path: Path, gone: str
) -> None:
    answers: Answers = queue.Queue()
    batches, _ = stored(tmp_path / "segment", 1 << 20, 1 << 20)
    if gone == "deleted":
        (tmp_path / "segment").unlink()
    else:
        os.truncate(tmp_path / "segment", 1 << 19)
    assert ask(pipes, answers, batches)
    assert isinstance(answers.get(timeout=5)[1], OffsetOutOfRange if gone == "deleted" else StorageError)
    assert ask(pipes, answers, b"another")
    assert answers.get(timeout=5) == (ANSWER, None)
    assert follower.asked == [(REQUEST, b"another")]


def test_a_follower_that_takes_nothing_holds_up_nobody_for_longer_than_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = _Pipe.close

    def close_and_wait(pipe: _Pipe) -> None:
        close(pipe)
        time.sleep(0.1)  # whoever is sending finds it closed

    monkeypatch.setattr(_Pipe, "close", close_and_wait)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        name = f"raystream-test-{os.getpid()}"
        listener.bind(f"\0{name}")
        listener.listen()
        pipes = Pipes(name)
        answers: Answers = queue.Queue()
        batches, _ = stored(tmp_path / "segment", 3 << 20)
        for _ in range(MAX_PIPES):
            assert ask(pipes, answers, batches, timeout_ms=50)
        for _ in range(MAX_PIPES):
            assert isinstance(answers.get(timeout=5)[1], RequestTimeout)
        pipes.close()


def test_a_caller_that_does_not_wait_for_its_answer_is_let_go(follower: Follower, pipes: Pipes) -> None:
    address = follower.endpoint.address
    assert address is not None
    with connect(address) as connection:
        connection.setblocking(True)
        frame = b"".join(wire.request("replicate", REQUEST, b"batches"))
        connection.sendall(frame + frame)
        assert connection.recv(1 << 10) == b""
    assert follower.asked == []


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
