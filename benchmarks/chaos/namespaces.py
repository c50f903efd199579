"""Network namespaces with a router between them: machines on one machine, whose ways to each other can be cut.

Every way leads through the router, which drops what a cut concerns without a word, as a broken switch does: nobody gets
an error, packets just do not arrive. A cut is one-way; two of them make a whole one. Linux, and root in its namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

CLONE_NEWNET: Final = 0x40000000
SELF: Final = "/proc/thread-self/ns/net"
NAMED: Final = Path("/run/netns")
COMMAND_TIMEOUT_S: Final = 10.0


def unavailable() -> str | None:
    """Why there can be no network namespaces here, in a sentence; None where there can."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, and this is {sys.platform}"
    if shutil.which("ip") is None:
        return "network namespaces need the command `ip` (iproute2), which is not installed"
    refused: list[int] = []
    thread = threading.Thread(target=lambda: refused.append(_errno_of_unshare()))  # only that thread would move
    thread.start()
    thread.join()
    number = refused[0]
    return f"unshare(CLONE_NEWNET) fails here: {errno.errorcode[number]}, {os.strerror(number)}" if number else None


def _errno_of_unshare() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc.unshare(CLONE_NEWNET) == 0 else ctypes.get_errno()


def remove(name: str) -> None:
    """Deletes the namespaces of a network whose process is gone."""
    for path in sorted(NAMED.glob(f"{name}-*")) if NAMED.is_dir() else []:
        _ip("netns", "delete", path.name)


class Network:
    """`count` namespaces, numbered from 0, in subnets of their own, and a router. A context manager."""

    def __init__(self, name: str, count: int = 3) -> None:
        """`name` is what the namespaces' names begin with. Raises OSError where one cannot be made."""
        self._name = name
        self._router = f"{name}-r"
        self._cuts: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._outside: int | None = None
        self.count = count
        try:
            _ip("netns", "add", self._router)
            _ip("-n", self._router, "link", "set", "lo", "up")
            with self._within(self._router):
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            for number in range(count):
                self._add(number)
        except BaseException:
            remove(name)
            raise

    def _add(self, number: int) -> None:
        place, port = self._place(number), f"to{number}"
        _ip("netns", "add", place)
        _ip("-n", place, "link", "set", "lo", "up")
        _ip("-n", self._router, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", place)
        for where, link, address in (
            (self._router, port, self._gateway(number)),
            (place, "eth0", self.address(number)),
        ):
            _ip("-n", where, "address", "add", f"{address}/24", "dev", link)
            _ip("-n", where, "link", "set", link, "up")
        _ip("-n", place, "route", "add", "default", "via", self._gateway(number))

    def _place(self, number: int) -> str:
        return f"{self._name}-{number}"

    def address(self, number: int) -> str:
        """The IP address in that namespace: of the range that is set aside for benchmarks (RFC 2544)."""
        return f"198.18.{number}.2"

    def _gateway(self, number: int) -> str:
        return f"198.18.{number}.1"

    # Being there ----------------------------------------------------------------------------------------------------

    def enter(self, number: int) -> None:
        """Moves the calling thread there, and with it whatever threads and processes it starts from now on."""
        self._outside = os.open(SELF, os.O_RDONLY)
        _move_to(NAMED / self._place(number))

    def inside(self, number: int) -> contextlib.AbstractContextManager[None]:
        """The calling thread is there for a while."""
        return self._within(self._place(number))

    @contextlib.contextmanager
    def _within(self, place: str) -> Iterator[None]:
        before = os.open(SELF, os.O_RDONLY)
        try:
            _move_to(NAMED / place)
            yield
        finally:
            _set_namespace(before)
            os.close(before)

    # Cutting --------------------------------------------------------------------------------------------------------

    def cut(self, sender: int, receiver: int) -> None:
        """What the one sends to the other does not arrive any more."""
        with self._lock:
            if (sender, receiver) not in self._cuts:
                _ip("-n", self._router, "rule", "add", *self._rule(sender, receiver))
                self._cuts.add((sender, receiver))

    def separate(self, one: int, other: int) -> None:
        """Cuts the way between two, in both directions."""
        self.cut(one, other)
        self.cut(other, one)

    def isolate(self, number: int) -> None:
        """Cuts one off from all others, in both directions."""
        for other in range(self.count):
            if other != number:
                self.separate(number, other)

    def heal(self) -> None:
        """All ways are whole again."""
        with self._lock:
            for cut in sorted(self._cuts):
                _ip("-n", self._router, "rule", "delete", *self._rule(*cut))
                self._cuts.discard(cut)

    def _rule(self, sender: int, receiver: int) -> tuple[str, ...]:
        return ("iif", f"to{sender}", "to", self.address(receiver), "blackhole")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Deletes everything; the thread that has entered is outside again."""
        if self._outside is not None:
            _set_namespace(self._outside)
            os.close(self._outside)
            self._outside = None
        remove(self._name)


def _move_to(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _set_namespace(descriptor)
    finally:
        os.close(descriptor)


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns(CLONE_NEWNET): {os.strerror(number)}")


def _ip(*arguments: str) -> None:
    command = ["ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise OSError(f"`{' '.join(command)}` fails: {done.stderr.strip()}")
