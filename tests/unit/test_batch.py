"""The batch header: what goes in comes out, damage is noticed, other Arrow readers do not mind."""

from __future__ import annotations

import io
import random

import polars as pl
import pyarrow as pa
import pytest

from raystream import batch as b
from raystream.errors import CorruptBatch, NewerFormat
from raystream.schema import RAW_SCHEMA, schema_message

TOPIC_ID = "00112233445566778899aabbccddeeff"
FIELDS = b.ProducerFields(
    topic_id=TOPIC_ID,
    partition=3,
    schema_id=2,
    producer_id=2**62,
    producer_epoch=32_767,
    base_sequence=2**31 - 1,
    last_offset_delta=4,
    first_timestamp_ms=-5,
    max_timestamp_ms=2**50,
    attributes=b.ATTR_APPEND_TIME,
)
LEADER = b.LeaderFields(2**40, 7, 2**40 - 3, 1_700_000_000_000)


def raw_rows(count: int = 5, size: int = 30) -> pa.RecordBatch:
    columns = [
        pa.array([b"key"] * count, pa.binary()),
        pa.array([b"v" * size] * count, pa.binary()),
        pa.array([[("h", b"1")]] * count, RAW_SCHEMA.field("headers").type),
        pa.array(range(count), pa.int64()),
    ]
    return pa.record_batch(columns, schema=RAW_SCHEMA)


def appended(encoded: memoryview) -> bytes:
    return b"".join(b.with_leader_fields(encoded, b.parse(encoded), LEADER))


def checked(message: bytes) -> b.BatchHeader:
    header = b.parse(message)
    b.check_header_crc(memoryview(message), header)
    b.check_producer_crc(memoryview(message), header)
    return header


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_what_producer_and_leader_state_comes_back(compression: str | None) -> None:
    encoded = b.encode(raw_rows(), FIELDS, compression=compression)
    b.check_producer_crc(encoded, b.parse(encoded))
    message = appended(encoded)
    header = checked(message)
    for name in FIELDS.__slots__:
        assert getattr(header, name) == getattr(FIELDS, name)
    for name in LEADER.__slots__:
        assert getattr(header, name) == getattr(LEADER, name)
    assert header.message_bytes == len(message) == len(encoded)
    assert (header.next_offset, header.last_sequence, header.is_control) == (2**40 + 5, 3, False)
    assert b.row_count(message, header) == 5
    assert b.decode(message, RAW_SCHEMA).equals(raw_rows())


def test_the_leader_copies_nothing() -> None:
    encoded = b.encode(raw_rows(), FIELDS)
    before, zone, after = b.with_leader_fields(encoded, b.parse(encoded), LEADER)
    assert isinstance(before, memoryview) and isinstance(after, memoryview)
    assert before.obj is after.obj is encoded.obj
    assert len(zone) == b.ZONE_BYTES and zone.isascii()


def test_a_batch_without_rows_and_one_of_many_columns() -> None:
    empty = b.encode(raw_rows(0), FIELDS)
    assert b.row_count(empty, b.parse(empty)) == 0
    wide = pa.record_batch({f"column {i}": pa.array([i, None, 3]) for i in range(500)})
    message = appended(b.encode(wide, FIELDS))
    assert b.row_count(message, checked(message)) == 3
    assert b.decode(message, wide.schema).equals(wide)


def test_a_stream_of_batches_is_read_by_other_arrow_readers() -> None:
    stream = schema_message(RAW_SCHEMA, TOPIC_ID, 2) + appended(b.encode(raw_rows(), FIELDS)) * 3
    assert pa.ipc.open_stream(stream).read_all().equals(pa.Table.from_batches([raw_rows()] * 3))
    assert pl.read_ipc_stream(io.BytesIO(stream))["timestamp"].to_list() == [*range(5)] * 3


def test_two_thousand_flipped_bits_are_noticed_each() -> None:
    message = appended(b.encode(raw_rows(20), FIELDS))
    checked(message)
    rng = random.Random(7)
    for bit in rng.sample(range(8 * len(message)), 2_000):
        damaged = bytearray(message)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptBatch, NewerFormat)):
            checked(bytes(damaged))


@pytest.mark.parametrize("start", range(0, 340, 20))
def test_every_flipped_bit_of_the_header_is_noticed(start: int) -> None:
    message = appended(b.encode(raw_rows(1, 1), FIELDS))
    zone_at = b.parse(message).zone_at
    for bit in range(8 * start, 8 * (start + 20)):
        damaged = bytearray(message)
        damaged[zone_at + bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptBatch, NewerFormat)):
            checked(bytes(damaged))


def test_fed_byte_by_byte_it_waits_for_the_last() -> None:
    message = appended(b.encode(raw_rows(1, 1), FIELDS))
    for size in range(len(message)):
        with pytest.raises(CorruptBatch):
            b.parse(message[:size])
    assert b.parse(message) == b.parse(message + b"\xff\xff\xff\xff trailing")


def test_walking_gives_each_batch_and_refuses_what_is_cut_off() -> None:
    messages = [appended(b.encode(raw_rows(count), FIELDS)) for count in (1, 5, 2)]
    walked = list(b.walk(b"".join(messages)))
    assert [bytes(message) for _, message in walked] == messages
    with pytest.raises(CorruptBatch):
        list(b.walk(b"".join(messages)[:-1]))
    assert list(b.walk(b"")) == []


def test_a_newer_version_is_refused_with_what_to_do() -> None:
    message = appended(b.encode(raw_rows(), FIELDS)).replace(b"raystream/1 ", b"raystream/2 ")
    with pytest.raises(NewerFormat, match=r"version 2.*upgrade"):
        b.parse(message)


def test_an_arrow_message_of_somebody_else_is_refused() -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, RAW_SCHEMA) as writer:
        writer.write_batch(raw_rows(100))
    foreign = sink.getvalue().to_pybytes()[b.schema_message_bytes(RAW_SCHEMA) :]
    with pytest.raises(CorruptBatch, match=r"no raystream header|metadata"):
        b.parse(foreign)


@pytest.mark.parametrize("junk", [b"", b"\xff" * 4, b"\xff" * 1000, b"\0" * 1000, b"\xff\xff\xff\xff\x7f"])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(CorruptBatch):
        b.parse(junk)


def test_row_count_refuses_damaged_flatbuffers_and_never_reads_outside() -> None:
    message = appended(b.encode(raw_rows(), FIELDS))
    header = b.parse(message)
    rng = random.Random(3)
    for _ in range(3_000):
        damaged = bytearray(message)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(8, header.zone_at)] = rng.randrange(256)
        try:
            assert isinstance(b.row_count(bytes(damaged), header), int)
        except CorruptBatch:
            continue


def test_headers_are_found_in_damaged_bytes_when_they_are_whole() -> None:
    message = appended(b.encode(raw_rows(), FIELDS))
    other = bytearray(message)
    other[b.parse(message).zone_at + 300] ^= 1
    found = list(b.find_headers(b"\0" * 77 + message[50:] + bytes(other) + message + b"raystream/1 cut"))
    assert [header.base_offset for header in found] == [2**40] * 2
    assert list(b.find_headers(b"")) == []


def test_sequences_wrap() -> None:
    assert b.advance_sequence(2**31 - 1, 1) == 0
    assert b.advance_sequence(2**31 - 5, 10) == 5


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_nulls_and_compression_are_read_without_decoding(compression: str | None) -> None:
    columns = {
        "s": pa.array([{"x": 1, "y": [1, 2]}, None, {"x": None, "y": None}]),
        "m": pa.array([[("a", b"1")], None, []], pa.map_(pa.string(), pa.binary())),
        "k": pa.array(["a", None, None]),
        "z": pa.array([1, None, 3]),
    }
    rows = pa.RecordBatch.from_pydict(columns)
    fields = b.ProducerFields(
        topic_id="00" * 16, partition=0, last_offset_delta=2, first_timestamp_ms=0, max_timestamp_ms=0
    )
    message = b.encode(rows, fields, compression=compression)
    nulls = {name: b.null_count(message, b.array_place(rows.schema, name)) for name in columns}
    assert nulls == {"s": 1, "m": 1, "k": 2, "z": 1}
    assert b.compression_of(message) == compression
    with pytest.raises(CorruptBatch, match="has no array 99"):
        b.null_count(message, 99)
