"""The log's own methods: appending, rolling, reading, time, deletion, checkpoints, locks."""

from __future__ import annotations

import threading
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from raystream import batch as b
from raystream.clock import ManualClock
from raystream.config import DAY_MS, TopicConfig
from raystream.errors import DataDirectoryInUse, DiskFull, InvalidRecord, OffsetOutOfRange
from raystream.schema import RAW_SCHEMA, read_schema_message
from raystream.storage.files import DiskFiles
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.producer_state import Duplicate
from tests.fakes.logs import DIRECTORY, TOPIC_ID, append, commit, log_files, message, open_log, read_all, values_in
from tests.fakes.verify import verify


def filled(files: MemoryFiles, batches: int = 20, *, segment_bytes: int = 1 << 28) -> Log:
    log = open_log(files, segment_bytes=segment_bytes)
    for i in range(batches):
        append(log, message([b"%d" % (3 * i + j) for j in range(3)]))
        commit(log)
    return log


def test_an_empty_log() -> None:
    files = MemoryFiles()
    for _ in range(2):
        log = open_log(files)
        assert (log.start_offset, log.end_offset, log.high_watermark, log.segment_count, log.size_bytes) == (0,) * 5
        assert log.read(0, max_bytes=1, end_offset=10) == ()
        assert log.offset_for_timestamp(0, end_offset=10) is None
        assert append(log) == []
        assert log.flush() == 0
        assert verify(log) == []
        log.close()


def test_appends_get_consecutive_offsets_and_the_leaders_fields() -> None:
    clock = ManualClock()
    log = open_log(MemoryFiles(), clock=clock)
    first = append(log, message([b"a", b"b"]), message([b"c"]))
    assert [result[:3] for result in first] == [(0, 2, clock.now_ms()), (2, 3, clock.now_ms())]
    appended = b"".join(piece for result in first for piece in result.pieces)
    assert appended == log.read_bytes(log.read(0, max_bytes=1 << 20, end_offset=3)[0])
    assert (log.end_offset, log.flushed_end_offset) == (3, 0)
    assert commit(log) == log.flushed_end_offset == log.high_watermark == 3
    clock.advance(5)
    assert append(log, message([b"d"]))[0][:3] == (3, 4, clock.now_ms())
    data = log.read_bytes(log.read(3, max_bytes=1, end_offset=4)[0])
    header = b.parse(data)
    b.check_header_crc(memoryview(data), header)
    assert (header.base_offset, header.leader_epoch, header.high_watermark) == (3, 3, 3)
    assert header.append_time_ms == clock.now_ms()


def test_a_header_states_no_high_watermark_past_what_is_on_the_disk() -> None:
    log = open_log(MemoryFiles())
    append(log, message([b"a"]))
    log.append([message([b"b"])], leader_epoch=0, high_watermark=1)
    assert b.parse(log.read_bytes(log.read(1, max_bytes=1, end_offset=2)[0])).high_watermark == 0


def test_the_high_watermark_never_goes_back_nor_past_the_end() -> None:
    log = filled(MemoryFiles(), 2)
    log.advance_high_watermark(3)
    assert log.high_watermark == 6
    log.advance_high_watermark(100)
    assert log.high_watermark == 6


def test_a_segment_is_an_arrow_stream_for_other_readers(tmp_path: Path) -> None:
    log = open_log(DiskFiles(), f"{tmp_path}/p")
    for compression in (None, "lz4", "zstd"):
        append(log, message([b"x" * 500, b"y"], compression=compression))
    log.close()
    (path,) = log_files(f"{tmp_path}/p")
    table = pa.ipc.open_stream(path).read_all()
    assert table.column("value").to_pylist() == [b"x" * 500, b"y"] * 3
    assert table.schema.equals(RAW_SCHEMA)
    frame = pl.read_ipc_stream(path)
    assert frame["value"].to_list() == [b"x" * 500, b"y"] * 3
    assert frame["timestamp"].to_list() == [1_000] * 6


def test_rolls_by_size_age_and_schema() -> None:
    clock = ManualClock()
    files = MemoryFiles()
    log = open_log(files, clock=clock, segment_bytes=3_000, segment_ms=10_000)
    append(log, *[message([b"x"]) for _ in range(5)])
    assert log.segment_count == 3
    assert all(files.size(f"{DIRECTORY}/{name}") <= 3_000 for name in files.listdir(DIRECTORY))
    clock.advance(9_999)
    append(log, message([b"x"]))
    count = log.segment_count
    clock.advance(DAY_MS)
    append(log, message([b"x"]))
    assert log.segment_count == count + 1
    append(log, message([b"x"], schema_id=2))
    append(log, message([b"x"], schema_id=2))
    assert log.segment_count == count + 2
    assert [span.schema_id for span in log.read(7, max_bytes=1 << 20, end_offset=99)][-1] == 2
    head = read_schema_message(files.read(f"{DIRECTORY}/{7:020d}.log"))
    assert (head.topic_id, head.schema_id) == (TOPIC_ID, 2)
    assert [value for _, value in read_all(log)] == [b"x"] * 9


def test_a_batch_larger_than_a_segment_gets_one_of_its_own() -> None:
    log = open_log(MemoryFiles(), segment_bytes=2_000)
    append(log, message([b"a"]), message([b"B" * 9_000]), message([b"c"]))
    assert log.segment_count == 3
    assert len(read_all(log)) == 3


def test_an_unknown_schema_is_refused_and_changes_nothing() -> None:
    log = filled(MemoryFiles(), 1)
    encoded, header = message([b"x"], schema_id=2)
    log.heads.schemas.pop()
    with pytest.raises(InvalidRecord, match="states schema 2; the topic has 1"):
        append(log, message([b"y"]), (encoded, header))
    assert log.end_offset == 3
    log.add_schema(RAW_SCHEMA.append(pa.field("extra", pa.int32())))
    append(log, (encoded, header))
    assert log.end_offset == 4


def test_reads_begin_with_the_batch_that_holds_the_offset_and_respect_their_bounds() -> None:
    log = filled(MemoryFiles(), 20, segment_bytes=6_000)
    one = message([b"0", b"1", b"2"])[1].message_bytes
    for offset in range(60):
        (span,) = log.read(offset, max_bytes=1, end_offset=60)
        assert span.length == one
        assert values_in(log, log.read_bytes(span))[offset % 3] == (offset, b"%d" % offset)
    assert sum(span.length for span in log.read(0, max_bytes=1 << 30, end_offset=60)) == 20 * one
    assert sum(span.length for span in log.read(4, max_bytes=3 * one + 7, end_offset=60)) == 3 * one
    assert sum(span.length for span in log.read(0, max_bytes=1 << 30, end_offset=7)) == 3 * one
    assert sum(span.length for span in log.read(0, max_bytes=1 << 30, end_offset=6)) == 2 * one
    assert log.read(5, max_bytes=1 << 30, end_offset=5) == ()
    assert log.read(60, max_bytes=1, end_offset=60) == ()
    assert len({span.path for span in log.read(0, max_bytes=1 << 30, end_offset=60)}) == log.segment_count
    for outside in (-1, 61, 2**62):
        with pytest.raises(OffsetOutOfRange, match=f"offset {outside} lies outside 0 to 60"):
            log.read(outside, max_bytes=1, end_offset=60)


@pytest.mark.parametrize("reopened", [False, True])
def test_look_ups_in_a_segment_of_thousands_of_batches(reopened: bool) -> None:
    """More than the recent batches that are kept in memory, and many index entries."""
    files = MemoryFiles()
    log = open_log(files)
    encoded = message([b"x", b"y"])
    for _ in range(30):
        append(log, *[encoded] * 100)
    if reopened:
        log.close()
        log = open_log(files)
    for offset in (0, 1, 2, 777, 3_000, 4_001, 5_998, 5_999):
        (span,) = log.read(offset, max_bytes=10 * encoded[1].message_bytes, end_offset=6_000)
        headers = [header for header, _ in b.walk(log.read_bytes(span))]
        assert headers[0].base_offset == offset - offset % 2
        assert len(headers) == min(10, (6_000 - offset + 1) // 2)
        (to_end,) = log.read(offset, max_bytes=1 << 30, end_offset=min(offset + 3, 6_000))
        assert len(list(b.walk(log.read_bytes(to_end)))) == len({o // 2 for o in range(offset, min(offset + 3, 6_000))})


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_timestamps_find_the_exact_row(compression: str | None) -> None:
    files = MemoryFiles()
    log = open_log(files, segment_bytes=5_000)
    times: list[int] = []
    for i in range(12):
        rows = [1_000 + 100 * i + d for d in (0, 50, 20, 70)]  # out of order inside a batch
        times += rows
        append(log, message([b"v"] * 4, timestamps=rows, compression=compression))
    for reopened in (False, True):
        if reopened:
            log.close()
            log = open_log(files, segment_bytes=5_000)
        for wanted in range(990, 2_200, 7):
            found = next(((offset, t) for offset, t in enumerate(times) if t >= wanted), None)
            assert log.offset_for_timestamp(wanted, end_offset=48) == found
            within = found if found is not None and found[0] < 30 else None
            assert log.offset_for_timestamp(wanted, end_offset=30) == within
    log.advance_high_watermark(48)
    log.delete_before(22)
    assert log.offset_for_timestamp(0, end_offset=48) == (22, times[22])


def test_append_time_topics_look_up_append_times() -> None:
    clock = ManualClock(50_000)
    log = open_log(MemoryFiles(), clock=clock, segment_bytes=3_000)
    for _ in range(6):
        append(log, message([b"x", b"y"], timestamps=[1, 2], attributes=b.ATTR_APPEND_TIME))
        clock.advance(1_000)
    assert log.offset_for_timestamp(52_500, end_offset=12) == (6, 53_000)
    assert log.offset_for_timestamp(55_001, end_offset=12) is None


def test_typed_topics_look_up_their_time_column() -> None:
    schema = pa.schema([("when", pa.timestamp("us", "UTC")), ("x", pa.int32())])
    log = Log.open(
        MemoryFiles(),
        DIRECTORY,
        topic_id=TOPIC_ID,
        partition=0,
        schemas=[schema],
        config=TopicConfig(),
        clock=ManualClock(),
        time_column="when",
        min_free_bytes=0,
    )
    rows = pa.record_batch([pa.array([5_000_000, None, 9_000_999], schema.field(0).type), [1, 2, 3]], schema=schema)
    fields = b.ProducerFields(
        topic_id=TOPIC_ID, partition=0, last_offset_delta=2, first_timestamp_ms=5_000, max_timestamp_ms=9_000
    )
    encoded = b.encode(rows, fields)
    append(log, (encoded, b.parse(encoded)))
    assert log.offset_for_timestamp(5_000, end_offset=3) == (0, 5_000)
    assert log.offset_for_timestamp(5_001, end_offset=3) == (2, 9_000)
    assert log.offset_for_timestamp(9_001, end_offset=3) is None


def test_deleting_moves_the_start_and_removes_whole_segments() -> None:
    files = MemoryFiles()
    log = filled(files, 20, segment_bytes=4_000)
    count = log.segment_count
    log.delete_before(31)
    log.delete_before(10)  # already gone
    assert log.start_offset == 31 and log.segment_count < count
    names = [name for name in files.listdir(DIRECTORY) if name.endswith((".log", ".index"))]
    assert all(int(name[:20]) + 12 > 31 for name in names)
    assert read_all(log)[0] == (31, b"31")
    with pytest.raises(OffsetOutOfRange):
        log.read(30, max_bytes=1, end_offset=60)
    with pytest.raises(OffsetOutOfRange, match="the log ends at 60"):
        log.delete_before(61)
    files.kill()
    log = open_log(files, segment_bytes=4_000)
    assert (log.start_offset, log.end_offset) == (31, 60)
    log.delete_before(60)
    assert log.segment_count == 1
    assert log.read(60, max_bytes=1, end_offset=60) == ()
    log.close()
    log = open_log(files, segment_bytes=4_000)
    assert (log.start_offset, log.end_offset) == (60, 60)
    assert append(log, message([b"next"]))[0].base_offset == 60


def test_records_can_be_deleted_on_a_disk_without_room() -> None:
    files = MemoryFiles()
    log = filled(files, 40, segment_bytes=4_000)
    log.checkpoint()
    append(log, message([b"x"], producer=(1, 0, 0)))
    commit(log)
    files.capacity_bytes -= files.free_bytes(DIRECTORY)
    with pytest.raises(DiskFull):
        log.delete_before(1)  # nothing goes that could make room
    assert log.start_offset == 0
    log.delete_before(60)
    files.kill()
    log = open_log(files, segment_bytes=4_000)
    assert log.start_offset == 60 and read_all(log)[0] == (60, b"60")


def test_a_log_on_a_full_disk_opens_and_is_read() -> None:
    files = MemoryFiles()
    log = filled(files, 5)
    append(log, message([b"tail"]))
    files.kill()
    path = f"{DIRECTORY}/{0:020d}.log"
    files.corrupt(path, files.read(path)[:-1])
    files.capacity_bytes -= files.free_bytes(DIRECTORY)
    log = open_log(files)
    assert len(read_all(log)) == 15
    with pytest.raises(DiskFull):
        append(log, message([b"x" * 9_999]))
    log.close()


def test_bytes_that_are_deleted_while_they_are_read() -> None:
    log = filled(MemoryFiles(), 20, segment_bytes=4_000)
    span = log.read(0, max_bytes=1, end_offset=60)[0]
    log.delete_before(40)
    with pytest.raises(OffsetOutOfRange, match="deleted"):
        log.read_bytes(span)


def test_a_deletion_between_the_check_and_the_look_up_gives_no_later_records(monkeypatch: pytest.MonkeyPatch) -> None:
    log = filled(MemoryFiles(), 20, segment_bytes=4_000)
    check = log._check_range

    def delete_after_check(offset: int) -> None:
        check(offset)
        log.delete_before(40)

    monkeypatch.setattr(log, "_check_range", delete_after_check)
    with pytest.raises(OffsetOutOfRange):
        log.read(5, max_bytes=1 << 20, end_offset=60)


def test_a_deletion_stopped_half_way_is_finished_by_the_next_opening() -> None:
    files = MemoryFiles()
    log = filled(files, 20, segment_bytes=4_000)
    kept = files.read(log.read(0, max_bytes=1, end_offset=1)[0].path)
    log.delete_before(40)
    files.kill()
    files.open_append(f"{DIRECTORY}/{0:020d}.log").writev([kept])
    second = next(name for name in files.listdir(DIRECTORY)[1:] if name.endswith(".log"))
    log = open_log(files, segment_bytes=4_000)
    assert log.start_offset == 40
    assert f"{0:020d}.log" not in files.listdir(DIRECTORY) and second in files.listdir(DIRECTORY)
    assert read_all(log)[0] == (40, b"40")


def test_producer_state_survives_checkpoints_kills_and_deletion() -> None:
    files = MemoryFiles()
    clock = ManualClock()
    log = open_log(files, clock=clock, segment_bytes=3_000)
    for i in range(9):
        append(log, message([b"x", b"y"], producer=(7, 0, 2 * i)))
        commit(log)
        clock.advance(3_000)
        log.maybe_checkpoint()
    log.delete_before(18)
    files.kill()
    log = open_log(files, clock=clock)
    again = message([b"x", b"y"], producer=(7, 0, 12))[1]
    assert log.producers.check(again) == Duplicate(12, 1_700_000_018_000)
    assert len([name for name in files.listdir(DIRECTORY) if name.endswith(".producers")]) <= 2


def test_checkpoints_are_due_by_time_or_bytes_and_only_when_something_changed() -> None:
    files = MemoryFiles()
    clock = ManualClock()
    log = open_log(files, clock=clock)
    append(log, message([b"x"]))
    before = files.operations
    clock.advance(4_999)
    log.maybe_checkpoint()
    assert files.operations == before and log.flushed_end_offset == 0
    clock.advance(1)
    log.maybe_checkpoint()
    assert log.flushed_end_offset == 1
    before = files.operations
    clock.advance(60_000)
    log.maybe_checkpoint()
    assert files.operations == before
    encoded = message([b"x" * (1 << 20)])
    for _ in range(65):
        append(log, encoded)
    log.maybe_checkpoint()
    assert log.flushed_end_offset == 66


def test_opening_after_a_clean_stop_reads_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    files = MemoryFiles()
    filled(files, 20, segment_bytes=4_000).close()
    mapped: list[str] = []
    real = files.map

    def counted(path: str) -> memoryview:
        mapped.append(path)
        return real(path)

    monkeypatch.setattr(files, "map", counted)
    before = files.operations
    log = open_log(files, segment_bytes=4_000)
    assert (log.end_offset, log.high_watermark) == (60, 60)
    assert len(mapped) == 1  # the last segment's head
    assert files.operations == before + 1  # its sync
    assert len(read_all(log)) == 60


def test_a_directory_is_held_by_one_log(tmp_path: Path) -> None:
    log = open_log(DiskFiles(), f"{tmp_path}/p")
    with pytest.raises(DataDirectoryInUse, match=f"{tmp_path}/p/lock"):
        open_log(DiskFiles(), f"{tmp_path}/p")
    log.close()
    open_log(DiskFiles(), f"{tmp_path}/p").close()


def test_a_slice_of_the_disk_is_kept_free() -> None:
    files = MemoryFiles(capacity_bytes=1 << 20)
    log = Log.open(
        files,
        DIRECTORY,
        topic_id=TOPIC_ID,
        partition=0,
        schemas=[RAW_SCHEMA],
        config=TopicConfig(),
        clock=ManualClock(),
        min_free_bytes=1 << 19,
    )
    append(log, message([b"x" * 300_000]))
    commit(log)
    files.capacity_bytes = 700_000
    with pytest.raises(DiskFull, match="make room, or delete records"):
        append(log, message([b"x" * (4 << 20)]))
    with pytest.raises(DiskFull):
        append(log, message([b"x"]))
    assert len(read_all(log)) == 1
    files.capacity_bytes = 1 << 30
    append(log, message([b"x"]))
    assert log.end_offset == 2


def test_reading_goes_on_while_one_thread_appends_rolls_and_deletes(tmp_path: Path) -> None:
    log = open_log(DiskFiles(), f"{tmp_path}/p", segment_bytes=20_000)
    stop = threading.Event()
    failures: list[BaseException] = []
    read = [0] * 3

    def reader(place: int) -> None:
        try:
            offset = 0
            while not stop.is_set() or offset < log.high_watermark:
                try:
                    spans = log.read(offset, max_bytes=7_000, end_offset=log.high_watermark)
                    rows = [row for span in spans for row in values_in(log, log.read_bytes(span))]
                except OffsetOutOfRange:
                    offset = log.start_offset
                    continue
                for found, value in rows:
                    assert value == b"%d" % found
                if rows:
                    assert rows[0][0] <= offset
                    read[place] += rows[-1][0] + 1 - offset
                    offset = rows[-1][0] + 1
                log.offset_for_timestamp(1_000, end_offset=log.high_watermark)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=reader, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for i in range(0, 2_000, 4):
        append(log, message([b"%d" % i, b"%d" % (i + 1)]), message([b"%d" % (i + 2), b"%d" % (i + 3)]))
        commit(log)
        if i % 400 == 396:
            log.delete_before(i - 200)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(read) > 0
    assert verify(log) == []
    log.close()


def test_verify_names_each_problem() -> None:
    files = MemoryFiles()
    log = filled(files, 20, segment_bytes=4_000)
    log.checkpoint()
    assert verify(log) == []
    names = [name for name in files.listdir(DIRECTORY) if name.endswith(".log")]
    for suffix, place in ((names[1], 2_000), (names[2].replace(".log", ".index"), 30), ("checkpoint", 40)):
        path = f"{DIRECTORY}/{suffix}"
        content = files.read(path)
        damaged = bytearray(content)
        damaged[place] ^= 4
        files.corrupt(path, bytes(damaged))
        (problem,) = verify(log)
        assert problem.startswith(path)
        files.corrupt(path, content)
    assert verify(log) == []
