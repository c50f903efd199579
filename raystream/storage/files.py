"""The one seam through which a log reaches its disk. `memory_files.py` is the double that can lose what was not synced.

Errors: a full disk is DiskFull; any other refusal of the operating system is a StorageError that names the file; a
missing file stays FileNotFoundError, because callers decide what that means. A failed sync poisons its handle: the
kernel may have dropped the dirty pages, so a second sync that succeeds would prove nothing.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

from raystream.batch import Bytes
from raystream.errors import DataDirectoryInUse, DiskFull, StorageError
from raystream.storage.removal import Remover

_MAX_PIECES: Final = min(1024, os.sysconf("SC_IOV_MAX"))
TEMPORARY_SUFFIX: Final = ".tmp"


class AppendHandle(Protocol):
    """A file open for appending, by one thread."""

    def writev(self, pieces: Sequence[Bytes]) -> None:
        """Writes all pieces at the end of the file. After an error some prefix of them may stand there."""

    def sync(self) -> None:
        """Returns when everything written so far is on the disk."""

    def truncate(self, size: int) -> None:
        """Cuts bytes that were never published."""

    def drop_cached(self) -> None:
        """Lets the system forget what it holds of the file in memory and has on the disk."""

    @property
    def size(self) -> int:
        """The file's length in bytes."""

    def close(self) -> None: ...


class LockHandle(Protocol):
    """A held lock. It ends with the process that took it, whatever happens to that."""

    def release(self) -> None: ...


class Files(Protocol):
    """What a log asks of a file system. Paths are strings with `/`."""

    def makedirs(self, directory: str) -> None: ...

    def listdir(self, directory: str) -> list[str]: ...

    def directories(self, directory: str) -> list[str]:
        """The names of the directories inside."""

    def remove_directory(self, directory: str) -> None:
        """Removes a directory with all in it, as far as that is possible; a crash may bring parts of it back."""

    def move_directory(self, directory: str, to: str) -> None:
        """Gives a directory another name on the same file system, durably; one that is missing already is fine."""

    def size(self, path: str) -> int: ...

    def open_append(self, path: str) -> AppendHandle:
        """Opens for appending; makes the file where it is missing (durable only after `sync_dir`)."""

    def read(self, path: str, position: int = 0, length: int | None = None) -> bytes:
        """Bytes from `position`, fewer than `length` only at the file's end. `length` None: to the end."""

    def send(self, path: str, position: int, length: int, descriptor: int) -> None:
        """Bytes of the file into a socket that blocks, by the kernel. Raises OSError where the socket does not take
        them: some may be on their way then."""

    def map(self, path: str) -> memoryview:
        """The file as it is now, read-only; lives as long as the view."""

    def write_atomically(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Makes `path` hold `data`, or leaves it as it was: temporary file, sync, rename, sync of the directory.

        `durable` False leaves the syncs out: for what can be rebuilt and carries a CRC.
        """

    def rename(self, path: str, to: str) -> None:
        """Gives a file that was synced another name, durably."""

    def truncate(self, path: str, size: int) -> None:
        """Cuts bytes that were never published, and syncs the file."""

    def unlink(self, path: str) -> None:
        """Removes a file; one that is missing already is fine. The space of a large one may come back by and by."""

    def sync_dir(self, directory: str) -> None: ...

    def lock(self, path: str) -> LockHandle:
        """Takes the lock file without waiting. Raises DataDirectoryInUse."""

    def free_bytes(self, directory: str) -> int: ...


def storage_error(error: OSError, doing: str, path: str) -> StorageError:
    """The error of our tree for one of the operating system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk is full: cannot {doing} {path}", path=path)
    return StorageError(f"cannot {doing} {path}: {error.strerror or error}", path=path, errno=error.errno)


class DiskFiles:
    """The machine's file system."""

    def __init__(self) -> None:
        self._remover = Remover()

    def makedirs(self, directory: str) -> None:
        try:
            parent = directory
            missing = []
            while not os.path.isdir(parent):
                missing.append(parent)
                parent = os.path.dirname(parent) or "."
            os.makedirs(directory, exist_ok=True)
            for made in missing:
                self.sync_dir(os.path.dirname(made) or ".")
        except OSError as error:
            raise storage_error(error, "make the directory", directory) from None

    def listdir(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(directory))
        except OSError as error:
            raise storage_error(error, "list", directory) from None

    def directories(self, directory: str) -> list[str]:
        return [name for name in self.listdir(directory) if os.path.isdir(os.path.join(directory, name))]

    def remove_directory(self, directory: str) -> None:
        for parent, _, names in os.walk(directory):
            for name in names:
                with suppress(StorageError):
                    self.unlink(os.path.join(parent, name))
        shutil.rmtree(directory, ignore_errors=True)

    def move_directory(self, directory: str, to: str) -> None:
        try:
            os.replace(directory, to)
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, "move", directory) from None
        for changed in {os.path.dirname(directory) or ".", os.path.dirname(to) or "."}:
            self.sync_dir(changed)

    def size(self, path: str) -> int:
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(error, "stat", path) from None

    def open_append(self, path: str) -> DiskAppendHandle:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_error(error, "open", path) from None
        return DiskAppendHandle(path, descriptor)

    def read(self, path: str, position: int = 0, length: int | None = None) -> bytes:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                wanted = os.fstat(descriptor).st_size - position if length is None else length
                return _read_fully(descriptor, position, max(wanted, 0))
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(error, "read", path) from None

    def send(self, path: str, position: int, length: int, descriptor: int) -> None:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            end = position + length
            while position < end:
                sent = os.sendfile(descriptor, source, position, end - position)
                if not sent:
                    raise StorageError(f"{path} has lost bytes past {position}", path=path)
                position += sent
        finally:
            os.close(source)

    def map(self, path: str) -> memoryview:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size == 0:
                    return memoryview(b"")
                return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(error, "map", path) from None

    def write_atomically(self, path: str, data: bytes, *, durable: bool = True) -> None:
        temporary = path + TEMPORARY_SUFFIX
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                _write_fully(descriptor, [data])
                if durable:
                    _sync_descriptor(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except OSError as error:
            raise storage_error(error, "write", path) from None
        if durable:
            self.sync_dir(os.path.dirname(path) or ".")

    def rename(self, path: str, to: str) -> None:
        try:
            os.replace(path, to)
        except OSError as error:
            raise storage_error(error, "rename", path) from None
        self.sync_dir(os.path.dirname(to) or ".")

    def truncate(self, path: str, size: int) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(descriptor, size)
                _sync_descriptor(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error(error, "truncate", path) from None

    def unlink(self, path: str) -> None:
        try:
            self._remover.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise storage_error(error, "remove", path) from None

    def sync_dir(self, directory: str) -> None:
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error(error, "sync the directory", directory) from None

    def lock(self, path: str) -> DiskLock:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_error(error, "open", path) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise DataDirectoryInUse(f"{path} is locked by another process (pid {holder})", path=path) from None
        except OSError as error:
            os.close(descriptor)
            raise storage_error(error, "lock", path) from None
        with suppress(OSError):  # the text only says whom to name; a full disk must not keep a log from being read
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return DiskLock(descriptor)

    def free_bytes(self, directory: str) -> int:
        try:
            found = os.statvfs(directory)
        except OSError as error:
            raise storage_error(error, "stat the file system of", directory) from None
        return found.f_bavail * found.f_frsize


class DiskAppendHandle:
    """A file on disk, open for appending."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._broken: StorageError | None = None

    def writev(self, pieces: Sequence[Bytes]) -> None:
        self._refuse_if_broken()
        try:
            _write_fully(self._descriptor, pieces)
        except OSError as error:
            raise self._failed(storage_error(error, "append to", self._path)) from None

    def sync(self) -> None:
        self._refuse_if_broken()
        try:
            _sync_descriptor(self._descriptor)
        except OSError as error:
            failure = storage_error(error, "sync", self._path)
            self._broken = StorageError(str(failure), path=self._path)
            raise self._broken from None

    def truncate(self, size: int) -> None:
        self._refuse_if_broken()
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise self._failed(storage_error(error, "truncate", self._path)) from None

    def drop_cached(self) -> None:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        self._broken = self._broken or StorageError(f"{self._path} is closed", path=self._path)
        if descriptor >= 0:
            os.close(descriptor)

    def _failed(self, failure: StorageError) -> StorageError:
        if not isinstance(failure, DiskFull):
            self._broken = failure
        return failure

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise StorageError(f"no more writes after an error: {self._broken}", path=self._path)


class DiskLock:
    """A lock by `flock`. A forked child lets go of its copy, so that the lock ends with the process that took it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        _held_locks.add(self)

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


_held_locks: weakref.WeakSet[DiskLock] = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in list(_held_locks):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)


def _write_fully(descriptor: int, pieces: Sequence[Bytes]) -> None:
    for first in range(0, len(pieces), _MAX_PIECES):
        some = list(pieces[first : first + _MAX_PIECES])
        left = sum(map(len, some))
        while left:
            written = os.writev(descriptor, some)
            left -= written
            if left:
                some = _after(some, written)


def _after(pieces: list[Bytes], written: int) -> list[Bytes]:
    """What a short write left over."""
    for at, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[at + 1 :]]
        written -= len(piece)
    return []


def _read_fully(descriptor: int, position: int, length: int) -> bytes:
    data = os.pread(descriptor, length, position)
    if len(data) in (0, length):
        return data
    parts = [data]  # one pread gives at most 2 GiB
    have = len(data)
    while have < length and (data := os.pread(descriptor, length - have, position + have)):
        parts.append(data)
        have += len(data)
    return b"".join(parts)


def _sync_descriptor(descriptor: int) -> None:
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync there only reaches the drive's cache
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
            os.fsync(descriptor)  # a file system that knows no better
    else:
        os.fdatasync(descriptor)
