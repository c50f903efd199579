"""Until when a broker cannot have been fenced, told to the actors of its node through eight bytes of shared memory.

The broker writes after each answered heartbeat; a partition actor reads before it serves a read, without a call. Times
are of the machine's monotonic clock, which all its processes share; a file from before a restart of the machine is
overwritten when the broker starts.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Final

_UNTIL: Final = struct.Struct("<d")


class Lease:
    """One broker's lease. Eight aligned bytes are written and read at once."""

    def __init__(self, path: str | Path, *, owner: bool = False) -> None:
        flags = os.O_RDWR | os.O_CREAT if owner else os.O_RDONLY
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        try:
            if owner:
                os.ftruncate(descriptor, _UNTIL.size)
            access = mmap.ACCESS_WRITE if owner else mmap.ACCESS_READ
            self._memory = mmap.mmap(descriptor, _UNTIL.size, access=access)
        finally:
            os.close(descriptor)
        if owner:
            self.extend(0.0)

    def extend(self, until_ms: float) -> None:
        """The broker's: nobody else leads in its place before then."""
        _UNTIL.pack_into(self._memory, 0, until_ms)

    def until_ms(self) -> float:
        """As the broker wrote last."""
        return float(_UNTIL.unpack_from(self._memory, 0)[0])
