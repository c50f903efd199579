"""Which processes belong to what, so that none but our own is ever signalled. Linux."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

POLL_S: Final = 0.05


def children(pid: int) -> set[int]:
    """The processes that it started and that live."""
    return {other for other in _all() if _parent(other) == pid}


def with_environment(entry: str) -> set[int]:
    """The processes that have inherited this `NAME=value`, but for the calling one."""
    wanted = entry.encode()
    found = set()
    for pid in _all():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found - {os.getpid()}


def wait_until_gone(pids: Iterable[int], timeout_s: float) -> set[int]:
    """Answers which of them still live after that time."""
    deadline = time.monotonic() + timeout_s
    while (left := {pid for pid in pids if _parent(pid) is not None}) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def end(pids: Iterable[int]) -> None:
    """SIGKILL to each of them."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _all() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _parent(pid: int) -> int | None:
    """None where it is gone, or dead and only not yet collected."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)
