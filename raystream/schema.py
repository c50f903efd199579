"""Schemas as topics store them: raw topics have Kafka's record, typed topics the user's own columns.

A batch must be readable by itself, so dictionary columns are stored as plain values and the field's metadata remembers
what to give back. The schema message at a segment's head carries its own CRC in its metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from raystream.batch import CONTINUATION, FRAME_PREFIX_BYTES, Bytes
from raystream.checksum import crc32c
from raystream.errors import CorruptBatch, InvalidRecord, NewerFormat

RAW_SCHEMA_ID: Final = 1
HEADERS_TYPE: Final = pa.map_(pa.string(), pa.binary())
RAW_SCHEMA: Final = pa.schema(
    [
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        pa.field("headers", HEADERS_TYPE),
        pa.field("timestamp", pa.int64()),
    ]
)
"""What a raw topic stores; `timestamp` is milliseconds since the epoch, UTC."""

RAW_READ_SCHEMA: Final = pa.schema(
    [
        ("offset", pa.int64()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("timestamp", pa.int64()),
        ("timestamp_type", pa.int32()),
        ("headers", HEADERS_TYPE),
    ]
)
"""What a reader of a raw topic sees: the columns of Ray Data's Kafka reader."""

RESERVED_COLUMNS: Final = ("_partition", "_offset", "_timestamp")
APPEND_TIME: Final = "_append_time"
"""When the partition's leader appended the row, milliseconds since the epoch: it was known to nobody before. Joins take
it beside a topic's columns; a topic has none of that name."""
_DICTIONARY_KEY: Final = b"raystream.dictionary"
_SCHEMA_KEY: Final = b"raystream"
_SCHEMA_PREFIX: Final = b"raystream-schema/1 "
_NO_CRC: Final = b"00000000"
MAX_SCHEMA_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SchemaMessage:
    """A segment's schema message as read: the Arrow schema, whose topic and version it is, and its size in bytes."""

    schema: pa.Schema
    topic_id: str
    schema_id: int
    message_bytes: int


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The schema a typed topic stores for the user's `schema`. Raises InvalidRecord with the column at fault."""
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRecord(f"column {twice[0]!r} appears more than once: give every column its own name")
    if not names:
        raise InvalidRecord("a typed topic needs at least one column")
    for name in names:
        if name in (*RESERVED_COLUMNS, APPEND_TIME):
            raise InvalidRecord(f"column {name!r} is raystream's own: rename yours")
    return pa.schema([_stored_field(field) for field in schema])


def _stored_field(field: pa.Field) -> pa.Field:
    kind = field.type
    if pa.types.is_dictionary(kind):
        memo = f"{kind.index_type}{' ordered' if kind.ordered else ''}".encode()
        return pa.field(field.name, _plain(kind.value_type, field.name), field.nullable, {_DICTIONARY_KEY: memo})
    return pa.field(field.name, _plain(kind, field.name), field.nullable)


def _plain(kind: pa.DataType, column: str) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        raise InvalidRecord(
            f"column {column!r} has the extension type {kind}: cast it to its storage type {kind.storage_type}"
        )
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        raise InvalidRecord(f"column {column!r} nests the encoded type {kind}: decode it first")
    if kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    for index in range(kind.num_fields):
        _plain(kind.field(index).type, column)
    return kind


def restore(table: pa.Table) -> pa.Table:
    """Gives dictionary columns back as dictionaries, and drops raystream's own metadata."""
    for index, field in enumerate(table.schema):
        memo = (field.metadata or {}).get(_DICTIONARY_KEY)
        if memo is not None:
            index_type, _, ordered = memo.decode().partition(" ")
            kind = pa.dictionary(pa.type_for_alias(index_type), field.type, ordered == "ordered")
            column = table.column(index).dictionary_encode().unify_dictionaries().cast(kind)
            table = table.set_column(index, pa.field(field.name, kind, field.nullable), column)
    return table.replace_schema_metadata(None)


def schema_message(schema: pa.Schema, topic_id: str, schema_id: int) -> bytes:
    """The message that stands at the head of a segment: the same bytes on every replica."""
    marked = schema.with_metadata({_SCHEMA_KEY: _SCHEMA_PREFIX + f"{topic_id} {schema_id:08x} ".encode() + _NO_CRC})
    blank: bytes = marked.serialize().to_pybytes()
    at = blank.index(_SCHEMA_PREFIX) + len(_SCHEMA_PREFIX) + 42
    return blank[:at] + b"%08x" % crc32c(blank) + blank[at + len(_NO_CRC) :]


def read_schema_message(data: Bytes) -> SchemaMessage:
    """Reads and checks the schema message that `data` begins with. Raises CorruptBatch or NewerFormat."""
    view = memoryview(data)
    if len(view) < FRAME_PREFIX_BYTES or bytes(view[:4]) != CONTINUATION:
        raise CorruptBatch("the file does not begin with an Arrow schema message")
    size = FRAME_PREFIX_BYTES + int.from_bytes(view[4:8], "little")
    if not FRAME_PREFIX_BYTES < size <= min(len(view), MAX_SCHEMA_BYTES):
        raise CorruptBatch("the schema message is cut off")
    message = bytes(view[:size])
    at = message.find(_SCHEMA_PREFIX)
    if at < 0:
        if b"raystream-schema/" in message:
            raise NewerFormat("the segment was written by a newer raystream: upgrade this one")
        raise CorruptBatch("the schema message carries no raystream header")
    start = at + len(_SCHEMA_PREFIX)
    crc_at = start + 42
    blank = message[:crc_at] + _NO_CRC + message[crc_at + len(_NO_CRC) :]
    if b"%08x" % crc32c(blank) != message[crc_at : crc_at + len(_NO_CRC)]:
        raise CorruptBatch("the schema message fails its CRC")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(message))
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptBatch(f"Arrow cannot read the schema message: {error}") from None
    topic_id, schema_id = message[start : start + 32].decode(), int(message[start + 33 : start + 41], 16)
    return SchemaMessage(schema.with_metadata(None), topic_id, schema_id, size)
