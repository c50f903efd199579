"""The sparse index: entries, look-ups, and a file whose damage is noticed."""

from __future__ import annotations

import random
import struct

import pytest
from crc32c import crc32c

from raystream.errors import CorruptBatch, NewerFormat
from raystream.storage.index import HEADER_BYTES, INTERVAL_BYTES, NO_TIMESTAMP, Coverage, Index, read_index

COVERAGE = Coverage(3, 100, 900, 10_000_000, 77, 55, 66)


def index_of(batches: list[tuple[int, int, int]]) -> Index:
    index = Index()
    for base_offset, position, before in batches:
        index.offer(base_offset, position, before)
    return index


def test_an_entry_stands_for_the_first_batch_and_then_for_one_in_each_interval() -> None:
    index = index_of([(i, 500 + i * 10_000, i - 1) for i in range(100)])
    assert index[0] == (0, 500, -1)
    gaps = [index[i + 1][1] - index[i][1] for i in range(len(index) - 1)]
    assert min(gaps) >= INTERVAL_BYTES and max(gaps) < INTERVAL_BYTES + 10_000
    with pytest.raises(IndexError):
        index[len(index)]


def test_look_ups_agree_with_a_linear_search() -> None:
    rng = random.Random(0)
    offset, position, newest, batches = 100, 500, NO_TIMESTAMP, []
    for _ in range(200):
        batches.append((offset, position, newest))
        offset += rng.randrange(1, 50)
        position += INTERVAL_BYTES + rng.randrange(1000)
        newest = max(newest, rng.randrange(10_000))
    index = index_of(batches)
    assert [index[i] for i in range(len(index))] == batches
    for wanted in [rng.randrange(offset + 10) for _ in range(300)] + [number for b in batches[1:] for number in b]:
        assert index.at_offset(wanted) == max([b for b in batches if b[0] <= wanted], default=batches[0])[:2]
        place = wanted * 1_000
        assert index.at_position(place) == max([b for b in batches if b[1] <= place], default=batches[0])[:2]
        assert index.before_time(wanted) == max([b for b in batches if b[2] < wanted], default=batches[0])[:2]


def test_cutting_drops_what_lies_behind() -> None:
    index = index_of([(i, i * INTERVAL_BYTES, i) for i in range(10)])
    index.cut(4 * INTERVAL_BYTES)
    assert len(index) == 4
    index.offer(4, 4 * INTERVAL_BYTES - 1, 9)
    assert len(index) == 4
    index.offer(4, 4 * INTERVAL_BYTES, 9)
    assert index[4] == (4, 4 * INTERVAL_BYTES, 9)
    index.cut(0)
    index.offer(0, 7, 0)
    assert [index[i] for i in range(len(index))] == [(0, 7, 0)]


def test_the_file_gives_back_what_went_in() -> None:
    index = index_of([(i * 3, i * INTERVAL_BYTES, i) for i in range(50)])
    read, coverage = read_index(index.to_bytes(COVERAGE))
    assert coverage == COVERAGE
    assert [read[i] for i in range(len(read))] == [index[i] for i in range(len(index))]
    assert len(read_index(Index().to_bytes(COVERAGE))[0]) == 0


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    data = index_of([(i, i * INTERVAL_BYTES, i) for i in range(5)]).to_bytes(COVERAGE)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBatch):
            read_index(bytes(damaged))
    for size in range(len(data)):
        with pytest.raises(CorruptBatch):
            read_index(data[:size])
    with pytest.raises(CorruptBatch):
        read_index(data + b"\0")


def test_a_later_version_is_refused() -> None:
    data = bytearray(Index().to_bytes(COVERAGE))
    data[7] = 2
    head = bytes(data[: HEADER_BYTES - 4])
    with pytest.raises(NewerFormat):
        read_index(head + struct.pack(">I", crc32c(head)))
