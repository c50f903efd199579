"""Schemas as topics store them, and the message at a segment's head."""

from __future__ import annotations

import pyarrow as pa
import pytest

from raystream.errors import CorruptBatch, InvalidRecord, NewerFormat
from raystream.schema import (
    HEADERS_TYPE,
    RAW_SCHEMA,
    SchemaMessage,
    read_schema_message,
    restore,
    schema_message,
    stored_schema,
)

TOPIC_ID = "00112233445566778899aabbccddeeff"
MESSAGE = schema_message(RAW_SCHEMA, TOPIC_ID, 17)


def test_the_message_gives_back_schema_topic_and_version() -> None:
    assert read_schema_message(MESSAGE) == SchemaMessage(RAW_SCHEMA, TOPIC_ID, 17, len(MESSAGE))
    assert read_schema_message(MESSAGE + b"a batch").message_bytes == len(MESSAGE)
    assert schema_message(RAW_SCHEMA, TOPIC_ID, 17) == MESSAGE


def test_another_arrow_reader_reads_it() -> None:
    assert pa.ipc.read_schema(pa.py_buffer(MESSAGE)).equals(RAW_SCHEMA)
    assert pa.ipc.open_stream(MESSAGE).read_all().num_rows == 0


def test_every_flipped_bit_is_noticed() -> None:
    for bit in range(8 * len(MESSAGE)):
        damaged = bytearray(MESSAGE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptBatch, NewerFormat)):
            read_schema_message(bytes(damaged))


def test_fed_byte_by_byte_it_waits_for_the_last() -> None:
    for size in range(len(MESSAGE)):
        with pytest.raises(CorruptBatch):
            read_schema_message(MESSAGE[:size])


def test_a_newer_version_is_refused() -> None:
    with pytest.raises(NewerFormat):
        read_schema_message(MESSAGE.replace(b"raystream-schema/1 ", b"raystream-schema/2 "))


def test_a_schema_without_raystreams_mark_is_refused() -> None:
    with pytest.raises(CorruptBatch, match="no raystream header"):
        read_schema_message(RAW_SCHEMA.serialize().to_pybytes())


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        (pa.schema([]), "at least one column"),
        (pa.schema([("a", pa.int8()), ("a", pa.int8())]), "'a' appears more than once"),
        (pa.schema([("_offset", pa.int8())]), "rename yours"),
        (pa.schema([("t", pa.json_())]), "cast it to its storage type"),
        (pa.schema([("l", pa.list_(pa.dictionary(pa.int8(), pa.string())))]), "decode it first"),
        (pa.schema([("r", pa.run_end_encoded(pa.int32(), pa.int8()))]), "decode it first"),
    ],
)
def test_what_a_topic_cannot_store_is_refused_with_the_column(schema: pa.Schema, sentence: str) -> None:
    with pytest.raises(InvalidRecord, match=sentence):
        stored_schema(schema)


def test_views_are_stored_plain_and_metadata_is_dropped() -> None:
    schema = pa.schema([pa.field("s", pa.string_view(), metadata={"a": "b"}), ("b", pa.binary_view())], {"c": "d"})
    assert stored_schema(schema).equals(pa.schema([("s", pa.string()), ("b", pa.binary())]), check_metadata=True)
    nested = pa.schema([("m", HEADERS_TYPE), ("s", pa.struct([("x", pa.list_(pa.int8()))]))])
    assert stored_schema(nested).equals(nested)


@pytest.mark.parametrize("ordered", [False, True])
def test_dictionaries_are_stored_plain_and_given_back(ordered: bool) -> None:
    kind = pa.dictionary(pa.int16(), pa.string(), ordered)
    plain = pa.array(["a", None, "b", "a"])
    rows = pa.record_batch([plain.dictionary_encode().cast(kind), [1, 2, 3, 4]], names=["c", "n"])
    schema = stored_schema(rows.schema)
    stored = pa.record_batch([plain, rows["n"]], schema=schema)
    kept = read_schema_message(schema_message(schema, TOPIC_ID, 1)).schema
    back = restore(pa.Table.from_batches([stored], kept))
    assert back.schema.field("c").type == kind
    assert back.column("c").to_pylist() == plain.to_pylist()
    assert back.schema.metadata is None
