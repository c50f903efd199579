"""Part of a disk is kept free for metadata and deletions: appends that would go below are refused."""

from __future__ import annotations

from typing import Final

from raystream.config import MIB
from raystream.errors import DiskFull
from raystream.storage.files import Files

_CHECK_BYTES: Final = 4 * MIB


class Room:
    """Looks how much is free, once in a few megabytes."""

    def __init__(self, files: Files, directory: str, min_free_bytes: int) -> None:
        self._files = files
        self._directory = directory
        self._min_free_bytes = min_free_bytes
        self._unchecked_bytes = 2 * _CHECK_BYTES  # the first append looks

    def take(self, needed_bytes: int) -> None:
        """So many bytes are about to be written. Raises DiskFull."""
        self._unchecked_bytes += needed_bytes
        if self._unchecked_bytes < _CHECK_BYTES:
            return
        free = self._files.free_bytes(self._directory)
        if free - needed_bytes < self._min_free_bytes:
            self._unchecked_bytes = 2 * _CHECK_BYTES
            raise DiskFull(
                f"{self._directory} has {free:,} bytes free; {self._min_free_bytes:,} are kept for metadata and "
                "deletions: make room, or delete records",
                path=self._directory,
            )
        self._unchecked_bytes = 0
