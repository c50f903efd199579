"""Enumerated crashes: the disk stops at each operation of a script; each cut of unsynced bytes; flips in every file."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import random
from collections.abc import Iterator

import pytest

from raystream import batch as b
from raystream.clock import ManualClock
from raystream.errors import CorruptBatch, CorruptLog, DiskFull, NewerFormat, RaystreamError, StorageError
from raystream.storage.memory_files import MemoryFiles
from tests.fakes.logs import DIRECTORY, Message, append, commit, message, open_log, read_all
from tests.fakes.verify import verify

LOG = f"{DIRECTORY}/{0:020d}.log"


@functools.cache
def encoded(values: tuple[bytes, ...], sequence: int, schema_id: int) -> Message:
    return message(values, producer=(9, 0, sequence), schema_id=schema_id)


class Script:
    """A life of a log: rolls, checkpoints, deletions. Remembers what was promised before the disk gave up."""

    def __init__(self, files: MemoryFiles) -> None:
        self.files = files
        self.clock = ManualClock()
        self.written: list[bytes] = []
        self.flushed = 0
        self.start = 0
        self.aimed_start = 0

    def run(self) -> None:
        log = open_log(self.files, clock=self.clock, segment_bytes=3_000)
        for step in range(12):
            batches = []
            for _ in range(1 + step % 3):
                values = [b"%05d" % (len(self.written) + i) for i in range(2)]
                self.written += values
                sequence = len(self.written) - 2
                batches.append(encoded(tuple(values), sequence, 1 if step != 7 else 2))
            append(log, *batches)
            if step % 2:
                self.flushed = commit(log)
            self.clock.advance(2_000)
            log.maybe_checkpoint()
            if step == 8:
                self.flushed = commit(log)
                self.aimed_start = 9
                log.delete_before(9)
                self.start = 9
            if step == 10:
                self.flushed = commit(log)
                self.aimed_start = self.flushed
                log.delete_before(self.flushed, active_too=True)
                self.start = self.flushed
        log.close()
        self.flushed = len(self.written)


def operations() -> int:
    files = MemoryFiles()
    Script(files).run()
    return files.operations


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC])
def test_the_disk_fails_at_any_operation_and_the_machine_crashes(fault: int) -> None:
    for nth in range(1, operations() + 1):
        script = Script(MemoryFiles())
        script.files.fail_at(nth, fault)
        with contextlib.suppress(StorageError):
            script.run()
        for seed in range(4):
            files = copy.deepcopy(script.files)
            if seed:
                files.crash(random.Random(seed))
            else:
                files.kill()
            log = open_log(files, clock=script.clock, segment_bytes=3_000)
            where = f"operation {nth}, seed {seed}"
            assert log.start_offset in (script.start, script.aimed_start), where
            assert log.end_offset >= script.flushed, where
            rows = read_all(log)
            expected = list(enumerate(script.written))[log.start_offset : log.end_offset]
            assert rows == expected, where
            assert verify(log) == [], where
            assert append(log, message([b"next"]))[0].base_offset == log.end_offset - 1, where
            commit(log)
            log.close()


def test_every_cut_of_what_was_not_synced() -> None:
    """A torn tail ends at the last whole batch, wherever it was torn, and however often it is opened."""
    files = MemoryFiles()
    log = open_log(files)
    append(log, message([b"a", b"b"]))
    commit(log)
    log.checkpoint()
    borders = [(files.size(LOG), 2)]
    for values in ([b"c"], [b"d", b"e", b"f"], [b"g"]):
        append(log, message(values))
        borders.append((files.size(LOG), borders[-1][1] + len(values)))
    whole = files.read(LOG)
    for cut in range(borders[0][0], len(whole) + 1):
        files.kill()
        files.corrupt(LOG, whole[:cut])
        log = open_log(files)
        position, end = max(border for border in borders if border[0] <= cut)
        assert (log.end_offset, files.size(LOG)) == (end, position)
        files.kill()
        files.corrupt(f"{DIRECTORY}/checkpoint", b"")
        assert open_log(files).end_offset == end


def built(*, closed: bool) -> tuple[MemoryFiles, list[tuple[int, bytes]]]:
    """Four segments of three batches with a producer; closed in order, or killed, and then most lies past the
    checkpoint."""
    files = MemoryFiles()
    clock = ManualClock()
    log = open_log(files, clock=clock, segment_bytes=3_500)
    for step in range(11):
        append(log, message([b"%d-%d" % (step, i) for i in range(3)], producer=(4, 0, 3 * step)))
        commit(log)
        if step == 1:
            log.checkpoint()
    rows = read_all(log)
    if closed:
        log.close()
    files.kill()
    return files, rows


def places(files: MemoryFiles, every: int) -> Iterator[tuple[str, int]]:
    for name in files.listdir(DIRECTORY):
        path = f"{DIRECTORY}/{name}"
        for place in range(0, files.size(path), every):
            yield path, place


@pytest.mark.parametrize("closed", [True, False])
def test_a_flipped_bit_anywhere_is_repaired_cut_past_the_durable_point_or_refused(closed: bool) -> None:
    pristine, rows = built(closed=closed)
    # Without a clean close the last batch may be a torn tail for all anybody can tell: no header says it was published.
    durable = len(rows) if closed else len(rows) - 3
    outcomes = set()
    rng = random.Random(1)
    for path, place in places(pristine, 13):
        files = copy.deepcopy(pristine)
        flipped = bytearray(files.read(path))
        flipped[place] ^= 1 << rng.randrange(8)
        files.corrupt(path, bytes(flipped))
        outcomes.add(outcome(files, path, rows, durable))
    assert {"intact", "refused"} <= outcomes <= {"intact", "refused", "cut"}


def outcome(files: MemoryFiles, path: str, rows: list[tuple[int, bytes]], durable: int) -> str:
    """What came of damage in `path`. Fails on wrong data, lost durable data, or an error that does not say where."""
    try:
        log = open_log(files)
        found = read_all(log)
    except (CorruptLog, NewerFormat) as error:
        return "refused" if path in str(error) else f"an error that does not name {path}: {error}"
    except CorruptBatch:
        return "refused"  # by the reader's check: it knows which file it has mapped
    assert found == rows[: len(found)], f"wrong data after damage to {path}"
    assert len(found) >= durable, f"damage to {path} lost {durable - len(found)} durable records"
    return "intact" if len(found) == len(rows) else "cut"


@pytest.mark.parametrize("closed", [True, False])
def test_a_file_cut_off_anywhere_is_repaired_cut_past_the_durable_point_or_refused(closed: bool) -> None:
    pristine, rows = built(closed=closed)
    durable = (
        len(rows) if closed else 27
    )  # in the newest segment, past the checkpoint, a border between batches looks like an end
    for path, place in places(pristine, 17):
        files = copy.deepcopy(pristine)
        files.corrupt(path, files.read(path)[:place])
        assert outcome(files, path, rows, durable) in ("intact", "refused", "cut")


@pytest.mark.parametrize("closed", [True, False])
def test_a_file_that_is_missing_is_rebuilt_or_refused(closed: bool) -> None:
    pristine, rows = built(closed=closed)
    names = pristine.listdir(DIRECTORY)
    last_segment = max(name for name in names if name.endswith(".log"))
    for name in names:
        files = copy.deepcopy(pristine)
        files.unlink(f"{DIRECTORY}/{name}")
        if name == last_segment and not closed:
            # Nothing that is left says that it was there: as after a crash before its directory was synced.
            assert read_all(open_log(files)) == rows[: int(last_segment[:20])]
        elif name.endswith(".log"):
            with pytest.raises((CorruptLog, StorageError), match=r"\.log"):
                read_all(open_log(files))
        else:
            log = open_log(files)
            assert read_all(log) == rows
            last = message([b"10-0", b"10-1", b"10-2"], producer=(4, 0, 30))[1]
            assert log.producers.check(last) == (30, 1_700_000_000_000)


def test_damage_below_a_published_offset_is_never_cut() -> None:
    files = MemoryFiles()
    log = open_log(files)
    positions = []
    for value in (b"a", b"b", b"c"):
        positions.append(files.size(LOG) if value != b"a" else 0)
        append(log, message([value]))
        commit(log)
    whole = bytearray(files.read(LOG))
    whole[positions[1] + 900] ^= 1  # in b's body: c's header says that b was published
    files.kill()
    files.corrupt(LOG, bytes(whole))
    with pytest.raises(
        CorruptLog, match=f"{LOG} is damaged at position {positions[1]} .offset 1.*high watermark 2"
    ) as e:
        open_log(files)
    assert (e.value.path, e.value.position, e.value.offset) == (LOG, positions[1], 1)
    assert files.read(LOG) == bytes(whole)
    files.kill()
    with pytest.raises(CorruptLog):
        open_log(files)


@pytest.mark.parametrize("place", [230, 260, 335])
def test_a_leaders_field_that_was_damaged_is_found_on_opening(place: int) -> None:
    """No producer CRC covers epoch, append time and header CRC; the header CRC does."""
    files = MemoryFiles()
    log = open_log(files)
    for value in (b"a", b"b", b"c"):
        append(log, message([value]))
        commit(log)
    positions = [log.read(offset, max_bytes=1, end_offset=3)[0].position for offset in range(3)]
    whole = files.read(LOG)
    for batch, position in enumerate(positions):
        files.kill()
        files.unlink(f"{DIRECTORY}/checkpoint")
        damaged = bytearray(whole)
        damaged[position + b.parse(whole[position:]).zone_at + place] ^= 1
        files.corrupt(LOG, bytes(damaged))
        if batch < 2:
            with pytest.raises(CorruptLog, match=f"position {position} .offset {batch}.*header CRC"):
                open_log(files)
        else:
            assert open_log(files).end_offset == 2


def test_an_unpublished_batch_is_cut_even_where_later_ones_are_whole() -> None:
    """What `flush="os"` may leave after a power cut: a hole among bytes that were never synced."""
    files = MemoryFiles()
    log = open_log(files)
    append(log, message([b"a"]))
    commit(log)
    hole = files.size(LOG)
    append(log, message([b"b"]))
    after = files.size(LOG)
    log.advance_high_watermark(log.end_offset)  # published without a sync
    append(log, message([b"c"]))
    whole = files.read(LOG)
    files.kill()
    files.corrupt(LOG, whole[:hole] + bytes(after - hole) + whole[after:])
    log = open_log(files)
    assert read_all(log) == [(0, b"a")]
    assert files.size(LOG) == hole


def test_a_newer_format_is_refused_and_the_files_stay_untouched() -> None:
    files = MemoryFiles()
    log = open_log(files)
    append(log, message([b"a"]))
    commit(log)
    files.kill()
    newer = files.read(LOG).replace(b"raystream/1 ", b"raystream/2 ")
    files.corrupt(LOG, newer)
    before = {name: files.read(f"{DIRECTORY}/{name}") for name in files.listdir(DIRECTORY)}
    with pytest.raises(NewerFormat, match=LOG):
        open_log(files)
    after = {name: files.read(f"{DIRECTORY}/{name}") for name in files.listdir(DIRECTORY)}
    assert before == after


def test_bytes_of_another_partition_are_refused() -> None:
    files = MemoryFiles()
    log = open_log(files)
    append(log, message([b"a"], topic_id="ff" * 16))
    commit(log)
    append(log, message([b"b"]))
    commit(log)
    files.kill()
    with pytest.raises(CorruptLog, match="belongs to partition 0 of topic ffff"):
        open_log(files)


def test_a_full_disk_refuses_appends_and_goes_on_when_there_is_room() -> None:
    files = MemoryFiles()
    log = open_log(files, segment_bytes=4_000)
    append(log, message([b"a"] * 3))
    commit(log)
    for room in range(0, 2_200, 97):
        files.capacity_bytes = files.capacity_bytes - files.free_bytes(DIRECTORY) + room
        with pytest.raises(DiskFull) as error:
            append(log, *[message([b"b"]) for _ in range(4)])
        assert error.value.retriable
        assert [value for _, value in read_all(log)] == [b"a"] * 3
        files.capacity_bytes = 1 << 50
    append(log, message([b"c"]))
    commit(log)
    log.close()
    log = open_log(files)
    assert [value for _, value in read_all(log)] == [b"a", b"a", b"a", b"c"]


def test_a_full_disk_where_the_append_cannot_be_undone_either_is_not_called_a_refusal() -> None:
    """DiskFull says that nothing was written: a log that could not cut what was takes no more, and says otherwise."""
    undone = 0
    for nth in range(1, 12):
        files = MemoryFiles()
        log = open_log(files, segment_bytes=4_000)
        append(log, message([b"a"]))
        commit(log)
        files.capacity_bytes -= files.free_bytes(DIRECTORY) - 2_100
        files.fail_at(nth, errno.EIO)
        with pytest.raises(StorageError) as error:
            append(log, *[message([b"b"]) for _ in range(4)])
        files.capacity_bytes = 1 << 50
        files.fail_at(1 << 50, errno.EIO)
        if isinstance(error.value, DiskFull):
            append(log, message([b"c"]))
        else:
            undone += "the disk is full" in str(error.value)
            with pytest.raises(StorageError, match="takes no more writes"):
                append(log, message([b"c"]))
    assert undone


def test_an_append_that_failed_half_way_does_not_come_back_after_a_crash() -> None:
    """Its first batches were whole on the disk already, in the segment before the one that found no room."""
    for nth in range(1, 8):
        for seed in range(12):
            files = MemoryFiles()
            log = open_log(files, segment_bytes=3_000)
            append(log, message([b"a"]))
            commit(log)
            files.fail_at(nth, errno.ENOSPC)
            try:
                append(log, *[message([b"failed"]) for _ in range(6)])
            except DiskFull:
                expected = [b"a"]
            except StorageError:  # a sync that fails ends the writing, and leaves the outcome open
                continue
            else:
                continue
            if seed % 2:
                files.fail_at(10**9, errno.EIO)
                append(log, message([b"b"]))
                commit(log)
                expected.append(b"b")
            files.crash(random.Random(seed))
            assert [value for _, value in read_all(open_log(files))] == expected, (nth, seed)


def test_an_index_that_is_ahead_of_the_checkpoint_is_cut_back() -> None:
    files = MemoryFiles()
    log = open_log(files)
    encoded = message([b"x" * 30_000])
    append(log, *[encoded] * 10)
    log.checkpoint()
    old = files.read(f"{DIRECTORY}/checkpoint")
    append(log, *[encoded] * 10)
    log.checkpoint()
    files.kill()
    files.corrupt(f"{DIRECTORY}/checkpoint", old)
    files.corrupt(LOG, files.read(LOG)[: -2 * len(encoded[0]) - 5])  # and the log is behind the index
    log = open_log(files)
    assert log.end_offset == 17
    append(log, message([b"y"]), *[encoded] * 10)
    log.close()
    log = open_log(files)
    for offset in range(28):
        (span,) = log.read(offset, max_bytes=1, end_offset=28)
        assert b.parse(log.read_bytes(span)).base_offset == offset
    assert verify(log) == []


def test_a_failed_sync_ends_all_writing() -> None:
    files = MemoryFiles()
    log = open_log(files)
    append(log, message([b"a"]))
    files.fail_at(1, errno.EIO)
    with pytest.raises(StorageError, match=LOG):
        log.flush()
    for attempt in (log.flush, lambda: append(log, message([b"b"])), log.checkpoint):
        with pytest.raises(StorageError, match="takes no more writes"):
            attempt()
    log.close()
    assert isinstance(b.parse(files.read(LOG)[log.read(0, max_bytes=1, end_offset=1)[0].position :]), b.BatchHeader)
    with pytest.raises(RaystreamError):
        log.flush()
