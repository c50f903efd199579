"""Removes large files so that nobody who writes beside them has to wait for it.

What a file system does when the last user of a large file lets go of it holds up every other sync: 64 MB cost ext4
with `discard` 20 to 30 ms of its journal. So the name goes at once, and a thread of its own makes the file shorter bit
by bit. A file that somebody else has open or mapped must not be cut under them: its space goes when they let go.
"""

from __future__ import annotations

import fcntl
import os
import queue
import threading
import time
from contextlib import suppress
from typing import Final

STEP_BYTES: Final = 2 << 20
PAUSE_S: Final = 0.003
"""After each step, for the syncs of others."""
SMALL_BYTES: Final = 4 * STEP_BYTES
LOOK_S: Final = 0.5
GRACE_S: Final = 15.0
"""So long nothing is cut: what the kernel has taken into a socket from the file may be on its way yet."""
MAX_HELD: Final = 32
"""More files at once go as the system has it."""
LET_GO_S: Final = 60.0
"""So long a file that others use is kept, to be made shorter once they let go."""


class Remover:
    """One thread, which begins with the first large file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._held = 0
        self._files: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()

    def unlink(self, path: str) -> None:
        """Removes the name. Raises OSError."""
        if os.lstat(path).st_size <= SMALL_BYTES:
            os.unlink(path)
            return
        descriptor = None
        with suppress(OSError):  # too many are open, or it may not be written: it goes as any
            if self._held < MAX_HELD:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.unlink(path)
        except OSError:
            if descriptor is not None:
                os.close(descriptor)
            raise
        if descriptor is None:
            return
        with self._lock:
            self._held += 1
        self._files.put((descriptor, time.monotonic()))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="raystream-removal", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        held: list[tuple[int, float]] = []
        while True:
            with suppress(queue.Empty):
                held.append(self._files.get(timeout=LOOK_S if held else None))
            left = [(descriptor, since) for descriptor, since in held if not _let_go(descriptor, since)]
            with self._lock:
                self._held -= len(held) - len(left)
            held = left


def _let_go(descriptor: int, since: float) -> bool:
    age_s = time.monotonic() - since
    if os.fstat(descriptor).st_nlink == 0:  # else it has another name, and stays as it is
        if age_s < GRACE_S:
            return False
        if not _used_by_others(descriptor):
            _shorten(descriptor)
        elif age_s < LET_GO_S:
            return False
    os.close(descriptor)
    return True


def _used_by_others(descriptor: int) -> bool:
    """Whether the file is open or mapped elsewhere, in any process: the system grants a write lease where it is not."""
    lease = getattr(fcntl, "F_SETLEASE", None)
    if lease is None:
        return True  # not to be known here
    try:
        fcntl.fcntl(descriptor, lease, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, lease, fcntl.F_UNLCK)
    except OSError:
        return True
    return False


def _shorten(descriptor: int) -> None:
    """Nobody can open it any more."""
    with suppress(OSError):
        size = os.fstat(descriptor).st_size
        while size > 0:
            size = max(0, size - STEP_BYTES)
            os.ftruncate(descriptor, size)
            time.sleep(PAUSE_S)
