"""A Raft node's disk: whatever the moment of a crash, what is found is a first part of what was written, in order."""

from __future__ import annotations

import copy
import errno
import random
from collections.abc import Iterator

import pytest

from raystream.actors import raft_disk
from raystream.actors.raft_disk import RaftDisk
from raystream.core.raft_log import RaftLog
from raystream.core.raft_messages import NOTHING, Entry, HardState, Ready, Snapshot, Voter, first_snapshot
from raystream.errors import CorruptLog, DataDirectoryInUse, DiskFull, NewerFormat, StorageError
from raystream.storage.memory_files import MemoryFiles
from tests.sim.raft_disk import Disk

DIRECTORY = "root/broker-0/metadata"
ENTRIES = f"{DIRECTORY}/entries"
NODE = f"{DIRECTORY}/node"
SNAPSHOT = f"{DIRECTORY}/snapshot"
ME, OTHER = Voter(1, "disk 1"), Voter(2, "disk 2")
FIRST = first_snapshot((ME, OTHER))

Found = tuple[HardState, Snapshot, tuple[Entry, ...]]


def ready(
    *entries: Entry,
    hard_state: HardState | None = None,
    snapshot: Snapshot | None = None,
    truncate_from: int | None = None,
) -> Ready:
    return Ready(hard_state, snapshot, truncate_from, entries, (), (), None)


def formatted(files: MemoryFiles, snapshot: Snapshot = FIRST) -> RaftDisk:
    RaftDisk.format(files, DIRECTORY, identity=ME, cluster_id="c", snapshot=snapshot)
    return RaftDisk.open(files, DIRECTORY)


def reopened(files: MemoryFiles) -> RaftDisk:
    files.kill()
    return RaftDisk.open(files, DIRECTORY)


def entries(first: int, end: int, term: int = 1) -> list[Entry]:
    return [Entry(index, term, data=b"%d of term %d" % (index, term)) for index in range(first, end)]


# Crashes ------------------------------------------------------------------------------------------------------------


class Script:
    """Writes what Raft might, for ever, to a disk and to a model of it, and compacts now and then."""

    def __init__(self, rng: random.Random, disk: RaftDisk, model: Disk) -> None:
        self.rng = rng
        self.disk = disk
        self.model = model

    def step(self) -> None:
        """One write, in the model before it is on the disk, and promised once it is."""
        rng, model = self.rng, self.model
        snapshot, held = model.snapshot, seen(model)[2]
        last_index = held[-1].index if held else snapshot.index
        last_term = held[-1].term if held else snapshot.term
        term = model.hard_state.term
        match rng.choice(["append", "append", "append", "vote", "conflict", "install", "compact"]):
            case "append":
                end = last_index + 1 + rng.randint(1, 4)
                self._write(ready(*self._new(last_index + 1, end, max(term, last_term))))
            case "vote":
                self._write(ready(hard_state=HardState(term + 1, rng.choice([None, ME, OTHER]))))
            case "conflict" if held:
                cut = rng.randint(held[0].index, last_index)
                later = max(term, last_term) + 1
                new = self._new(cut, cut + rng.randint(0, 3), later)
                self._write(ready(*new, hard_state=HardState(later), truncate_from=cut))
            case "install":
                later = max(term, last_term) + 1
                index = rng.randint(snapshot.index + 1, last_index + 5)
                new = self._new(index + 1, index + 1 + rng.randint(0, 2), later)
                installed = Snapshot(index, later, (ME,), rng.randbytes(rng.randint(0, 40)))
                self._write(ready(*new, hard_state=HardState(later), snapshot=installed))
            case "compact" if held:
                upto = rng.choice(held)
                keep = rng.randint(0, 3)
                own = Snapshot(upto.index, upto.term, (ME, OTHER), b"state at %d" % upto.index)
                model.pending += [own]
                self.disk.compacted(own, upto.index + 1 - keep)
                model.sync()

    def _new(self, first: int, end: int, term: int) -> list[Entry]:
        contents = [b"", b"x" * self.rng.randint(1, 200), None]
        return [
            Entry(index, term, voters=(ME,)) if index % 7 == 0 else Entry(index, term, data=self.rng.choice(contents))
            for index in range(first, end)
        ]

    def _write(self, work: Ready) -> None:
        self.model.write(work)
        self.disk.write(work)
        self.model.sync()


def seen(disk: Disk | RaftDisk) -> Found:
    """What Raft would begin with."""
    log = RaftLog(disk.snapshot, disk.entries)
    return disk.hard_state, disk.snapshot, tuple(log.slice(log.base_index + 1, log.last_index + 1))


def allowed(model: Disk) -> Iterator[Found]:
    """Every state that a crash may leave: what was promised, and a first part of what was written since."""
    for length in range(len(model.pending) + 1):
        crashed = copy.deepcopy(model)
        del crashed.pending[length:]
        crashed.sync()
        yield seen(crashed)


def opened_or_made(files: MemoryFiles) -> RaftDisk:
    """A broker's start."""
    if not RaftDisk.exists(files, DIRECTORY):
        RaftDisk.format(files, DIRECTORY, identity=ME, cluster_id="c", snapshot=FIRST)
    return RaftDisk.open(files, DIRECTORY)


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("seed", range(60))
def test_every_life_begins_with_a_first_part_of_what_the_one_before_has_written(seed: int, fault: int) -> None:
    rng = random.Random(seed)
    files = MemoryFiles()
    model = Disk(ME.directory_id, FIRST)
    lives = failures = 0
    while lives < 25:
        lives += 1
        files.fail_at(rng.randint(1, 40), fault)
        script = None
        try:
            script = Script(rng, opened_or_made(files), model)
            assert seen(script.disk) in list(allowed(model))
            model.pending.clear()
            model.hard_state, model.snapshot, held = seen(script.disk)
            model.entries = list(held)
            for _ in range(50):
                script.step()
        except StorageError:
            failures += 1
        if rng.random() < 0.2:
            files.kill()
        else:
            files.crash(rng)
    assert failures > 10


def test_a_crash_in_formatting_leaves_nothing_that_must_be_kept() -> None:
    for nth in range(1, 9):
        for seed in range(8):
            files = MemoryFiles()
            files.fail_at(nth, errno.EIO)
            with pytest.raises(StorageError):
                formatted(files).write(ready(hard_state=HardState(1)))
            files.crash(random.Random(seed))
            disk = opened_or_made(files)
            assert seen(disk) == (HardState(), FIRST, ())
            assert (disk.identity, disk.cluster_id) == (ME, "c")


def test_what_a_killed_process_has_not_synced_is_durable_once_it_is_found() -> None:
    files = MemoryFiles()
    disk = formatted(files)
    files.fail_at(2, errno.EIO)
    with pytest.raises(StorageError):
        disk.write(ready(*entries(2, 4)))
    assert list(reopened(files).entries) == entries(2, 4)
    files.crash(random.Random(1))
    assert list(RaftDisk.open(files, DIRECTORY).entries) == entries(2, 4)


# What is written and found ------------------------------------------------------------------------------------------


def test_what_is_found_is_what_was_written() -> None:
    files = MemoryFiles()
    disk = formatted(files)
    assert (disk.identity, disk.cluster_id) == (ME, "c")
    written = [Entry(2, 3), Entry(3, 3, data=b""), Entry(4, 3, data=b"\x00\xff\n"), Entry(5, 4, voters=(ME,))]
    disk.write(ready(*written, hard_state=HardState(4, OTHER)))
    found = reopened(files)
    assert seen(found) == (HardState(4, OTHER), FIRST, tuple(written))
    assert (found.identity, found.cluster_id) == (ME, "c")


def test_who_joins_begins_with_nothing_and_then_with_what_it_was_sent() -> None:
    files = MemoryFiles()
    disk = formatted(files, NOTHING)
    assert seen(disk) == (HardState(), NOTHING, ())
    sent = Snapshot(100, 7, (ME, OTHER), b"state\nof the machine")
    disk.write(ready(*entries(101, 103, 7), hard_state=HardState(7), snapshot=sent))
    assert seen(reopened(files)) == (HardState(7), sent, tuple(entries(101, 103, 7)))


def test_a_snapshot_replaces_the_log_even_where_the_crash_comes_before_the_cut() -> None:
    """What is appended after the restart must not stand behind what the snapshot has replaced."""
    files = MemoryFiles()
    disk = formatted(files)
    disk.write(ready(*entries(2, 9)))
    installed = Snapshot(6, 5, (ME,), b"")
    files.fail_at(5, errno.EIO)  # write, its content, sync, rename, sync of the directory: then the cut
    with pytest.raises(StorageError):
        disk.write(ready(snapshot=installed))
    files.kill()
    found = RaftDisk.open(files, DIRECTORY)
    assert seen(found)[1:] == (installed, ())
    found.write(ready(*entries(7, 8, 5)))
    assert seen(reopened(files))[1:] == (installed, tuple(entries(7, 8, 5)))


def test_compaction_keeps_the_last_entries_and_gives_back_the_room_of_the_others() -> None:
    files = MemoryFiles()
    disk = formatted(files)
    for index in range(2, 100):
        disk.write(ready(*entries(index, index + 1)))
    before = files.size(ENTRIES)
    own = Snapshot(90, 1, (ME,), b"state")
    disk.compacted(own, 81)
    assert files.size(ENTRIES) < before / 4
    disk.write(ready(*entries(100, 101)))
    disk.write(ready(*entries(98, 99, 2), truncate_from=98))
    assert seen(reopened(files))[1:] == (own, (*entries(91, 98), *entries(98, 99, 2)))


def test_without_room_for_a_snapshot_everything_stays_as_it_was() -> None:
    files = MemoryFiles()
    disk = formatted(files)
    disk.write(ready(*entries(2, 20)))
    files.capacity_bytes = files.capacity_bytes - files.free_bytes(DIRECTORY) + 100
    with pytest.raises(DiskFull):
        disk.compacted(Snapshot(10, 1, (ME,), b"x" * 1_000), 5)
    disk.write(ready(*entries(20, 21)))
    assert seen(reopened(files))[1:] == (FIRST, tuple(entries(2, 21)))


def test_an_append_costs_one_write_and_one_sync() -> None:
    files = MemoryFiles()
    disk = formatted(files)
    before = files.operations
    disk.write(ready(*entries(2, 50)))
    assert files.operations - before == 2


# Damage and refusals ------------------------------------------------------------------------------------------------


def test_a_flipped_byte_is_damage_except_in_what_the_last_write_may_have_torn() -> None:
    files = MemoryFiles()
    disk = formatted(files)
    disk.write(ready(*entries(2, 4)))
    disk.write(ready(*entries(4, 5)))
    synced = files.size(ENTRIES)
    disk.write(ready(*entries(5, 7)))
    whole = files.read(ENTRIES)
    for place in range(len(whole)):
        files.corrupt(ENTRIES, whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        if place < synced:
            with pytest.raises(CorruptLog, match=ENTRIES) as refused:
                reopened(files)
            assert refused.value.position <= place
        else:
            found = reopened(files)
            assert list(found.entries) in (entries(2, 5), entries(2, 6))
            found.write(ready(*entries(found.entries[-1].index + 1, 9)))
            assert list(reopened(files).entries) == entries(2, 9)


def test_a_torn_write_whose_later_part_is_whole_is_torn() -> None:
    """A disk may have written the second page of what was never synced, and not the first."""
    files = MemoryFiles()
    disk = formatted(files)
    disk.write(ready(*entries(2, 4)))
    synced = files.size(ENTRIES)
    disk.write(ready(*entries(4, 7)))
    whole = files.read(ENTRIES)
    files.corrupt(ENTRIES, whole[:synced] + bytes(20) + whole[synced + 20 :])
    assert list(reopened(files).entries) == entries(2, 4)
    assert files.size(ENTRIES) == synced


def test_what_an_entry_holds_is_never_taken_for_an_entry() -> None:
    """Here one that would say that everything before it had been on the disk."""
    longer = MemoryFiles()
    disk = formatted(longer)
    disk.write(ready(Entry(2, 1, data=b"x" * 5_000)))
    synced = longer.size(ENTRIES)
    disk.write(ready(*entries(3, 4)))
    saying_so = longer.read(ENTRIES, synced)

    files = MemoryFiles()
    disk = formatted(files)
    disk.write(ready(*entries(2, 5)))
    synced = files.size(ENTRIES)
    disk.write(ready(Entry(5, 1, data=saying_so)))
    whole = files.read(ENTRIES)
    files.corrupt(ENTRIES, whole[:synced] + b"?" + whole[synced + 1 :])
    assert list(reopened(files).entries) == entries(2, 5)


@pytest.mark.parametrize("path", [NODE, SNAPSHOT])
def test_a_damaged_file_is_refused_and_named(path: str) -> None:
    files = MemoryFiles()
    formatted(files)
    whole = files.read(path)
    damaged = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(len(whole))]
    for content in [b"", whole[:-1], whole[: len(whole) // 2], *damaged]:
        files.corrupt(path, content)
        with pytest.raises(CorruptLog, match=path):
            reopened(files)
    files.corrupt(path, whole)
    assert seen(reopened(files)) == (HardState(), FIRST, ())


@pytest.mark.parametrize("path", [NODE, SNAPSHOT])
def test_a_later_version_is_refused_as_one(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = MemoryFiles()
    with monkeypatch.context() as later:
        later.setattr(raft_disk, "_VERSION", 2)
        formatted(files)
    if path == SNAPSHOT:
        files.corrupt(NODE, formatted_node())
    with pytest.raises(NewerFormat, match=path):
        reopened(files)


def formatted_node() -> bytes:
    files = MemoryFiles()
    formatted(files)
    return files.read(NODE)


def test_a_log_whose_node_file_is_gone_is_never_formatted_over() -> None:
    files = MemoryFiles()
    formatted(files).write(ready(*entries(2, 4)))
    files.kill()
    files.unlink(NODE)
    with pytest.raises(CorruptLog, match=NODE):
        RaftDisk.exists(files, DIRECTORY)
    with pytest.raises(CorruptLog, match=NODE):
        RaftDisk.format(files, DIRECTORY, identity=ME, cluster_id="c", snapshot=FIRST)
    with pytest.raises(CorruptLog, match=NODE):
        RaftDisk.open(files, DIRECTORY)
    assert len(files.read(ENTRIES)) > 0


@pytest.mark.parametrize("name", ["entries", "00000000000000000000.log", "checkpoint"])
def test_a_directory_with_any_log_in_it_is_not_empty(name: str) -> None:
    files = MemoryFiles()
    files.makedirs(DIRECTORY)
    files.write_atomically(f"{DIRECTORY}/{name}", b"")
    with pytest.raises(CorruptLog, match=NODE):
        RaftDisk.exists(files, DIRECTORY)


def test_a_snapshot_of_a_life_is_not_a_formatting_that_was_cut_short() -> None:
    files = MemoryFiles()
    disk = formatted(files)
    disk.write(ready(*entries(2, 4)))
    disk.compacted(Snapshot(3, 1, (ME,), b""), 4)
    files.kill()
    files.unlink(NODE)
    files.unlink(ENTRIES)
    with pytest.raises(CorruptLog, match=NODE):
        RaftDisk.exists(files, DIRECTORY)


def test_a_node_is_not_formatted_over() -> None:
    files = MemoryFiles()
    formatted(files).close()
    with pytest.raises(StorageError, match=DIRECTORY):
        RaftDisk.format(files, DIRECTORY, identity=OTHER, cluster_id="c", snapshot=FIRST)
    assert RaftDisk.open(files, DIRECTORY).identity == ME


def test_a_snapshot_older_than_the_log_is_refused() -> None:
    files = MemoryFiles()
    disk = formatted(files)
    disk.write(ready(*entries(2, 9)))
    old = files.read(SNAPSHOT)
    disk.compacted(Snapshot(6, 1, (ME,), b""), 6)
    files.corrupt(SNAPSHOT, old)
    with pytest.raises(CorruptLog, match=SNAPSHOT):
        reopened(files)


def test_one_process_at_a_time() -> None:
    files = MemoryFiles()
    disk = formatted(files)
    with pytest.raises(DataDirectoryInUse):
        RaftDisk.open(files, DIRECTORY)
    disk.close()
    successor = RaftDisk.open(files, DIRECTORY)
    disk.close()
    with pytest.raises(DataDirectoryInUse):
        RaftDisk.open(files, DIRECTORY)
    successor.close()
