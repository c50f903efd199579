"""Small calls from a leading replica to a follower's endpoint, without an event loop between.

The caller's thread sends, which takes microseconds for what fits into the socket's memory; a thread of the connection's
own waits for the answer and hands it on. One call at a time on each connection, and few connections: what finds none
free goes another way.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from raystream.actors import endpoint, wire
from raystream.batch import Bytes
from raystream.errors import ActorLost, RaystreamError, RequestTimeout

logger = logging.getLogger("raystream.partition")

MAX_PIPES: Final = 4
MAX_FRAME_BYTES: Final = 64 << 10
"""A larger one could have to wait for the other side."""

Answered = Callable[[Any, Exception | None], None]


class Pipes:
    """Connections to one endpoint. `call` is for one thread at a time."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._pipes: list[_Pipe] = []
        self.lost = False
        """The endpoint is gone."""

    def call(self, method: str, message: Any, payload: Bytes, timeout_ms: float, answered: Answered) -> bool:
        """Whether the call is on its way: then `answered` is told what came of it, on another thread."""
        frame = wire.request(method, message, payload)
        if self.lost or sum(map(len, frame)) > MAX_FRAME_BYTES:
            return False
        pipe = self._idle()
        if pipe is None:
            return False
        pipe.call(frame, timeout_ms, answered)
        return True

    def _idle(self) -> _Pipe | None:
        self._pipes = [pipe for pipe in self._pipes if not pipe.ended]
        for pipe in self._pipes:
            if not pipe.busy:
                return pipe
        if len(self._pipes) >= MAX_PIPES:
            return None
        try:
            pipe = _Pipe(endpoint.connect(self._address))
        except OSError as error:
            logger.debug("the endpoint cannot be reached: %s", error)
            self.lost = True
            return None
        self._pipes.append(pipe)
        return pipe

    def close(self) -> None:
        self.lost = True
        for pipe in self._pipes:
            pipe.close()


class _Pipe:
    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._asked = threading.Semaphore(0)
        self._timeout_s = 0.0
        self._answered: Answered
        self.busy = False
        self.ended = False
        threading.Thread(target=self._run, name="raystream-pipe", daemon=True).start()

    def call(self, frame: list[memoryview], timeout_ms: float, answered: Answered) -> None:
        self.busy = True
        self._timeout_s = timeout_ms / 1000
        self._answered = answered
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(b"".join(frame))
        except OSError as error:
            logger.debug("a call could not be sent: %s", error)
            self.close()
        self._asked.release()

    def _run(self) -> None:
        while True:
            self._asked.acquire()
            if self.ended and not self.busy:
                return
            result: Any = None
            failure: Exception | None = None
            try:
                result = self._answer()
            except TimeoutError:
                failure = RequestTimeout(f"no answer within {self._timeout_s * 1000:.0f} ms")
                self.close()  # a late answer must not be taken for another's
            except RaystreamError as error:
                failure = error
            except Exception as error:
                failure = ActorLost(f"the actor ended the connection: it died or is stopping ({error})")
                self.close()
            answered = self._answered
            self.busy = False
            answered(result, failure)
            if self.ended:
                return

    def _answer(self) -> Any:
        text_bytes, buffer_bytes = wire.lengths(self._receive(wire.HEAD.size))
        frame = memoryview(self._receive(text_bytes + buffer_bytes))
        return wire.read_answer(frame[:text_bytes], frame[text_bytes:])

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            got = self._socket.recv(size - len(data))
            if not got:
                raise ConnectionResetError("end of stream")
            data += got
        return data

    def close(self) -> None:
        self.ended = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._asked.release()
