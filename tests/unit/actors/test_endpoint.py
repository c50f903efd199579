"""Calls over an actor's local socket: many at a time, late ones, lost ones, and callers who may not call."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from raystream import messages as m
from raystream.actors import connections, wire
from raystream.actors import endpoint as e
from raystream.actors.connections import Connections, Shortcut
from raystream.actors.endpoint import Endpoint, machine
from raystream.errors import ActorLost, NotLeader, RaystreamError, RequestTimeout, Unavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="endpoints are abstract Unix sockets")

ASK = m.DeleteRecordsRequest(topic_id="t", partition=0, before_offset=5)


class Actor:
    """Something to call."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.kept: list[memoryview] = []

    def echo(self, request: m.DeleteRecordsRequest, payload: memoryview | None = None) -> m.OffsetReply:
        return m.OffsetReply(offset=len(payload) if payload is not None else request.before_offset)

    def bytes_of(self, request: m.DeleteRecordsRequest) -> m.FetchReply:
        chunk = os.urandom(1) * request.before_offset
        return m.FetchReply(chunks=(chunk,), high_watermark=1, last_stable_offset=1, log_start_offset=0, leader_epoch=1)

    def wait(self, request: m.DeleteRecordsRequest) -> m.OffsetReply:
        self.release.wait(10)
        return self.echo(request)

    def refuse(self, request: m.DeleteRecordsRequest, payload: memoryview | None = None) -> m.OffsetReply:
        if payload is not None:
            self.kept.append(payload)
        raise NotLeader("not here", partition=request.partition)


@pytest.fixture
def actor() -> Actor:
    return Actor()


@pytest.fixture
def endpoint(actor: Actor) -> Iterator[Endpoint]:
    methods = {name: getattr(actor, name) for name in ("echo", "bytes_of", "wait", "refuse")}
    found = Endpoint("test", methods)
    yield found
    actor.release.set()
    found.stop()


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await asyncio.wait_for(work(), 20)

    return asyncio.run(main())


def test_calls_small_and_large_one_after_the_other(endpoint: Endpoint) -> None:
    async def work() -> None:
        calls = Connections(endpoint.address or "")
        for size in (0, 1, 70_000, 9 << 20, 3):
            reply = await calls.call("echo", ASK, bytes(size), timeout_ms=5_000)
            assert reply == m.OffsetReply(offset=size)
            big = m.DeleteRecordsRequest(topic_id="t", partition=0, before_offset=size)
            chunk = (await calls.call("bytes_of", big, timeout_ms=5_000)).chunks[0]
            assert len(chunk) == size and (not size or bytes(chunk) == bytes(chunk[:1]) * size)
        calls.close()

    run(work)


def test_a_call_that_waits_holds_up_no_other(endpoint: Endpoint, actor: Actor) -> None:
    async def work() -> None:
        calls = Connections(endpoint.address or "")
        waiting = [asyncio.ensure_future(calls.call("wait", ASK, timeout_ms=9_000)) for _ in range(20)]
        await asyncio.sleep(0.05)
        assert (await calls.call("echo", ASK, timeout_ms=5_000)).offset == 5
        actor.release.set()
        assert [reply.offset for reply in await asyncio.gather(*waiting)] == [5] * 20
        calls.close()

    run(work)


def test_a_late_answer_is_never_taken_for_anothers(endpoint: Endpoint, actor: Actor) -> None:
    async def work() -> None:
        calls = Connections(endpoint.address or "")
        with pytest.raises(RequestTimeout, match="no answer within 50 ms"):
            await calls.call("wait", ASK, timeout_ms=50)
        actor.release.set()
        for size in range(5):
            assert (await calls.call("echo", ASK, bytes(size), timeout_ms=5_000)).offset == size
        assert not calls.lost
        calls.close()

    run(work)


def test_errors_of_the_other_side_arrive_and_the_connection_stays(endpoint: Endpoint, actor: Actor) -> None:
    async def work() -> None:
        calls = Connections(endpoint.address or "")
        with pytest.raises(NotLeader, match="not here") as caught:
            await calls.call("refuse", ASK, b"first", timeout_ms=5_000)
        assert caught.value.partition == 0
        assert (await calls.call("echo", ASK, b"other", timeout_ms=5_000)).offset == 5
        assert bytes(actor.kept[0]) == b"first", "memory that a failed call may still hold is not used again"
        with pytest.raises(RaystreamError, match="KeyError"):
            await calls.call("nothing", ASK, timeout_ms=5_000)
        assert not calls.lost
        calls.close()

    run(work)


def test_an_endpoint_that_ends_loses_the_calls_under_way(endpoint: Endpoint) -> None:
    async def work() -> None:
        calls = Connections(endpoint.address or "")
        waiting = asyncio.ensure_future(calls.call("wait", ASK, timeout_ms=9_000))
        await asyncio.sleep(0.05)
        endpoint.stop()
        with pytest.raises(ActorLost):
            await waiting
        assert calls.lost
        with pytest.raises(ActorLost, match="cannot be reached"):
            await calls.call("echo", ASK, timeout_ms=1_000)

    run(work)


def test_a_connection_that_ended_while_idle_says_that_the_actor_is_gone(endpoint: Endpoint) -> None:
    """Whoever has the address by then is another: callers keep to Ray."""

    async def work() -> None:
        calls = Connections(endpoint.address or "")
        await calls.call("echo", ASK, timeout_ms=5_000)
        for served in list(endpoint._connections):
            served.shutdown(socket.SHUT_RDWR)
        await asyncio.sleep(0.05)
        assert calls.lost and not calls._idle

    run(work)


def test_idle_connections_are_closed_after_a_while(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.1)

    async def work() -> None:
        calls = Connections(endpoint.address or "")
        await asyncio.gather(*(calls.call("echo", ASK, timeout_ms=5_000) for _ in range(3)))
        assert len(calls._idle) == 3
        await asyncio.sleep(0.3)
        assert not calls._idle and not endpoint._connections and not calls.lost
        assert (await calls.call("echo", ASK, timeout_ms=5_000)).offset == 5
        calls.close()

    run(work)


def test_an_endpoint_that_takes_no_connections_blocks_nobody() -> None:
    """A paused actor: the kernel's queue of connections is full, and connecting would wait without end."""
    with socket.socket(socket.AF_UNIX) as listener:
        address = f"raystream-test-{os.getpid()}"
        listener.bind("\0" + address)
        listener.listen(4)

        async def work() -> None:
            calls = Connections(address)
            errors = [type(await _error(calls.call("echo", ASK, timeout_ms=5))) for _ in range(20)]
            assert set(errors) == {RequestTimeout, ActorLost}
            assert calls.lost

        run(work)


async def _error(call: Awaitable[Any]) -> Exception | None:
    try:
        await call
    except Exception as error:
        return error
    return None


def test_an_endpoint_goes_on_after_a_failure_to_serve(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    welcome, failures = endpoint._welcome, [OSError("too many open files"), RuntimeError("can't start new thread")]

    def fails(connection: socket.socket) -> bool:
        if failures:
            raise failures.pop()
        return welcome(connection)

    monkeypatch.setattr(endpoint, "_welcome", fails)

    async def work() -> None:
        for _ in range(2):
            assert isinstance(
                await _error(Connections(endpoint.address or "").call("echo", ASK, timeout_ms=5_000)), ActorLost
            )
        calls = Connections(endpoint.address or "")
        assert (await calls.call("echo", ASK, timeout_ms=5_000)).offset == 5
        calls.close()

    run(work)


def test_a_listener_of_another_user_is_refused(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e, "_user_of", lambda connection: os.getuid() + 1)
    with pytest.raises(PermissionError, match="another user"):
        e.connect(endpoint.address or "")


def test_beyond_the_bound_connections_are_refused(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e, "MAX_CONNECTIONS", 2)

    async def work() -> None:
        calls = Connections(endpoint.address or "")
        held = [asyncio.ensure_future(calls.call("wait", ASK, timeout_ms=9_000)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(ActorLost):
            await calls.call("echo", ASK, timeout_ms=1_000)
        for each in held:
            each.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    run(work)


def test_what_is_no_frame_ends_its_connection_only(endpoint: Endpoint) -> None:
    with e.connect(endpoint.address or "") as stranger:
        stranger.sendall(b"\xff" * wire.HEAD.size)
        stranger.settimeout(5)
        assert stranger.recv(1) == b""
    with e.connect(endpoint.address or "") as stranger:
        stranger.sendall(wire.HEAD.pack(5, 0) + b"hello")
        stranger.settimeout(5)
        head = stranger.recv(wire.HEAD.size, socket.MSG_WAITALL)
        text = stranger.recv(wire.lengths(head)[0], socket.MSG_WAITALL)
        with pytest.raises(RaystreamError, match="JSONDecodeError"):
            wire.read_answer(text, memoryview(b""))
    test_calls_small_and_large_one_after_the_other(endpoint)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_another_user_is_not_served(endpoint: Endpoint) -> None:
    script = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as s:
    s.connect("\\0" + sys.argv[1])
    s.settimeout(5)
    sys.exit(0 if s.recv(1) == b"" else 1)
"""
    assert subprocess.run([sys.executable, "-c", script, endpoint.address or ""], timeout=30).returncode == 0


def test_a_shortcut_is_taken_once_the_actor_has_said_where(endpoint: Endpoint) -> None:
    async def work() -> None:
        replies: list[Exception | m.EndpointReply] = [
            Unavailable("starting"),
            m.EndpointReply(node_id="here", address=endpoint.address, machine=machine()),
        ]

        async def ask() -> m.EndpointReply:
            reply = replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply

        shortcut = Shortcut(ask)
        assert shortcut.current() is None
        await asyncio.sleep(0.01)
        assert shortcut.current() is None and replies, "it is not asked again at once"
        shortcut._asked = float("-inf")
        assert shortcut.current() is None
        await asyncio.sleep(0.01)
        direct = shortcut.current()
        assert direct is not None
        assert (await direct.call("echo", ASK, timeout_ms=5_000)).offset == 5
        direct.lost = True
        assert shortcut.current() is None
        shortcut.close()

    run(work)


@pytest.mark.parametrize(
    "reply",
    [
        m.EndpointReply(node_id="far", address="x", machine="another"),
        m.EndpointReply(node_id="here", address=None, machine=machine()),
    ],
)
def test_an_actor_elsewhere_is_called_through_ray(reply: m.EndpointReply) -> None:
    async def work() -> None:
        async def ask() -> m.EndpointReply:
            return reply

        shortcut = Shortcut(ask)
        assert shortcut.current() is None
        await asyncio.sleep(0.01)
        assert shortcut.current() is None

    run(work)


def test_a_burst_of_calls_waits_for_the_first_answer_and_not_for_long(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        asked = 0
        answered = asyncio.Event()

        async def ask() -> m.EndpointReply:
            nonlocal asked
            asked += 1
            await answered.wait()
            return m.EndpointReply(
                node_id="here", address=endpoint.address, machine=machine(), methods=endpoint.methods
            )

        shortcut = Shortcut(ask)
        burst = [asyncio.ensure_future(shortcut.found()) for _ in range(20)]
        await asyncio.sleep(0.01)
        assert not any(each.done() for each in burst)
        answered.set()
        directs = await asyncio.gather(*burst)
        assert asked == 1 and directs[0] is not None and all(direct is directs[0] for direct in directs)
        assert directs[0].serves("echo") and not directs[0].serves("what an older release does not serve")
        shortcut.close()
        monkeypatch.setattr("raystream.actors.connections.FIRST_WAIT_S", 0.01)
        answered.clear()
        silent = Shortcut(ask)
        assert await silent.found() is None, "the call goes through Ray"
        answered.set()

    run(work)
