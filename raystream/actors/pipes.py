"""Calls from a leading replica to a follower's endpoint, without an event loop between.

The caller's thread sends what fits into the socket's memory, which takes microseconds. What stands in segment files is
sent by a thread for all connections, and the kernel takes it from the files: it does not pass through this process. A
thread of each connection waits for the answers and hands them on. One call at a time on each connection, and few
connections: what finds none free goes another way.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from raystream.actors import endpoint, wire
from raystream.errors import ActorLost, CorruptBatch, RaystreamError, RequestTimeout
from raystream.storage.stored import Stored

logger = logging.getLogger("raystream.partition")

MAX_PIPES: Final = 4
MAX_FRAME_BYTES: Final = 64 << 10
"""A larger one could have to wait for the other side."""
ANSWER_BYTES: Final = 4 << 10
"""An answer is smaller as a rule, and comes in one piece."""
LOOK_S: Final = 1
"""How often a connection's thread looks whether its call has run out of time."""

Answered = Callable[[Any, Exception | None], None]


class Pipes:
    """Connections to one endpoint. `call` is for one thread at a time."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._pipes: list[_Pipe] = []
        self._large: queue.SimpleQueue[tuple[_Pipe, bytes, Stored] | None] = queue.SimpleQueue()
        self._sends_large = False
        self.lost = False
        """The endpoint is gone."""

    def call(self, method: str, message: Any, payload: bytes | Stored, timeout_ms: float, answered: Answered) -> bool:
        """Whether the call is on its way: then `answered` is told what came of it, on another thread."""
        frame = wire.request_head(method, message, len(payload))
        if isinstance(payload, bytes):
            frame += payload
            if len(frame) > MAX_FRAME_BYTES:
                return False
        pipe = None if self.lost else self._idle()
        if pipe is None:
            return False
        pipe.begin(timeout_ms, answered)
        if isinstance(payload, bytes):
            pipe.send(frame)
        else:
            self._start()
            self._large.put((pipe, frame, payload))
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

    def _start(self) -> None:
        if not self._sends_large:
            self._sends_large = True
            threading.Thread(target=self._send_large, name="raystream-pipes", daemon=True).start()

    def _send_large(self) -> None:
        while (item := self._large.get()) is not None:
            pipe, head, stored = item
            pipe.send(head, stored)

    def close(self) -> None:
        self.lost = True
        self._large.put(None)
        for pipe in self._pipes:
            pipe.close()


class _Call(NamedTuple):
    answered: Answered
    timeout_ms: float
    until_s: float


class _Pipe:
    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(True)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", LOOK_S, 0))
        self._socket = connected
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._call: _Call | None = None
        self.ended = False
        threading.Thread(target=self._run, name="raystream-pipe", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._call is not None

    def begin(self, timeout_ms: float, answered: Answered) -> None:
        """Takes note of a call, which `send` sends."""
        self._call = _Call(answered, timeout_ms, time.monotonic() + timeout_ms / 1000)

    def send(self, frame: bytes, stored: Stored | None = None) -> None:
        """The frame, and what follows it from segment files."""
        try:
            with self._sending:
                self._socket.sendall(frame)
                if stored is not None:
                    stored.send(self._socket.fileno())
        except (OSError, RaystreamError) as error:
            self.ended = True
            self._finish(None, error if isinstance(error, RaystreamError) else _lost(error))
            self.close()  # not before: the connection's thread would say no more than that it has ended

    def _finish(self, result: Any, failure: Exception | None) -> None:
        with self._lock:
            call, self._call = self._call, None
        if call is not None:
            call.answered(result, failure)

    # On the connection's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self.ended:
            result: Any = None
            failure: Exception | None = None
            try:
                text, buffers = self._answer()
            except Exception as error:
                failure = error if isinstance(error, RequestTimeout) else _lost(error)
                self.ended = True  # a late answer must not be taken for another's
            else:
                try:
                    result = wire.read_answer(text, buffers)
                except Exception as error:
                    failure = error if isinstance(error, RaystreamError) else CorruptBatch(f"no answer: {error!r}")
            self._finish(result, failure)
        self.close()  # not before: whoever is sending would say no more than that it has ended
        with self._sending:
            self._socket.close()

    def _answer(self) -> tuple[memoryview, memoryview]:
        head = wire.HEAD.size
        begun = self._receive(b"", head)
        text_bytes, buffer_bytes = wire.lengths(begun[:head])
        frame = memoryview(self._receive(begun, head + text_bytes + buffer_bytes))[head:]
        return frame[:text_bytes], frame[text_bytes:]

    def _receive(self, data: bytes, size: int) -> bytes:
        """`data` and what follows it, `size` bytes at least; no more than one answer is ever under way."""
        while len(data) < size:
            try:
                got = self._socket.recv(max(size - len(data), ANSWER_BYTES))
            except BlockingIOError:
                self._check_time()
                continue
            if not got:
                raise ConnectionResetError("end of stream")
            data = data + got if data else got
        return data

    def _check_time(self) -> None:
        call = self._call
        if call is not None and time.monotonic() > call.until_s:
            raise RequestTimeout(f"no answer within {call.timeout_ms:.0f} ms")

    def close(self) -> None:
        self.ended = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _lost(error: Exception) -> ActorLost:
    return ActorLost(f"the actor ended the connection: it died or is stopping ({error})")
