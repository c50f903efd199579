"""A caller's connections to one endpoint, on the event loop. One call at a time on each; more calls open more.

A call that runs out of time closes its connection, so that a late answer is never taken for another's.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

from raystream import messages as m
from raystream.actors import endpoint, wire
from raystream.batch import Bytes
from raystream.errors import ActorLost, RaystreamError, RequestTimeout

logger = logging.getLogger("raystream")

MAX_IDLE: Final = 16
IDLE_S: Final = 30.0
ASK_AGAIN_S: Final = 10.0
FIRST_WAIT_S: Final = 0.5
"""So long a call waits to hear where the endpoint is, before it goes through Ray: a burst of such calls would hold up
the answer itself."""
_LOST: Final = "the actor ended the connection: it died or is stopping"


class Connections:
    """Calls an endpoint. Used on one loop only."""

    def __init__(self, address: str, methods: Collection[str] = ()) -> None:
        self.address = address
        self._methods = frozenset(methods)
        self._idle: list[_Connection] = []
        self.lost = False
        """Whether the endpoint is gone: callers keep to Ray from then on."""
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._tidying: asyncio.TimerHandle | None = None

    def serves(self, method: str) -> bool:
        """Whether the endpoint has said that it takes such calls."""
        return method in self._methods

    async def call(self, method: str, message: Any, payload: Bytes | None = None, *, timeout_ms: float) -> Any:
        """One call. Raises what the other side raised, or RequestTimeout or ActorLost: then it may have happened."""
        connection = self._take()
        try:
            text, buffers = await connection.exchange(wire.request(method, message, payload), timeout_ms)
        except BaseException as error:
            connection.close()
            self.lost |= isinstance(error, ActorLost)
            raise
        self._put_back(connection)
        return wire.read_answer(text, buffers)

    def _put_back(self, connection: _Connection) -> None:
        if len(self._idle) >= MAX_IDLE or self._closed or self.lost:
            connection.close()
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._tidying is None:
            self._tidying = self._loop.call_later(IDLE_S, self._tidy)

    def _tidy(self) -> None:
        """Closes what has not been used for a while: each costs the actor a thread."""
        oldest = self._loop.time() - IDLE_S
        for connection in [each for each in self._idle if each.idle_since <= oldest]:
            self._idle.remove(connection)
            connection.close()
        self._tidying = self._loop.call_later(IDLE_S, self._tidy) if self._idle else None

    def _take(self) -> _Connection:
        if self._idle:
            return self._idle.pop()
        try:
            return _Connection(endpoint.connect(self.address), self._ended)
        except OSError as error:
            self.lost = True
            raise ActorLost(f"the actor's endpoint cannot be reached: {error}") from None

    def _ended(self, connection: _Connection) -> None:
        """The other side has closed it. The actor is gone or stopping: whoever has its name now is another."""
        self.lost = True
        if connection in self._idle:
            self._idle.remove(connection)
            connection.close()

    def close(self) -> None:
        """Closes what is idle now, and the others as their calls end. On the loop."""
        self._closed = True
        if self._tidying is not None:
            self._tidying.cancel()
        while self._idle:
            self._idle.pop().close()


class Shortcut:
    """The way to an actor's endpoint, where it has one and is on this machine. Used on one loop only."""

    def __init__(self, ask: Callable[[], Awaitable[m.EndpointReply]]) -> None:
        self._ask = ask
        self._connections: Connections | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asked = float("-inf")
        self._never = False
        """The actor has said that there is none for us."""

    def current(self) -> Connections | None:
        """The connections to use; None while there are none known, and the call goes through Ray."""
        if self._connections is not None and self._connections.lost:
            self.close()
        if self._connections is not None or self._asking is not None or self._never:
            return self._connections
        if time.monotonic() - self._asked > ASK_AGAIN_S:
            self._asking = asyncio.ensure_future(self._find())
        return self._connections

    async def found(self) -> Connections | None:
        """As `current`, once the actor has said where its endpoint is, if it is being asked."""
        connections = self.current()
        if connections is None and self._asking is not None:
            await asyncio.wait((self._asking,), timeout=FIRST_WAIT_S)
            connections = self.current()
        return connections

    async def _find(self) -> None:
        try:
            reply = await self._ask()
            m.check_protocol(reply.protocol)
            if reply.address is None or reply.machine != endpoint.machine():
                self._never = True
                return
            self._connections = Connections(reply.address, reply.methods)
        except RaystreamError as error:
            logger.debug("no endpoint at the moment: %s", error)
        finally:
            self._asked = time.monotonic()
            self._asking = None

    def close(self) -> None:
        """Closes what is idle. On the loop."""
        if self._connections is not None:
            self._connections.close()
            self._connections = None


class _Connection:
    """A non-blocking socket that stays registered with the loop."""

    def __init__(self, connected: socket.socket, ended: Callable[[_Connection], None]) -> None:
        self._socket = connected
        self._ended = ended
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connected, self._on_readable)
        self._out: collections.deque[memoryview] = collections.deque()
        self._writing = False
        self._waiting: asyncio.Future[tuple[memoryview, memoryview]] | None = None
        self._expect_head()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        with contextlib.suppress(
            OSError
        ):  # a forked child may hold it too: the other side hears of the end all the same
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    async def exchange(self, frame: list[memoryview], timeout_ms: float) -> tuple[memoryview, memoryview]:
        """Sends a frame and returns the reply's JSON and buffers."""
        waiting = self._waiting = self._loop.create_future()
        self._out.extend(frame)
        self._on_writable()
        expiry = self._loop.call_later(timeout_ms / 1000, self._fail, RequestTimeout(_late(timeout_ms)))
        try:
            return await waiting
        finally:
            expiry.cancel()

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    # Sending --------------------------------------------------------------------------------------------------------

    def _on_writable(self) -> None:
        try:
            while self._out:
                sent = self._socket.sendmsg(self._out)
                while self._out and sent >= len(self._out[0]):
                    sent -= len(self._out.popleft())
                if sent:
                    self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket, self._on_writable)
            return
        except OSError as error:
            self._fail(ActorLost(f"{_LOST} ({error})"))
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)

    # Receiving ------------------------------------------------------------------------------------------------------

    def _expect_head(self) -> None:
        self._memory = bytearray(wire.HEAD.size)
        self._left = memoryview(self._memory)
        self._text_bytes: int | None = None

    def _on_readable(self) -> None:
        try:
            while True:
                got = self._socket.recv_into(self._left)
                if not got:
                    raise ConnectionResetError("end of stream")
                self._left = self._left[got:]
                if not self._left and self._advance():
                    return
        except BlockingIOError:
            return
        except Exception as error:
            self._loop.remove_reader(self._socket)
            self._fail(ActorLost(f"{_LOST} ({error})"))
            self._ended(self)

    def _advance(self) -> bool:
        """After a whole head or a whole frame; True where the frame is complete."""
        if self._text_bytes is None:
            self._text_bytes, buffer_bytes = wire.lengths(self._memory)
            self._memory = bytearray(self._text_bytes + buffer_bytes)
            self._left = memoryview(self._memory)
            return False
        frame = memoryview(self._memory)
        text, buffers = frame[: self._text_bytes], frame[self._text_bytes :]
        self._expect_head()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((text, buffers))
        return True


def _late(timeout_ms: float) -> str:
    return f"no answer within {timeout_ms:.0f} ms"
