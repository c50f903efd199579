"""The scrubber's reading: what it finds, where it says it is, and how fast it goes."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from typing import Any

import pytest

from raystream.clock import ManualClock
from raystream.errors import StorageError
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.scrubbing import Damage, Pace, Step, remember, remembered, scrub
from raystream.storage.segment import Placed, Segment
from tests.fakes.logs import DIRECTORY, append, commit, message, open_log

CHUNKS = [256, 1_000, 3_000, 1 << 20]


def filled(files: MemoryFiles, batches: int = 12, **config: Any) -> Log:
    """Sealed segments and an active one, all published; two records a batch, one batch much larger."""
    log = open_log(files, **{"segment_bytes": 5_000, **config})
    for number in range(batches):
        size = 6_000 if number == 5 else 1
        append(log, message([b"%d" % number * size, b"x"]))
    commit(log)
    return log


def found(log: Log, end_offset: int | None = None, chunk_bytes: int = 1 << 20) -> list[Damage]:
    end = log.high_watermark if end_offset is None else end_offset
    steps = scrub(log.segments, end_offset=end, chunk_bytes=chunk_bytes)
    return [step.damage for step in steps if step.damage is not None]


def flip(files: MemoryFiles, path: str, position: int) -> None:
    content = bytearray(files.read(path))
    content[position] ^= 4
    files.corrupt(path, bytes(content))


def batches_of(segment: Segment) -> list[Placed]:
    data = segment.files.map(segment.path)[: segment.tail.size]
    return list(segment.walk(segment.read_head(data), segment.base_offset, data=data))


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_a_healthy_log_is_read_once_and_nothing_is_found(chunk_bytes: int) -> None:
    log = filled(MemoryFiles())
    assert log.segment_count > 3
    steps = list(scrub(log.segments, end_offset=log.high_watermark, chunk_bytes=chunk_bytes))
    assert [step.damage for step in steps if step.damage is not None] == []
    assert sum(step.read_bytes for step in steps) >= log.size_bytes
    if chunk_bytes == 1 << 20:
        assert [step.read_bytes for step in steps].count(0) == 0 and len(steps) == 2 * log.segment_count


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_a_flip_anywhere_is_found_in_its_batch_and_nowhere_else(chunk_bytes: int) -> None:
    files = MemoryFiles()
    log = filled(files)
    rng = random.Random(7)
    for segment in log.segments:
        for position, header in batches_of(segment):
            for place in (0, 5, header.zone_at + 30, header.zone_at + 336, header.message_bytes - 1):
                before = files.read(segment.path)
                at = position + place if rng.random() < 0.7 else position + rng.randrange(header.message_bytes)
                flip(files, segment.path, at)
                (damage,) = found(log, chunk_bytes=chunk_bytes)
                assert (damage.path, damage.position, damage.offset) == (segment.path, position, header.base_offset)
                assert (damage.end_position, damage.end_offset) == (position + header.message_bytes, header.next_offset)
                assert damage.reason
                files.corrupt(segment.path, before)
    assert found(log) == []


def test_a_flip_in_the_head_concerns_no_record() -> None:
    files = MemoryFiles()
    log = filled(files)
    segment = log.segments[1]
    head_bytes = batches_of(segment)[0].position
    for place in (0, 6, head_bytes // 2, head_bytes - 70):
        before = files.read(segment.path)
        flip(files, segment.path, place)
        (damage,) = found(log)
        assert (damage.position, damage.end_position) == (0, head_bytes)
        assert damage.offset == damage.end_offset == segment.base_offset
        files.corrupt(segment.path, before)


def test_damage_across_a_seam_is_one_range_and_damage_apart_is_two() -> None:
    files = MemoryFiles()
    log = filled(files, segment_bytes=1 << 20)
    (segment,) = log.segments
    batches = batches_of(segment)
    content = bytearray(files.read(segment.path))
    seam = batches[3].position
    content[seam - 20 : seam + 900] = bytes(920)
    content[batches[8].position + 600] ^= 1
    files.corrupt(segment.path, bytes(content))
    ranges = [(d.position, d.end_position, d.offset, d.end_offset) for d in found(log)]
    assert ranges == [
        (batches[2].position, batches[3].position, 4, 6),
        (batches[3].position, batches[4].position, 6, 8),
        (batches[8].position, batches[9].position, 16, 18),
    ]


def test_a_file_that_has_lost_its_end_is_damaged_up_to_where_it_ended() -> None:
    files = MemoryFiles()
    log = filled(files)
    for segment in log.segments:
        content = files.read(segment.path)
        files.corrupt(segment.path, content[:-10])
        (damage,) = found(log)
        assert (damage.end_position, damage.end_offset) == (segment.tail.size, segment.tail.end_offset)
        assert "the file ends at position" in damage.reason
        files.corrupt(segment.path, content)


def test_bytes_that_the_disk_does_not_give_are_damage_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    files = MemoryFiles()
    log = filled(files, segment_bytes=1 << 20)
    bad = batches_of(log.segments[0])[4]
    read = files.read

    def failing(path: str, position: int = 0, length: int | None = None) -> bytes:
        if length is not None and position <= bad.position + 100 < position + length:
            raise StorageError("cannot read it: Input/output error", errno=errno.EIO)
        return read(path, position, length)

    monkeypatch.setattr(files, "read", failing)
    damages = found(log, chunk_bytes=512)
    assert damages[0].offset <= bad.header.base_offset < damages[-1].end_offset
    assert "Input/output error" in damages[0].reason


def test_what_is_not_published_is_left_alone() -> None:
    files = MemoryFiles()
    log = filled(files)
    end = log.high_watermark
    append(log, message([b"more"]))
    segment = log.segments[-1]
    flip(files, segment.path, segment.tail.size - 1)
    assert found(log) == []
    assert found(log, log.end_offset)[0].offset == end
    assert found(log, 1) == []


def test_a_segment_that_is_deleted_meanwhile_is_left_out() -> None:
    files = MemoryFiles()
    log = filled(files)
    segments = log.segments
    log.delete_before(segments[2].base_offset)
    assert not [step for step in scrub(segments, end_offset=log.high_watermark) if step.damage is not None]


def test_the_rate_is_bounded_and_rest_is_not_saved_up() -> None:
    clock = ManualClock()
    log = filled(MemoryFiles(), 60)
    rate = 10_000.0
    for _ in range(2):
        pace = Pace(clock, rate)
        began, total = clock.monotonic_ms(), 0
        for step, wait_ms in pace.over(scrub(log.segments, end_offset=log.high_watermark, chunk_bytes=1_000)):
            total += step.read_bytes
            clock.sleep_ms(wait_ms + 1)
            assert total <= rate * (clock.monotonic_ms() - began) / 1_000
        clock.advance(3_600_000)
    assert total > 30_000
    assert [wait_ms for _, wait_ms in pace.over([Step(1_000)])] == [100]


def test_no_more_than_a_tenth_of_the_time_is_taken_for_many_small_batches() -> None:
    clock = ManualClock()

    def slow() -> Iterator[Step]:
        for _ in range(5):
            clock.advance(20)
            yield Step(10)

    began = clock.monotonic_ms()
    for _, wait_ms in Pace(clock, 1e9).over(slow()):
        clock.sleep_ms(wait_ms)
    assert clock.monotonic_ms() - began == 1_000


@pytest.mark.parametrize("chunk_bytes", [2_000, 10_000])
def test_a_step_is_a_chunk_or_a_batch(chunk_bytes: int) -> None:
    log = filled(MemoryFiles(), segment_bytes=1 << 20)
    largest = max(header.message_bytes for _, header in batches_of(log.segments[0]))
    steps = list(scrub(log.segments, end_offset=log.high_watermark, chunk_bytes=chunk_bytes))
    assert max(step.read_bytes for step in steps) <= max(largest, chunk_bytes)


def test_what_was_found_is_remembered_until_it_is_repaired() -> None:
    files = MemoryFiles()
    log = filled(files)
    log.checkpoint()
    flip(files, log.segments[0].path, 900)
    damages = found(log)
    remember(files, DIRECTORY, damages)
    files.crash(random.Random(1))
    assert remembered(files, DIRECTORY) == tuple(damages)
    again = open_log(files, segment_bytes=5_000)
    assert again.end_offset == log.end_offset
    files.corrupt(f"{DIRECTORY}/damaged", b"{")
    assert remembered(files, DIRECTORY) == ()
    remember(files, DIRECTORY, ())
    files.crash(random.Random(1))
    assert "damaged" not in files.listdir(DIRECTORY)
