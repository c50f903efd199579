"""Compaction of a log on a disk in memory."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from raystream import batch as b
from raystream.clock import ManualClock
from raystream.config import TopicConfig
from raystream.errors import CorruptLog, InvalidRecord
from raystream.explicit import rows_of
from raystream.storage.cleaner import LatestOffsets
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.producer_state import Duplicate
from tests.fakes.compacting import Row, clean, headers_in, keyed, rows_in
from tests.fakes.logs import DIRECTORY, TOPIC_ID, append, commit, copy_batches, open_log
from tests.fakes.verify import verify


def filled(files: MemoryFiles, rounds: int = 20, keys: int = 7, *, segment_bytes: int = 4_000) -> Log:
    log = open_log(files, segment_bytes=segment_bytes)
    for i in range(rounds):
        append(log, keyed([(b"k%d" % ((3 * i + j) % keys), b"v%d-%d" % (i, j)) for j in range(3)]))
    commit(log)
    return log


def latest(rows: list[Row]) -> dict[bytes | None, Row]:
    return {row[1]: row for row in rows}


def test_the_last_record_of_every_key_stays_at_its_offset() -> None:
    files = MemoryFiles()
    log = filled(files)
    before, active = rows_in(log), log.segments[-1]
    done = clean(log)
    after = rows_in(log)
    assert latest(after) == latest(before)
    assert set(after) < set(before)
    sealed = [row for row in after if row[0] < active.base_offset]
    assert len({row[1] for row in sealed}) == len(sealed)
    assert [row for row in before if row[0] >= active.base_offset] == after[len(sealed) :]
    assert log.segment_count == 2 and done.swaps == 1 and log.cleaned_to == active.base_offset
    assert verify(log) == []
    for offset in range(log.end_offset):
        (span, *_) = log.read(offset, max_bytes=1, end_offset=log.end_offset)
        header = b.parse(log.read_bytes(span))
        assert header.base_offset <= offset < header.next_offset


def test_a_cleaned_log_opens_with_and_without_its_checkpoint() -> None:
    files = MemoryFiles()
    log = filled(files)
    clean(log)
    rows, end = rows_in(log), log.cleaned_to
    log.close()
    log = open_log(files, segment_bytes=4_000)
    assert rows_in(log) == rows and log.cleaned_to == end and log.compacted
    files.kill()
    files.unlink(f"{DIRECTORY}/checkpoint")
    for name in files.listdir(DIRECTORY):
        if name.endswith(".index"):
            files.unlink(f"{DIRECTORY}/{name}")
    log = open_log(files, segment_bytes=4_000)
    assert rows_in(log) == rows and log.compacted
    append(log, keyed([(b"k1", b"new")]))
    assert rows_in(log)[-1] == (60, b"k1", b"new")


def test_cleaning_again_takes_the_clean_part_along() -> None:
    files = MemoryFiles()
    log = filled(files)
    clean(log)
    append(log, *[keyed([(b"k%d" % (i % 7), b"again%d" % i)]) for i in range(14)])
    commit(log)
    before = rows_in(log)
    clean(log)
    after = rows_in(log)
    assert latest(after) == latest(before)
    assert log.segment_count == 2
    assert log.segments[0].generation == 2
    assert clean(log).swaps == 0
    assert verify(log) == []


def test_a_tombstone_outlives_its_grace_and_then_goes() -> None:
    log = open_log(MemoryFiles(), segment_bytes=2_000)
    append(log, keyed([(b"a", b"1"), (b"b", b"1")]), keyed([(b"a", None)]))
    append(log, *[keyed([(b"c", b"%d" % i)]) for i in range(9)])
    commit(log)
    clean(log, now_ms=5_000)
    assert (2, b"a", None) in rows_in(log) and (0, b"a", b"1") not in rows_in(log)
    append(log, *[keyed([(b"c", b"%d" % i)]) for i in range(9)])
    clean(log, now_ms=5_999)
    assert (2, b"a", None) in rows_in(log)
    append(log, *[keyed([(b"c", b"%d" % i)]) for i in range(9)])
    clean(log, now_ms=6_000)
    assert b"a" not in {key for _, key, _ in rows_in(log)}
    assert (1, b"b", b"1") in rows_in(log)


def test_rows_without_a_key_stay() -> None:
    log = open_log(MemoryFiles(), segment_bytes=2_000)
    append(log, *[keyed([(None, b"%d" % i), (b"k", b"%d" % i)]) for i in range(9)])
    commit(log)
    clean(log)
    assert [value for _, key, value in rows_in(log) if key is None] == [b"%d" % i for i in range(9)]


def test_timestamps_types_and_compression_stay() -> None:
    clock = ManualClock(50_000)
    log = open_log(MemoryFiles(), clock=clock, segment_bytes=3_000)
    for i in range(12):
        append(
            log,
            keyed(
                [(b"%d" % i, b"x" * 100), (b"k", b"y")],
                timestamps=[1_000 + i, 2_000 - i],
                attributes=b.ATTR_APPEND_TIME if 4 <= i < 8 else 0,
                compression="zstd" if i >= 6 else None,
            ),
        )
        clock.advance(1_000)
    commit(log)
    times = {0: (2_000, 1), 1_001: (2_000, 1), 53_500: (8, 54_000), 55_000: (10, 55_000), 58_000: None}
    for wanted in times:
        before = log.offset_for_timestamp(wanted, end_offset=24)
        clean(log)
        after = log.offset_for_timestamp(wanted, end_offset=24)
        assert (before is None) == (after is None)
        assert after is None or (after[1] >= wanted and after[0] >= (before or (0, 0))[0])
    headers = [header for header in headers_in(log) if header.is_explicit]
    assert {bool(header.attributes & b.ATTR_APPEND_TIME) for header in headers} == {True, False}
    messages = copy_batches(log, 0)
    assert {b.compression_of(message) for message, _ in messages} == {None, "zstd"}
    assert log.offset_for_timestamp(54_000, end_offset=24) == (8, 54_000)
    assert log.offset_for_timestamp(1_003, end_offset=24) == (6, 1_003)


def test_leader_epochs_are_not_merged() -> None:
    files = MemoryFiles()
    log = open_log(files, segment_bytes=1 << 20)
    for epoch in (1, 1, 4, 4, 6):
        append(log, keyed([(b"k", b"%d" % epoch)]), epoch=epoch)
    append(log, keyed([(b"k", b"last")]), epoch=7)
    log.set_config(log._config.__class__(segment_bytes=1_000))
    append(log, keyed([(b"k", b"end")]), epoch=7)
    commit(log)
    starts = log.epochs.starts
    clean(log)
    explicit = [header for header in headers_in(log) if header.is_explicit]
    assert [(h.leader_epoch, h.base_offset, h.next_offset) for h in explicit] == [
        (1, 0, 2),
        (4, 2, 4),
        (6, 4, 5),
        (7, 5, 6),
    ]
    files.kill()
    files.unlink(f"{DIRECTORY}/checkpoint")
    assert open_log(files).epochs.starts == starts


def test_producers_are_remembered_from_their_snapshot() -> None:
    files = MemoryFiles()
    log = open_log(files, segment_bytes=2_000)
    results = [append(log, keyed([(b"k", b"%d" % i)], producer=(7, 0, i)))[0] for i in range(20)]
    commit(log)
    log.checkpoint()
    clean(log)
    explicit = [header for header in headers_in(log) if header.is_explicit]
    assert {header.producer_id for header in explicit} == {-1}, "the last batch stands in the segment appended to"
    files.crash(random.Random(1))
    log = open_log(files, segment_bytes=2_000)
    again = keyed([(b"k", b"17")], producer=(7, 0, 17))[1]
    assert log.producers.check(again) == Duplicate(17, results[17].append_time_ms)


def test_a_truncation_keeps_what_is_remembered_of_producers() -> None:
    log = open_log(MemoryFiles(), segment_bytes=2_000)
    for i in range(20):
        append(log, keyed([(b"k", b"%d" % i)], producer=(7, 0, i)))
    log.advance_high_watermark(log.flush() - 2)
    log.checkpoint()
    clean(log, up_to=18)
    log.truncate(18)
    assert isinstance(log.producers.check(keyed([(b"k", b"17")], producer=(7, 0, 17))[1]), Duplicate)


def test_a_follower_takes_cleaned_batches_as_they_are() -> None:
    log = filled(MemoryFiles())
    clean(log)
    files = MemoryFiles()
    follower = open_log(files, segment_bytes=4_000)
    for message, header in copy_batches(log, 0):
        follower.append_as_follower([(message, header)])
    commit(follower)
    assert rows_in(follower) == rows_in(log)
    assert follower.compacted and follower.segments[0].explicit and not follower.segments[-1].explicit
    assert verify(follower) == []
    files.crash(random.Random(3))
    follower = open_log(files, segment_bytes=4_000)
    assert rows_in(follower) == rows_in(log) and follower.compacted
    append(follower, keyed([(b"k1", b"new")]))
    clean(follower)
    assert latest(rows_in(follower)) == {**latest(rows_in(log)), b"k1": (60, b"k1", b"new")}


def test_a_small_map_takes_several_passes() -> None:
    log = filled(MemoryFiles(), 60, keys=50)
    before, end = rows_in(log), log.segments[-1].base_offset
    passes = 0
    while log.cleaned_to < end:
        clean(log, map_bytes=100)
        passes += 1
    assert passes > 3
    assert latest(rows_in(log)) == latest(before)
    sealed = [key for offset, key, _ in rows_in(log) if offset < end]
    assert len(sealed) == len(set(sealed))


def test_windows_smaller_than_a_batch() -> None:
    log = filled(MemoryFiles())
    before = rows_in(log)
    clean(log, window_bytes=100)
    assert latest(rows_in(log)) == latest(before)


def test_damage_is_not_written_anew() -> None:
    files = MemoryFiles()
    log = filled(files)
    path = log.segments[1].path
    data = bytearray(files.read(path))
    data[-30] ^= 1
    files.corrupt(path, bytes(data))
    names = files.listdir(DIRECTORY)
    with pytest.raises(CorruptLog, match=path):
        clean(log)
    assert files.listdir(DIRECTORY) == names


def test_a_deletion_meanwhile_leaves_the_log_as_it_is() -> None:
    files = MemoryFiles()
    log = filled(files)

    def on_writer(work: object) -> object:
        log.delete_before(30)
        return work()  # type: ignore[operator]

    assert clean(log, on_writer=on_writer).swaps == 0
    assert not any(name.endswith(".tmp") for name in files.listdir(DIRECTORY))
    assert [offset for offset, _, _ in rows_in(log)] == list(range(30, 60))


def test_keys_are_compared_as_they_are() -> None:
    found = LatestOffsets(1 << 20)
    found.add(pa.chunked_array([["a", "b", None, "a"]]), pa.array([5, 6, 7, 8]).to_numpy())
    assert found.of(pa.chunked_array([["b", "a", None, "c"], ["a"]])).tolist() == [6, 8, -1, -1, 8]
    assert LatestOffsets(1).of(pa.chunked_array([["a"]])).tolist() == [-1]


def test_a_head_of_an_unknown_schema_is_refused() -> None:
    log = filled(MemoryFiles(), 2)
    with pytest.raises(InvalidRecord):
        log.heads.head(9, explicit=True)


def test_a_row_of_a_typed_topic_whose_other_columns_are_null_is_a_tombstone() -> None:
    schema = pa.schema([("x", pa.int32()), ("id", pa.string()), ("when", pa.timestamp("ms")), ("y", pa.string())])
    log = Log.open(
        MemoryFiles(),
        DIRECTORY,
        topic_id=TOPIC_ID,
        partition=0,
        schemas=[schema],
        config=TopicConfig(segment_bytes=1_500),
        clock=ManualClock(),
        time_column="when",
        min_free_bytes=0,
    )
    fields = b.ProducerFields(
        topic_id=TOPIC_ID, partition=0, last_offset_delta=3, first_timestamp_ms=7, max_timestamp_ms=9
    )
    columns = [[1, None, None, 4], ["a", "b", "c", "d"], [5, 6, None, 8], ["s", None, None, None]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    encoded = b.encode(pa.RecordBatch.from_arrays(arrays, schema=schema), fields)
    for _ in range(6):
        append(log, (encoded, b.parse(encoded)))
    commit(log)
    typed: dict[str, Any] = {"key_column": "id", "time_column": "when", "raw": False, "delete_retention_ms": 0}
    assert clean(log, now_ms=1, **typed).kept_rows == 4
    (span, *_) = log.read(0, max_bytes=1 << 20, end_offset=17)
    rows, _, times = rows_of(log.read_bytes(span), b.parse(log.read_bytes(span)), schema)
    assert rows.column("id").to_pylist() == ["a", "b", "c", "d"]
    assert times.to_pylist() == [5, 6, 9, 8]
    log.cleaned_to = 0
    assert clean(log, now_ms=2, map_bytes=1, **typed).kept_rows == 2
