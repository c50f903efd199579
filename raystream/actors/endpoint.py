"""A second way into an actor for callers on its machine: a Unix socket, a tenth of the time of a Ray call.

It is an abstract socket (Linux): no file is left behind when the process is killed, and the kernel says who calls, so
that only processes of the same user are served. Elsewhere there is none and callers keep to Ray. Each connection has a
thread and carries one call at a time, as threads of Ray's concurrency groups do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from raystream.actors import wire
from raystream.errors import RaystreamError

logger = logging.getLogger("raystream.endpoint")

MAX_CONNECTIONS: Final = 1_024
"""Members and partitions by the hundred each have a call under way; who is refused calls through Ray for a while."""
BUFFER_BYTES: Final = 1 << 20
"""What the kernel may hold of one connection each way, where its own limit is not lower."""
ACCEPT_AGAIN_S: Final = 0.05
FIRST_BYTES: Final = 16 << 10
KEPT_BYTES: Final = 8 << 20
"""A connection keeps its memory for the next call up to this size."""

_PEER: Final = struct.Struct("3i")


class Endpoint:
    """Serves methods to local callers. `address` is where, None where there is no such way."""

    def __init__(self, name: str, methods: Mapping[str, Callable[..., Any]]) -> None:
        self._name = name
        self._methods = methods
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.address: str | None = None
        if sys.platform == "linux":
            self.address = f"raystream-{secrets.token_hex(16)}"
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind("\0" + self.address)
            self._listener.listen(MAX_CONNECTIONS)
            threading.Thread(target=self._accept, args=(self._listener,), name=f"{name}-accept", daemon=True).start()

    @property
    def methods(self) -> tuple[str, ...]:
        """The calls that are taken."""
        return tuple(self._methods)

    def stop(self) -> None:
        """Takes no more calls; those under way lose their connection."""
        with self._lock:
            listener, self._listener = self._listener, None
            connections = list(self._connections)
        for each in [listener, *connections] if listener else connections:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._listener is listener:  # not stopped: out of descriptors, say
                    logger.warning("cannot accept a connection: %s; trying again", error)
                    time.sleep(ACCEPT_AGAIN_S)
                continue
            try:
                self._begin(connection)
            except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
                logger.warning("cannot serve a connection: %s", error)
                self._forget(connection)

    def _begin(self, connection: socket.socket) -> None:
        if not self._welcome(connection):
            connection.close()
            return
        threading.Thread(target=self._serve, args=(connection,), name=f"{self._name}-call", daemon=True).start()

    def _welcome(self, connection: socket.socket) -> bool:
        uid = _user_of(connection)
        if uid != os.getuid():
            logger.warning("refused a connection of user %d", uid)
            return False
        with self._lock:
            if self._listener is None or len(self._connections) >= MAX_CONNECTIONS:
                return False
            self._connections.add(connection)
        return True

    def _serve(self, connection: socket.socket) -> None:
        try:
            _widen(connection)
            frames = _Frames(connection)
            while (call := frames.next()) is not None:
                reply, intact = self._answer(*call)
                for buffer in reply:
                    connection.sendall(buffer)
                if not intact:
                    frames.forget()
        except (OSError, RaystreamError) as error:
            logger.debug("a connection ended: %s", error)
        finally:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def _answer(self, text: memoryview, payload: memoryview) -> tuple[list[memoryview], bool]:
        """The reply, and whether nobody refers to the call's memory any more."""
        try:
            method, arguments = wire.read_request(text, payload)
            return wire.answer(self._methods[method](*arguments)), True
        except Exception as error:
            return wire.failure(error), False  # a call that gave up waiting may yet be worked on


@cache
def machine() -> str:
    """Tells machines apart, and network namespaces on one: where it is the same, an endpoint can be reached."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot_id:
            return f"{boot_id.read().strip()}/{os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return ""


def connect(address: str) -> socket.socket:
    """A connection to an endpoint of this process's user, which does not block. Raises OSError, at once where nobody
    takes connections any more."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _widen(connection)
        connection.setblocking(False)
        connection.connect("\0" + address)
        if _user_of(connection) != os.getuid():
            raise PermissionError("another user has taken the endpoint's name")
    except BaseException:
        connection.close()
        raise
    return connection


def _user_of(connection: socket.socket) -> int:
    """The user id of the process at the other end, as the kernel knows it."""
    _pid, uid, _gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


def _widen(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


class _Frames:
    """The calls that come in over one connection, each in memory that is used again for the next."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._memory = bytearray(FIRST_BYTES)

    def next(self) -> tuple[memoryview, memoryview] | None:
        """The JSON and the buffers of the next frame; None at the end. Raises ConnectionResetError where the other side
        ends in the middle, or does not wait for the answer to one frame before it sends another."""
        head = wire.HEAD.size
        have = self._fill(0, head)
        if not have:
            return None
        text_bytes, payload_bytes = wire.lengths(self._memory[:head])
        length = head + text_bytes + payload_bytes
        if not length <= len(self._memory) <= max(length, KEPT_BYTES):
            begun = self._memory[:have]
            self._memory = bytearray(length)
            self._memory[:have] = begun
        if self._fill(have, length) != length:
            raise ConnectionResetError("the other side sent a frame before it had the answer to the one before")
        frame = memoryview(self._memory)[:length]
        return frame[head : head + text_bytes], frame[head + text_bytes :]

    def forget(self) -> None:
        """Somebody may still refer to the memory: the next frame gets its own."""
        self._memory = bytearray(FIRST_BYTES)

    def _fill(self, have: int, wanted: int) -> int:
        """Receives until there are `wanted` bytes or more. Returns how many there are: 0 at the end."""
        view = memoryview(self._memory)
        while have < wanted:
            got = self._connection.recv_into(view[have:])
            if not got:
                if not have:
                    return 0
                raise ConnectionResetError("the other side ended in the middle of a frame")
            have += got
        return have
