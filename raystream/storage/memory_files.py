"""The file system double: files in memory that can lose, at a crash, whatever was not synced.

The model is as harsh as POSIX allows. At a crash each unsynced write is kept, lost or torn at any byte on its own,
whatever the order (a lost one followed by a kept one leaves zeros); each unsynced directory entry (made, renamed or
removed without a sync of its directory) is kept or lost on its own. What `sync`, `sync_dir` or a durable
`write_atomically` returned for stays.
"""

from __future__ import annotations

import errno
import os
import posixpath
import random
import socket
from collections.abc import Sequence
from typing import Final

from raystream.batch import Bytes
from raystream.errors import DataDirectoryInUse, StorageError
from raystream.storage.files import TEMPORARY_SUFFIX, storage_error

_UNBOUNDED: Final = 1 << 50


class _File:
    """One inode: its content now, its content as synced, and the writes since."""

    def __init__(self) -> None:
        self.now = bytearray()
        self.synced = b""
        self.unsynced: list[tuple[int, bytes | None]] = []  # (position, data), or (new size, None) for a cut

    def write(self, data: bytes) -> None:
        self.unsynced.append((len(self.now), data))
        self.now += data

    def cut(self, size: int) -> None:
        self.unsynced.append((size, None))
        del self.now[size:]

    def sync(self) -> None:
        self.synced = bytes(self.now)
        self.unsynced.clear()

    def crash(self, rng: random.Random) -> None:
        content = bytearray(self.synced)
        for position, data in self.unsynced:
            fate = rng.choice(("kept", "lost", "torn"))
            if fate == "lost" or (data is None and fate == "torn"):
                continue
            if data is None:
                del content[position:]
                continue
            kept = data if fate == "kept" else data[: rng.randrange(len(data) + 1)]
            if kept:
                content += bytes(max(0, position - len(content)))
                content[position : position + len(kept)] = kept
        self.now = content
        self.sync()


class MemoryFiles:
    """Implements `Files`. `capacity_bytes` is the disk's size; `fail_at` makes one coming operation fail."""

    def __init__(self, capacity_bytes: int = _UNBOUNDED) -> None:
        self.capacity_bytes = capacity_bytes
        self.operations = 0
        """How many operations that change something were begun."""
        self._entries: dict[str, _File] = {}
        self._synced_entries: dict[str, _File] = {}
        self._directories: set[str] = set()
        self._locked: set[str] = set()
        self._life = 0
        self._fail_at: tuple[int, int] | None = None

    # Faults ---------------------------------------------------------------------------------------------------------

    def fail_at(self, nth: int, error_number: int) -> None:
        """Makes the `nth` operation from now on (1: the next) that changes something fail, once.

        A failing write writes some of its bytes first.
        """
        self._fail_at = (self.operations + nth, error_number)

    def crash(self, rng: random.Random) -> None:
        """The machine loses power: unsynced data, all handles and locks are gone."""
        names = set(self._entries) | set(self._synced_entries)
        survived: dict[str, _File] = {}
        for name in sorted(names):
            now, synced = self._entries.get(name), self._synced_entries.get(name)
            file = now if now is synced or rng.random() < 0.5 else synced
            if file is not None:
                survived[name] = file
        for file in {id(file): file for file in survived.values()}.values():
            file.crash(rng)
        self._entries, self._synced_entries = survived, dict(survived)
        self.kill()

    def kill(self) -> None:
        """The process dies: its handles and locks are gone, what it wrote stays."""
        self._life += 1
        self._locked.clear()
        self._fail_at = None

    def corrupt(self, path: str, content: bytes) -> None:
        """Puts other bytes into a file, as bad hardware does."""
        file = self._file(path)
        file.now[:] = content
        file.sync()

    def _begin(self, doing: str, path: str) -> None:
        self.operations += 1
        if self._fail_at is not None and self.operations >= self._fail_at[0]:
            number, self._fail_at = self._fail_at[1], None
            raise storage_error(OSError(number, errno.errorcode[number]), doing, path)

    def _write(self, file: _File, data: bytes, path: str) -> None:
        room = self.free_bytes(path)
        try:
            self._begin("write", path)
        except StorageError:
            file.write(data[: len(data) // 2])
            raise
        if len(data) > room:
            file.write(data[:room])
            raise storage_error(OSError(errno.ENOSPC, "No space left on device"), "write", path)
        file.write(data)

    # Files ----------------------------------------------------------------------------------------------------------

    def makedirs(self, directory: str) -> None:
        while directory and directory not in self._directories:
            self._directories.add(directory)
            directory = posixpath.dirname(directory)

    def listdir(self, directory: str) -> list[str]:
        return sorted(posixpath.basename(path) for path in self._entries if posixpath.dirname(path) == directory)

    def directories(self, directory: str) -> list[str]:
        return sorted(posixpath.basename(each) for each in self._directories if posixpath.dirname(each) == directory)

    def remove_directory(self, directory: str) -> None:
        self._begin("remove", directory)
        for path in [path for path in self._entries if path.startswith(directory + "/")]:
            del self._entries[path]
        self._directories = {d for d in self._directories if d != directory and not d.startswith(directory + "/")}

    def move_directory(self, directory: str, to: str) -> None:
        self._begin("move", directory)
        if directory not in self._directories:
            return
        for entries in (self._entries, self._synced_entries):
            for path in [path for path in entries if path.startswith(directory + "/")]:
                entries[to + path[len(directory) :]] = entries.pop(path)
        inside = {d for d in self._directories if d == directory or d.startswith(directory + "/")}
        self._directories = self._directories - inside | {to + d[len(directory) :] for d in inside}

    def size(self, path: str) -> int:
        return len(self._file(path).now)

    def open_append(self, path: str) -> MemoryAppendHandle:
        if posixpath.dirname(path) not in self._directories:
            raise StorageError(f"cannot open {path}: there is no such directory", path=path)
        if path not in self._entries:
            self._begin("open", path)
            self._entries[path] = _File()
        return MemoryAppendHandle(self, path, self._entries[path])

    def read(self, path: str, position: int = 0, length: int | None = None) -> bytes:
        end = None if length is None else position + length
        return bytes(self._file(path).now[position:end])

    def send(self, path: str, position: int, length: int, descriptor: int) -> None:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.sendall(self.read(path, position, length))

    def map(self, path: str) -> memoryview:
        return memoryview(bytes(self._file(path).now))

    def write_atomically(self, path: str, data: bytes, *, durable: bool = True) -> None:
        temporary = path + TEMPORARY_SUFFIX
        self._begin("write", path)
        file = self._entries[temporary] = _File()
        self._write(file, data, path)
        if durable:
            self._begin("sync", path)
            file.sync()
        self._begin("rename", path)
        self._entries[path] = self._entries.pop(temporary)
        if durable:
            self.sync_dir(posixpath.dirname(path))

    def rename(self, path: str, to: str) -> None:
        self._begin("rename", path)
        self._entries[to] = self._entries.pop(path)
        self.sync_dir(posixpath.dirname(to))

    def truncate(self, path: str, size: int) -> None:
        self._begin("truncate", path)
        file = self._file(path)
        file.cut(size)
        file.sync()

    def unlink(self, path: str) -> None:
        self._begin("remove", path)
        self._entries.pop(path, None)

    def sync_dir(self, directory: str) -> None:
        self._begin("sync the directory", directory)
        for path in set(self._entries) | set(self._synced_entries):
            if posixpath.dirname(path) == directory:
                if path in self._entries:
                    self._synced_entries[path] = self._entries[path]
                else:
                    del self._synced_entries[path]

    def lock(self, path: str) -> MemoryLock:
        if path in self._locked:
            raise DataDirectoryInUse(f"{path} is locked by another process", path=path)
        self._locked.add(path)
        return MemoryLock(self, path)

    def free_bytes(self, directory: str) -> int:
        return max(0, self.capacity_bytes - sum(len(file.now) for file in self._entries.values()))

    def _file(self, path: str) -> _File:
        file = self._entries.get(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return file


class MemoryAppendHandle:
    """A file in memory, open for appending until the process that opened it dies."""

    def __init__(self, files: MemoryFiles, path: str, file: _File) -> None:
        self._files = files
        self._path = path
        self._file = file
        self._life = files._life
        self._broken = False

    def writev(self, pieces: Sequence[Bytes]) -> None:
        self._check()
        self._files._write(self._file, b"".join(pieces), self._path)

    def sync(self) -> None:
        self._check()
        try:
            self._files._begin("sync", self._path)
        except StorageError as error:
            self._broken = True
            raise StorageError(str(error), path=self._path) from None
        self._file.sync()

    def truncate(self, size: int) -> None:
        self._check()
        self._files._begin("truncate", self._path)
        self._file.cut(size)

    def drop_cached(self) -> None:
        pass

    @property
    def size(self) -> int:
        return len(self._file.now)

    def close(self) -> None:
        self._broken = True

    def _check(self) -> None:
        if self._broken or self._life != self._files._life:
            raise StorageError(f"no more writes to {self._path}", path=self._path)


class MemoryLock:
    """A lock in memory."""

    def __init__(self, files: MemoryFiles, path: str) -> None:
        self._files = files
        self._path = path
        self._life = files._life

    def release(self) -> None:
        if self._life == self._files._life:
            self._files._locked.discard(self._path)
