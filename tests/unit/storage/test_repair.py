"""Bad bytes put right from another replica's log."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from raystream import batch as b
from raystream.errors import ActorLost, CorruptBatch, DiskFull, RaystreamError, StorageError
from raystream.storage.files import DiskFiles, Files
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.repair import Fetch, Patch, find_segment, may_be_replaced_beside, patch_for, replace
from raystream.storage.scrubbing import Damage, scrub
from tests.fakes.logs import DIRECTORY, append, commit, copy_batches, message, open_log, read_all
from tests.fakes.verify import verify

CONFIG: dict[str, Any] = {"segment_bytes": 5_000}


def twins(files: Files, directory: str = DIRECTORY, batches: int = 12) -> tuple[Log, Log]:
    """A log with sealed segments and an active one, and another replica's, which rolled at other places."""
    log, peer = open_log(files, directory, **CONFIG), open_log(MemoryFiles(), segment_bytes=7_000)
    for number in range(batches):
        append(log, message([b"%d" % number * 40, b"x"], producer=(7, 0, 2 * number)), epoch=3 + number // 5)
        commit(log)
    peer.append_as_follower(copy_batches(log, 0))
    commit(peer)
    return log, peer


def fetch_from(peer: Log, max_bytes: int = 1) -> Fetch:
    def fetch(offset: int, end_offset: int) -> bytes:
        spans = peer.read(offset, max_bytes=max_bytes, end_offset=end_offset)
        return b"".join(peer.read_bytes(span) for span in spans)

    return fetch


def damages_of(log: Log) -> list[Damage]:
    return [step.damage for step in scrub(log.segments, end_offset=log.high_watermark) if step.damage is not None]


def repaired(files: Files, log: Log, fetch: Fetch) -> list[Damage]:
    """Repairs all that is found; what is found then."""
    damages = damages_of(log)
    assert damages
    for path in {damage.path for damage in damages}:
        segment = find_segment(log, path)
        assert segment is not None
        patches = [patch_for(log, segment, damage, fetch) for damage in damages if damage.path == path]
        replace(files, log, segment, patches)
    return damages_of(log)


def flip(files: MemoryFiles, path: str, *positions: int) -> None:
    content = bytearray(files.read(path))
    for position in positions:
        content[position] ^= 4
    files.corrupt(path, bytes(content))


@pytest.mark.parametrize("seed", range(30))
def test_the_repaired_file_is_what_it_was(seed: int) -> None:
    rng, files = random.Random(seed), MemoryFiles()
    log, peer = twins(files)
    segment = rng.choice(log.segments)
    before = files.read(segment.path)
    flip(files, segment.path, *(rng.randrange(len(before)) for _ in range(rng.choice((1, 1, 3)))))
    assert repaired(files, log, fetch_from(peer, rng.choice((1, 1 << 20)))) == []
    assert files.read(segment.path) == before
    assert verify(log) == [] and read_all(log) == read_all(peer)


@pytest.mark.parametrize("keep", [0, 10, 700, 1_500])
def test_a_file_that_lost_its_end_or_all_of_it_is_filled_again(keep: int) -> None:
    for place in (0, -1):
        files = MemoryFiles()
        log, peer = twins(files)
        path = log.segments[place].path
        before = files.read(path)
        files.corrupt(path, before[:keep])
        assert repaired(files, log, fetch_from(peer)) == []
        assert files.read(path) == before


def test_appends_go_on_in_the_repaired_active_segment_and_last() -> None:
    files = MemoryFiles()
    log, peer = twins(files, batches=11)
    append(log, message([b"not synced yet"]), epoch=9)
    flip(files, log.segments[-1].path, 900)
    assert not may_be_replaced_beside(log, log.segments[-1])
    assert repaired(files, log, fetch_from(peer)) == []
    append(log, message([b"after"]), epoch=9)
    end = log.flush()
    files.crash(random.Random(0))
    again = open_log(files, **CONFIG)
    assert again.end_offset == end
    assert [value for _, value in read_all(again)][-2:] == [b"not synced yet", b"after"]


def test_only_what_published_records_follow_is_replaced_beside_the_writer() -> None:
    log, _ = twins(MemoryFiles())
    *sealed, last = log.segments
    assert all(may_be_replaced_beside(log, segment) for segment in sealed)
    append(log, *(message([b"x" * 900]) for _ in range(8)), epoch=9)
    assert log.segment_count > len(sealed) + 2
    assert not may_be_replaced_beside(log, log.segments[-2])  # may be truncated yet, and be the active one then
    assert may_be_replaced_beside(log, last) == (log.segments[len(sealed) + 1].base_offset < log.high_watermark)


def test_readers_keep_what_they_have_mapped(tmp_path: Path) -> None:
    files = DiskFiles()
    log, peer = twins(files, f"{tmp_path}/p")
    for segment in (log.segments[0], log.segments[-1]):
        good = Path(segment.path).read_bytes()
        bad = bytearray(good)
        bad[1_000] ^= 1
        Path(segment.path).write_bytes(bad)
        mapped = files.map(segment.path)
        assert repaired(files, log, fetch_from(peer)) == []
        assert bytes(mapped) == bad and Path(segment.path).read_bytes() == good
    assert append(log, message([b"on"]), epoch=9)[0].base_offset == 24
    assert verify(log) == []
    log.close()
    assert read_all(open_log(files, f"{tmp_path}/p", **CONFIG))[-1] == (24, b"on")


def gone(offset: int, end_offset: int) -> bytes:
    raise ActorLost("nobody is there")


def test_a_peer_that_fails_or_gives_something_else_changes_nothing() -> None:
    files = MemoryFiles()
    log, peer = twins(files)
    other, _ = twins(MemoryFiles())  # says the same, at another time
    stranger = open_log(MemoryFiles())
    for number in range(12):
        append(stranger, message([b"%d" % number * 40, b"x"], producer=(7, 0, 2 * number)), epoch=2)
    path = log.segments[1].path
    flip(files, path, 1_000)
    (damage,) = damages_of(log)
    before, operations = files.read(path), files.operations

    def damaged_too(offset: int, end_offset: int) -> bytes:
        data = bytearray(fetch_from(peer)(offset, end_offset))
        data[-1] ^= 1
        return bytes(data)

    def at_another_time(offset: int, end_offset: int) -> bytes:
        data = fetch_from(peer)(offset, end_offset)
        zone_at = b.parse(data).zone_at + 260
        return data[:zone_at] + b"7" + data[zone_at + 1 :]

    liars: list[tuple[Fetch, type[RaystreamError], str]] = [
        (gone, ActorLost, "nobody"),
        (lambda offset, end: b"", CorruptBatch, "nothing at offset"),
        (lambda offset, end: b"x" * 800, CorruptBatch, "do not begin"),
        (damaged_too, CorruptBatch, "producer CRC"),
        (at_another_time, CorruptBatch, "header CRC"),
        (lambda offset, end: fetch_from(other)(offset + 2, end + 2), CorruptBatch, "instead of"),
        (lambda offset, end: fetch_from(peer, 1 << 20)(offset, end + 2), CorruptBatch, "are to be replaced"),
        (fetch_from(stranger), CorruptBatch, "of epoch 2"),
    ]
    segment = log.segments[1]
    for fetch, error, words in liars:
        with pytest.raises(error, match=words):
            patch_for(log, segment, damage, fetch)
    assert files.read(path) == before and files.operations == operations


def test_a_patch_that_does_not_heal_the_file_is_not_put_in() -> None:
    files = MemoryFiles()
    log, peer = twins(files)
    segment = log.segments[0]
    flip(files, segment.path, 1_000)
    (damage,) = damages_of(log)
    patch = patch_for(log, segment, damage, fetch_from(peer))
    flip(files, segment.path, segment.tail.size - 1)
    before = files.read(segment.path)
    with pytest.raises(CorruptBatch, match="damaged at position"):
        replace(files, log, segment, [patch])
    assert files.read(segment.path) == before


def test_a_repair_changes_no_length() -> None:
    files = MemoryFiles()
    log, peer = twins(files)
    segment = log.segments[0]
    before = files.read(segment.path)
    more = fetch_from(peer)(segment.tail.end_offset, segment.tail.end_offset + 1)
    with pytest.raises(CorruptBatch, match="repaired it would end there"):
        replace(files, log, segment, [Patch(segment.tail.size, more)])
    assert files.read(segment.path) == before


@pytest.mark.parametrize("place", [0, -1])
def test_a_crash_in_the_swap_leaves_the_old_file_or_the_new(place: int) -> None:
    outcomes = set()
    for nth in range(1, 6):
        for seed in range(12):
            files = MemoryFiles()
            log, peer = twins(files)
            everything = read_all(log)
            log.checkpoint()
            path = log.segments[place].path
            good = files.read(path)
            flip(files, path, 1_000)
            bad = files.read(path)
            files.fail_at(nth, errno.EIO)
            with pytest.raises(StorageError):
                repaired(files, log, fetch_from(peer))
            files.crash(random.Random(seed))
            content = files.read(path)
            assert content in (good, bad)
            outcomes.add(content == good)
            again = open_log(files, **CONFIG)
            assert again.end_offset == 24
            if content == good:
                assert read_all(again) == everything
            else:
                assert repaired(files, again, fetch_from(peer)) == []
                assert read_all(again) == everything
    assert outcomes == {True, False}


def test_a_swap_of_the_active_segment_that_fails_ends_the_writing() -> None:
    files = MemoryFiles()
    log, peer = twins(files)
    flip(files, log.segments[-1].path, 900)
    files.fail_at(5, errno.EIO)  # renamed, and nobody knows whether that lasts
    with pytest.raises(StorageError):
        repaired(files, log, fetch_from(peer))
    with pytest.raises(StorageError, match="takes no more writes"):
        append(log, message([b"x"]), epoch=9)


def test_a_full_disk_keeps_the_old_file_and_nothing_else() -> None:
    files = MemoryFiles()
    log, peer = twins(files)
    names = files.listdir(DIRECTORY)
    for segment in (log.segments[0], log.segments[-1]):
        flip(files, segment.path, 900)
        files.capacity_bytes = 40_000
        with pytest.raises(DiskFull):
            repaired(files, log, fetch_from(peer))
        assert files.listdir(DIRECTORY) == names
        files.capacity_bytes = 1 << 50
        if segment is log.segments[0]:
            files.fail_at(2, errno.ENOSPC)  # others were faster
            with pytest.raises(DiskFull):
                repaired(files, log, fetch_from(peer))
            assert files.listdir(DIRECTORY) == names
    assert append(log, message([b"x"]), epoch=9)
    assert repaired(files, log, fetch_from(peer)) == []


def test_a_segment_that_is_another_by_now_is_left_alone() -> None:
    files = MemoryFiles()
    log, peer = twins(files)
    segment = log.segments[-1]
    flip(files, segment.path, 900)
    patches = [patch_for(log, segment, damage, fetch_from(peer)) for damage in damages_of(log)]
    log.high_watermark = segment.base_offset
    log.truncate(segment.base_offset)
    append(log, message([b"another"]), epoch=9)
    before = files.read(segment.path)
    with pytest.raises(StorageError, match="not the log's any more"):
        replace(files, log, segment, patches)
    assert files.read(segment.path) == before


def test_a_closed_log_is_left_alone() -> None:
    files = MemoryFiles()
    log, peer = twins(files)
    flip(files, log.segments[0].path, 900)
    before = files.read(log.segments[0].path)
    log.close()
    with pytest.raises(StorageError, match="closed"):
        repaired(files, log, fetch_from(peer))
    assert files.read(log.segments[0].path) == before


def test_a_segment_deleted_while_it_is_repaired_stays_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    files = MemoryFiles()
    log, peer = twins(files)
    segment = log.segments[0]
    flip(files, segment.path, 900)
    (damage,) = damages_of(log)
    patch = patch_for(log, segment, damage, fetch_from(peer))
    write = files.write_atomically

    def deleted_first(path: str, data: bytes, *, durable: bool = True) -> None:
        if path == segment.path:
            log.delete_before(log.segments[2].base_offset)
        write(path, data, durable=durable)

    monkeypatch.setattr(files, "write_atomically", deleted_first)
    replace(files, log, segment, [patch])
    assert f"{segment.base_offset:020d}.log" not in files.listdir(DIRECTORY)
    log.close()
    assert open_log(files, **CONFIG).end_offset == 24
