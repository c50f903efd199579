"""What a Raft node keeps on its broker's disk: who it is, its vote, its last snapshot and its entries.

    <slot>/metadata/node       who the broker is, and the hard state: replaced whole with every term and vote
    <slot>/metadata/snapshot   the last snapshot: replaced whole
    <slot>/metadata/entries    entries one after the other: appended to, and cut
    <slot>/metadata/lock       flock of the process that uses them

`node` and `snapshot` are a line of text each, and for a snapshot the state machine's bytes after it:

    raystream-raft-node/1 <CRC32C, 8 hex digits> <JSON>\\n

The CRC covers everything but itself, so that a flipped version is damage and not a later version. The version in `node`
is that of `entries` too, where one entry is, little-endian:

    u32 magic | u32 CRC32C | u32 length of the content | u64 synced | u64 index | u64 term | u8 kind | content

The CRC covers what follows it and, before that, the entry's own position as a u64, so that what an entry holds is never
taken for an entry. `synced` is a position up to which the file was on the disk before this entry was written. An entry
that cannot be read was torn by a crash, and is cut with all that follows, unless something behind it says that it had
been on the disk: then it is damage, and nothing is touched.

`open` makes the file `entries` durable before anything else, so a directory without it has never held a vote or an
entry, and is the only one without a `node` file that may be formatted.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, NoReturn

from raystream.checksum import crc32c
from raystream.core.raft_log import RaftLog
from raystream.core.raft_messages import NOTHING, Entry, HardState, Ready, Snapshot, Voter, Voters
from raystream.errors import CorruptLog, DiskFull, NewerFormat, StorageError
from raystream.storage.files import TEMPORARY_SUFFIX, AppendHandle, Files, LockHandle

NODE: Final = "node"
SNAPSHOT: Final = "snapshot"
ENTRIES: Final = "entries"
LOCK: Final = "lock"

_VERSION: Final = 1
_MAGIC: Final = b"RsE1"
_PREFIX: Final = struct.Struct("<4sI")
_HEADER: Final = struct.Struct("<IQQQB")
_POSITION: Final = struct.Struct("<Q")
_EMPTY, _DATA, _VOTERS = range(3)


class _Placed(NamedTuple):
    """An entry as it stands in the file."""

    entry: Entry
    synced: int
    end: int


class RaftDisk:
    """The disk of one node, held by a lock until `close`. For one thread.

    `hard_state`, `snapshot` and `entries` are what `open` found, and are not kept in step with what is written.
    After an error of `write` nobody knows what is on the disk, until it is opened again.
    """

    def __init__(self, files: Files, directory: str, lock: LockHandle) -> None:
        self._files = files
        self._directory = directory
        self._lock: LockHandle | None = lock
        self._handle: AppendHandle
        self._positions: list[int] = []
        """Where each entry in the file begins."""
        self._first_index = 1
        self._end = 0
        self.identity: Voter
        self.cluster_id: str
        self.hard_state: HardState
        self.snapshot: Snapshot
        self.entries: tuple[Entry, ...]

    # Opening --------------------------------------------------------------------------------------------------------

    @staticmethod
    def exists(files: Files, directory: str) -> bool:
        """Whether a node lives there. Raises CorruptLog where one has lived whose `node` file is gone."""
        files.makedirs(directory)
        names = {name for name in files.listdir(directory) if name != LOCK and not name.endswith(TEMPORARY_SUFFIX)}
        if NODE in names:
            return True
        cut_short = names == {SNAPSHOT} and _read_snapshot(files, directory).index <= 1
        if names and not cut_short:
            _refuse(
                f"{directory}/{NODE}",
                f"is missing, and a metadata log lies beside it: put it back, or move {directory} away",
            )
        return False

    @classmethod
    def format(cls, files: Files, directory: str, *, identity: Voter, cluster_id: str, snapshot: Snapshot) -> None:
        """Makes a new node, durable when it returns; a crash half-way leaves none, and it can be made again.

        `snapshot` is `first_snapshot(voters)` at the voters that create a cluster, NOTHING at everybody else. Raises
        StorageError where a node is there already, CorruptLog where `exists` does.
        """
        files.makedirs(directory)
        lock = files.lock(f"{directory}/{LOCK}")
        try:
            if cls.exists(files, directory):
                raise StorageError(f"{directory} holds a node already", path=directory)
            files.write_atomically(f"{directory}/{SNAPSHOT}", _snapshot_bytes(snapshot))
            files.write_atomically(f"{directory}/{NODE}", _node_bytes(identity, cluster_id, HardState()))
        finally:
            lock.release()

    @classmethod
    def open(cls, files: Files, directory: str) -> RaftDisk:
        """Recovers what is there. Raises DataDirectoryInUse, CorruptLog, NewerFormat, StorageError."""
        lock = files.lock(f"{directory}/{LOCK}")
        try:
            disk = cls(files, directory, lock)
            disk._recover()
        except BaseException:
            lock.release()
            raise
        return disk

    def _recover(self) -> None:
        self.identity, self.cluster_id, self.hard_state = _read_node(self._files, self._directory)
        self.snapshot = _read_snapshot(self._files, self._directory)
        found = self._read_entries()
        if found and found[0].index > self.snapshot.index + 1:
            _refuse(self._path(SNAPSHOT), f"ends at {self.snapshot.index}, and the log begins at {found[0].index}")
        log = RaftLog(self.snapshot, found)
        self.entries = tuple(log.slice(log.base_index + 1, log.last_index + 1))
        if not self.entries:  # what was found, if anything, is what a snapshot replaced, or is in it
            self._positions, self._end = [], 0
        self._handle = self._files.open_append(self._path(ENTRIES))
        try:
            # What a killed process wrote and did not sync counts from here on: names first, as the cut relies on them.
            self._files.sync_dir(self._directory)
            if self._handle.size:
                self._handle.truncate(self._end)
                self._handle.sync()
        except BaseException:
            self._handle.close()
            raise

    def _read_entries(self) -> list[Entry]:
        try:
            data = self._files.read(self._path(ENTRIES))
        except FileNotFoundError:
            return []
        found: list[Entry] = []
        for placed in _walk(data):
            if found and placed.entry.index != found[-1].index + 1:
                _refuse(self._path(ENTRIES), "skips an entry", position=self._end)
            found.append(placed.entry)
            self._note([placed.entry], [placed.end - self._end])
        if any(placed.synced > self._end for placed in _walk_behind(data, self._end)):
            _refuse(self._path(ENTRIES), "is damaged before its end", position=self._end)
        return found

    def forget_found(self) -> None:
        """Gives back the memory of what `open` found."""
        self.snapshot = NOTHING
        self.entries = ()

    # Writing --------------------------------------------------------------------------------------------------------

    def write(self, ready: Ready) -> None:
        """Makes durable what a Ready says, in its order. A crash leaves a first part of it. Raises StorageError."""
        if ready.hard_state is not None:
            data = _node_bytes(self.identity, self.cluster_id, ready.hard_state)
            self._files.write_atomically(self._path(NODE), data)
        if ready.snapshot is not None:
            self._files.write_atomically(self._path(SNAPSHOT), _snapshot_bytes(ready.snapshot))
            self._cut(self._first_index)
        if ready.truncate_from is not None:
            self._cut(ready.truncate_from)
        if ready.entries:
            self._check_follows(ready.entries)
            frames = _encode(ready.entries, self._end, synced=self._end)
            self._handle.writev(frames)
            self._handle.sync()
            self._note(ready.entries, [len(frame) for frame in frames])

    def compacted(self, snapshot: Snapshot, keep_from_index: int) -> None:
        """The state machine's own snapshot; entries before `keep_from_index`, which it stands for, go.

        Raises DiskFull where there is no room for the snapshot: nothing has changed then. Any other StorageError is as
        one of `write`.
        """
        assert keep_from_index <= snapshot.index + 1, f"entry {keep_from_index - 1} is not in snapshot {snapshot.index}"
        try:
            self._files.write_atomically(self._path(SNAPSHOT), _snapshot_bytes(snapshot))
        except DiskFull:
            self._files.unlink(self._path(SNAPSHOT) + TEMPORARY_SUFFIX)  # the log needs what room there is
            raise
        place = self._place(keep_from_index)
        if place == 0:
            return
        path, start = self._path(ENTRIES), self._positions[place] if place < len(self._positions) else self._end
        kept = [placed.entry for placed in _walk(self._files.read(path, start, self._end - start), start)]
        if len(kept) != len(self._positions) - place:
            _refuse(path, "cannot be read back", position=start)
        frames = _encode(kept, 0, synced=None)
        try:
            self._files.write_atomically(path, b"".join(frames))
        except DiskFull as error:
            raise StorageError(str(error), path=path) from error
        self._handle.close()
        self._handle = self._files.open_append(path)
        self._positions, self._end = [], 0
        self._note(kept, [len(frame) for frame in frames])

    def _cut(self, index: int) -> None:
        """The entries from `index` on go. On the disk at once: none that is written later may stand before them."""
        place = self._place(index)
        if place < len(self._positions):
            self._end = self._positions[place]
            del self._positions[place:]
            self._handle.truncate(self._end)
            self._handle.sync()

    def _place(self, index: int) -> int:
        return min(max(index - self._first_index, 0), len(self._positions))

    def _note(self, entries: Sequence[Entry], lengths: Sequence[int]) -> None:
        if not self._positions and entries:
            self._first_index = entries[0].index
        for length in lengths:
            self._positions.append(self._end)
            self._end += length

    def _check_follows(self, entries: Sequence[Entry]) -> None:
        expected = self._first_index + len(self._positions) if self._positions else entries[0].index
        assert [entry.index for entry in entries] == list(range(expected, expected + len(entries)))

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def close(self) -> None:
        """Gives the directory back. More than once is the same as once."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with suppress(StorageError):
                self._handle.close()
            lock.release()


# Entries ------------------------------------------------------------------------------------------------------------


def _encode(entries: Sequence[Entry], position: int, *, synced: int | None) -> list[bytes]:
    """The entries as they stand from `position` on; `synced` None: everything before each is on the disk with it."""
    frames = []
    for entry in entries:
        kind, content = _EMPTY, b""
        if entry.data is not None:
            kind, content = _DATA, entry.data
        elif entry.voters is not None:
            kind, content = _VOTERS, json.dumps(_pairs(entry.voters), separators=(",", ":")).encode()
        header = _HEADER.pack(len(content), position if synced is None else synced, entry.index, entry.term, kind)
        crc = crc32c(content, crc32c(header, crc32c(_POSITION.pack(position))))
        frames.append(b"".join((_PREFIX.pack(_MAGIC, crc), header, content)))
        position += len(frames[-1])
    return frames


def _placed_at(data: bytes, at: int, start: int) -> _Placed | None:
    """The entry that begins at `at` of bytes that begin at `start` of the file, if a whole one does."""
    body = at + _PREFIX.size + _HEADER.size
    if body > len(data):
        return None
    magic, crc = _PREFIX.unpack_from(data, at)
    length, synced, index, term, kind = _HEADER.unpack_from(data, at + _PREFIX.size)
    end = body + length
    if magic != _MAGIC or end > len(data):
        return None
    covered = memoryview(data)[at + _PREFIX.size : end]
    if crc32c(covered, crc32c(_POSITION.pack(start + at))) != crc:
        return None
    content = data[body:end]
    entry = Entry(
        index,
        term,
        data=content if kind == _DATA else None,
        voters=_voters(json.loads(content)) if kind == _VOTERS else None,
    )
    return _Placed(entry, synced, end)


def _walk(data: bytes, start: int = 0) -> Iterator[_Placed]:
    """Whole entries, one after the other, up to the first place where none begins."""
    at = 0
    while (placed := _placed_at(data, at, start)) is not None:
        yield placed
        at = placed.end


def _walk_behind(data: bytes, torn: int) -> Iterator[_Placed]:
    """Whole entries that begin anywhere behind a place where none can be read."""
    at = data.find(_MAGIC, torn + 1)
    while at >= 0:
        placed = _placed_at(data, at, 0)
        if placed is not None:
            yield placed
        at = data.find(_MAGIC, at + 1)


# Files that are replaced whole --------------------------------------------------------------------------------------


def _node_bytes(identity: Voter, cluster_id: str, state: HardState) -> bytes:
    content = {
        "cluster_id": cluster_id,
        "broker_id": identity.id,
        "directory_id": identity.directory_id,
        "term": state.term,
        "voted_for": None if state.voted_for is None else _pairs((state.voted_for,))[0],
    }
    return _sealed(NODE, content)


def _read_node(files: Files, directory: str) -> tuple[Voter, str, HardState]:
    content, _ = _unsealed(files, directory, NODE)
    voted_for = content["voted_for"]
    state = HardState(content["term"], None if voted_for is None else Voter(*voted_for))
    return Voter(content["broker_id"], content["directory_id"]), content["cluster_id"], state


def _snapshot_bytes(snapshot: Snapshot) -> bytes:
    content = {"index": snapshot.index, "term": snapshot.term, "voters": _pairs(snapshot.voters)}
    return _sealed(SNAPSHOT, content, snapshot.data)


def _read_snapshot(files: Files, directory: str) -> Snapshot:
    content, data = _unsealed(files, directory, SNAPSHOT)
    return Snapshot(content["index"], content["term"], _voters(content["voters"]), data)


def _sealed(name: str, content: dict[str, Any], data: bytes = b"") -> bytes:
    head = b"raystream-raft-%s/%d " % (name.encode(), _VERSION)
    text = json.dumps(content, separators=(",", ":")).encode() + b"\n"
    return b"".join((head, b"%08x " % crc32c(data, crc32c(text, crc32c(head))), text, data))


def _unsealed(files: Files, directory: str, name: str) -> tuple[dict[str, Any], bytes]:
    path = f"{directory}/{name}"
    try:
        found = files.read(path)
    except FileNotFoundError:
        _refuse(path, "is missing: put it back, or move the directory away")
    head, _, rest = found.partition(b" ")
    crc, _, rest = rest.partition(b" ")
    version = head.removeprefix(b"raystream-raft-%s/" % name.encode())
    if version == head or not version.isdigit() or crc != b"%08x" % crc32c(rest, crc32c(head + b" ")):
        _refuse(path, "is damaged")
    if int(version) > _VERSION:
        raise NewerFormat(
            f"{path} has format version {int(version)}; this raystream reads up to {_VERSION}: upgrade it", path=path
        )
    text, _, data = rest.partition(b"\n")
    content: dict[str, Any] = json.loads(text)
    return content, data


def _pairs(voters: Voters) -> list[tuple[int, str]]:
    return [(voter.id, voter.directory_id) for voter in voters]


def _voters(pairs: Sequence[Sequence[Any]]) -> Voters:
    return tuple(Voter(*pair) for pair in pairs)


def _refuse(path: str, why: str, *, position: int = 0) -> NoReturn:
    raise CorruptLog(f"{path} {why}", path=path, position=position, offset=None)
