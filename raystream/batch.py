"""A record batch on the wire and on disk: one Arrow IPC RecordBatch message with raystream's header inside it.

The header rides in the message's `custom_metadata` under the key `raystream`, as fixed-width ASCII, so that every
Arrow reader skips it and raystream can patch it in place. This file holds the layout, the writer and the readers;
it knows no file, no actor and no topic rule. `docs/log-format.md` is the byte specification.

    "raystream/1 " + hex(producer section) + hex(leader section)

The producer section and its CRC are written once, by whoever encodes the batch, and never change. The leader section
is zeros until a partition leader assigns the offset.
"""

from __future__ import annotations

import struct
from binascii import unhexlify
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from raystream.checksum import crc32c
from raystream.errors import CorruptBatch, NewerFormat

METADATA_KEY: Final = b"raystream"
FORMAT_VERSION: Final = 1
_PREFIX: Final = b"raystream/1 "
_ANY_VERSION: Final = b"raystream/"

# message_bytes, topic_id, partition, schema_id, producer_id, producer_epoch, base_sequence, last_offset_delta,
# first_timestamp_ms, max_timestamp_ms, attributes, 24 reserved bytes, delete_horizon_ms; then the producer CRC on its
# own.
_PRODUCER: Final = struct.Struct(">I16sIIqhiIqqH24xq")
# base_offset, leader_epoch, high_watermark, append_time_ms, 32 reserved bytes; then the header CRC on its own.
_LEADER: Final = struct.Struct(">qiqq32x")
_CRCS: Final = struct.Struct(">II")
_CRC_HEX: Final = 8

_PRODUCER_AT: Final = len(_PREFIX)
_PRODUCER_CRC_AT: Final = _PRODUCER_AT + 2 * _PRODUCER.size
_LEADER_AT: Final = _PRODUCER_CRC_AT + _CRC_HEX
_HEADER_CRC_AT: Final = _LEADER_AT + 2 * _LEADER.size
ZONE_BYTES: Final = _HEADER_CRC_AT + _CRC_HEX

_EMPTY_ZONE: Final = _PREFIX + b"0" * (ZONE_BYTES - len(_PREFIX))
CONTINUATION: Final = b"\xff\xff\xff\xff"
FRAME_PREFIX_BYTES: Final = 8  # continuation marker and metadata length, before the Arrow metadata
MAX_METADATA_BYTES: Final = 1 << 20
MIN_MESSAGE_BYTES: Final = FRAME_PREFIX_BYTES + ZONE_BYTES

ATTR_CONTROL: Final = 1
ATTR_TRANSACTIONAL: Final = 2
ATTR_APPEND_TIME: Final = 4
ATTR_EXPLICIT_OFFSETS: Final = 8
ATTR_COMMIT: Final = 16
"""Of a control batch: the transaction is committed. Without it, aborted."""

NO_PRODUCER_ID: Final = -1
NO_SEQUENCE: Final = -1
MAX_SEQUENCE: Final = 2**31 - 1

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerFields:
    """What the encoder of a batch states about it. `producer_id` -1 means: not idempotent."""

    topic_id: str
    partition: int
    schema_id: int = 1
    producer_id: int = NO_PRODUCER_ID
    producer_epoch: int = -1
    base_sequence: int = NO_SEQUENCE
    last_offset_delta: int
    first_timestamp_ms: int
    max_timestamp_ms: int
    attributes: int = 0
    delete_horizon_ms: int = 0
    """Until when compaction keeps the batch's tombstones; 0: it has none, or was not compacted yet."""


@dataclass(frozen=True, slots=True)
class LeaderFields:
    """What the partition's leader states about a batch when it appends it."""

    base_offset: int
    leader_epoch: int
    high_watermark: int
    append_time_ms: int


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """A batch's header as read, with where its zone lies in the message."""

    message_bytes: int
    topic_id: str
    partition: int
    schema_id: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    last_offset_delta: int
    first_timestamp_ms: int
    max_timestamp_ms: int
    attributes: int
    delete_horizon_ms: int
    producer_crc: int
    base_offset: int
    leader_epoch: int
    high_watermark: int
    append_time_ms: int
    header_crc: int
    zone_at: int

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        return advance_sequence(self.base_sequence, self.last_offset_delta)

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & ATTR_CONTROL)

    @property
    def is_explicit(self) -> bool:
        """Whether compaction wrote it: its rows' offsets stand in a column."""
        return bool(self.attributes & ATTR_EXPLICIT_OFFSETS)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & ATTR_TRANSACTIONAL)


def advance_sequence(sequence: int, count: int) -> int:
    """The sequence `count` records after `sequence`, wrapping at 2**31 as Kafka's does."""
    return (sequence + count) % (MAX_SEQUENCE + 1)


def encode(rows: pa.RecordBatch, fields: ProducerFields, *, compression: str | None = None) -> memoryview:
    """Encodes rows as one message whose leader section is still empty. `compression` is None, "lz4" or "zstd".

    The result owns its memory; nothing else refers to it.
    """
    options = pa.ipc.IpcWriteOptions(compression=compression)
    sink = pa.BufferOutputStream()
    writer = pa.ipc.new_stream(sink, rows.schema, options=options)
    writer.write_batch(rows, custom_metadata={METADATA_KEY: _EMPTY_ZONE})
    message = memoryview(sink.getvalue()).cast("B")[schema_message_bytes(rows.schema) :]
    zone_at = _find_zone(message)
    stated = _PRODUCER.pack(
        len(message),
        bytes.fromhex(fields.topic_id),
        fields.partition,
        fields.schema_id,
        fields.producer_id,
        fields.producer_epoch,
        fields.base_sequence,
        fields.last_offset_delta,
        fields.first_timestamp_ms,
        fields.max_timestamp_ms,
        fields.attributes,
        fields.delete_horizon_ms,
    )
    message[zone_at + _PRODUCER_AT : zone_at + _PRODUCER_CRC_AT] = stated.hex().encode()
    crc = _producer_crc(message, zone_at)
    message[zone_at + _PRODUCER_CRC_AT : zone_at + _LEADER_AT] = b"%08x" % crc
    return message


def encode_marker(
    schema: pa.Schema,
    *,
    topic_id: str,
    partition: int,
    schema_id: int,
    producer_id: int,
    producer_epoch: int,
    commit: bool,
    now_ms: int,
) -> memoryview:
    """A control batch that ends the producer's transaction: no rows, and one offset. The epoch is the one after it."""
    fields = ProducerFields(
        topic_id=topic_id,
        partition=partition,
        schema_id=schema_id,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        last_offset_delta=0,
        first_timestamp_ms=now_ms,
        max_timestamp_ms=now_ms,
        attributes=ATTR_CONTROL | ATTR_TRANSACTIONAL | (ATTR_COMMIT if commit else 0),
    )
    return encode(pa.RecordBatch.from_pylist([], schema=schema), fields)


def schema_message_bytes(schema: pa.Schema) -> int:
    """The size of the schema message that stands before the first batch of a stream."""
    cached = _schema_sizes.get(schema)
    if cached is None:
        if len(_schema_sizes) >= 256:
            _schema_sizes.clear()
        cached = _schema_sizes[schema] = schema.serialize().size
    return cached


_schema_sizes: dict[pa.Schema, int] = {}


def parse(message: Bytes) -> BatchHeader:
    """Reads the header of the message that begins at `message[0]`. Raises CorruptBatch, checks no CRC.

    `message` may be longer than the batch; `message_bytes` says where the next one begins.
    """
    view = message if isinstance(message, memoryview) else memoryview(message)
    zone_at = _find_zone(view)
    return _parse_zone(bytes(view[zone_at : zone_at + ZONE_BYTES]), zone_at, len(view))


def _parse_zone(zone: bytes, zone_at: int, available: int) -> BatchHeader:
    try:
        stated = _PRODUCER.unpack(unhexlify(zone[_PRODUCER_AT:_PRODUCER_CRC_AT]))
        assigned = _LEADER.unpack(unhexlify(zone[_LEADER_AT:_HEADER_CRC_AT]))
        producer_crc, header_crc = _CRCS.unpack(unhexlify(zone[_PRODUCER_CRC_AT:_LEADER_AT] + zone[_HEADER_CRC_AT:]))
        if zone[_HEADER_CRC_AT:] != b"%08x" % header_crc:  # the one part of the zone that no CRC covers
            raise ValueError("upper case")
    except ValueError as error:
        raise CorruptBatch(f"the batch header holds characters that are not hexadecimal: {error}") from None
    if stated[0] < MIN_MESSAGE_BYTES:
        raise CorruptBatch(f"the batch header states an impossible size of {stated[0]} bytes")
    if stated[0] > available:
        raise CorruptBatch(f"the batch header states {stated[0]} bytes, of which {available} are there")
    values: tuple[Any, ...] = (stated[0], stated[1].hex(), *stated[2:], producer_crc, *assigned, header_crc, zone_at)
    return BatchHeader(*values)


def _find_zone(message: memoryview) -> int:
    if len(message) < MIN_MESSAGE_BYTES or bytes(message[:4]) != CONTINUATION:
        raise CorruptBatch("the bytes do not begin with an Arrow IPC message")
    metadata_bytes = int.from_bytes(message[4:8], "little")
    if not ZONE_BYTES <= metadata_bytes <= min(MAX_METADATA_BYTES, len(message) - FRAME_PREFIX_BYTES):
        raise CorruptBatch(f"the Arrow message states {metadata_bytes} bytes of metadata, which cannot be")
    metadata = bytes(message[FRAME_PREFIX_BYTES : FRAME_PREFIX_BYTES + metadata_bytes])
    at = metadata.find(_PREFIX)
    if at < 0:
        _refuse_other_version(metadata)
    if at + ZONE_BYTES > metadata_bytes:
        raise CorruptBatch("the batch header is cut off")
    return FRAME_PREFIX_BYTES + at


def _refuse_other_version(metadata: bytes) -> None:
    at = metadata.find(_ANY_VERSION)
    if at >= 0:
        version = metadata[at + len(_ANY_VERSION) : at + len(_PREFIX)].split(b" ")[0]
        if version.isdigit() and int(version) > FORMAT_VERSION:
            raise NewerFormat(
                f"the batch has format version {int(version)}; this raystream reads up to {FORMAT_VERSION}: upgrade it"
            )
    raise CorruptBatch("the Arrow message carries no raystream header")


def _producer_crc(message: memoryview, zone_at: int) -> int:
    crc = crc32c(message[: zone_at + _PRODUCER_CRC_AT])
    return int(crc32c(message[zone_at + ZONE_BYTES :], crc))


def check_producer_crc(message: memoryview, header: BatchHeader) -> None:
    """Raises CorruptBatch unless the bytes are those that the producer encoded (the leader section aside)."""
    if _producer_crc(message[: header.message_bytes], header.zone_at) != header.producer_crc:
        raise CorruptBatch(f"the batch at offset {header.base_offset} fails its producer CRC")


def check_header_crc(message: memoryview, header: BatchHeader) -> None:
    """Raises CorruptBatch unless the header zone is as the leader wrote it."""
    zone = message[header.zone_at : header.zone_at + _HEADER_CRC_AT]
    if crc32c(zone) != header.header_crc:
        raise CorruptBatch(f"the batch that states base offset {header.base_offset} fails its header CRC")


def header_zone(message: memoryview, header: BatchHeader, leader: LeaderFields) -> bytes:
    """The whole zone with the leader's fields and the header CRC filled in."""
    stated = bytes(message[header.zone_at : header.zone_at + _LEADER_AT])
    assigned = _LEADER.pack(leader.base_offset, leader.leader_epoch, leader.high_watermark, leader.append_time_ms)
    zone = stated + assigned.hex().encode()
    return zone + b"%08x" % crc32c(zone)


def with_leader_fields(message: memoryview, header: BatchHeader, leader: LeaderFields) -> tuple[Bytes, bytes, Bytes]:
    """The batch as three pieces for `writev`: what stands before the header, the header, what stands after."""
    end = header.zone_at + ZONE_BYTES
    return message[: header.zone_at], header_zone(message, header, leader), message[end : header.message_bytes]


def walk(messages: Bytes) -> Iterator[tuple[BatchHeader, memoryview]]:
    """The batches that stand one after the other in `messages`, each as header and its own bytes. Checks no CRC."""
    view = memoryview(messages)
    position = 0
    while position < len(view):
        rest = view[position:]
        header = parse(rest)
        yield header, rest[: header.message_bytes]
        position += header.message_bytes


def decode(message: Bytes, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of one message, without a copy (compressed buffers are unpacked). Raises CorruptBatch."""
    try:
        return pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(message)), schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, ValueError) as error:
        raise CorruptBatch(f"Arrow cannot read the batch: {error}") from None


def row_count(message: Bytes, header: BatchHeader) -> int:
    """The rows that the Arrow metadata states, read without decoding. Raises CorruptBatch where the Arrow message and
    the header disagree about where the batch ends."""
    view = memoryview(message)
    metadata_bytes = int.from_bytes(view[4:8], "little")
    metadata = bytes(view[FRAME_PREFIX_BYTES : FRAME_PREFIX_BYTES + metadata_bytes])
    try:
        root = _U32.unpack_from(metadata, 0)[0]
        body_bytes = _I64.unpack_from(metadata, _table_field(metadata, root, 3))[0]
        rows_at = _table_field(metadata, _record_batch(metadata), 0, absent=-1)
        rows = 0 if rows_at < 0 else _I64.unpack_from(metadata, rows_at)[0]
    except (struct.error, IndexError):
        raise CorruptBatch("the Arrow metadata of the batch is damaged") from None
    if FRAME_PREFIX_BYTES + metadata_bytes + body_bytes != header.message_bytes:
        raise CorruptBatch(f"the batch header states {header.message_bytes} bytes, the Arrow message another size")
    return int(rows)


def null_count(message: Bytes, node: int) -> int:
    """The nulls of the Arrow array with that place among all arrays of the batch, children after their parents, read
    without decoding. Raises CorruptBatch."""
    metadata = _metadata(message)
    try:
        nodes = _nodes(metadata)
        if node >= _U32.unpack_from(metadata, nodes)[0]:
            raise CorruptBatch(f"the batch has no array {node}")
        return int(_I64.unpack_from(metadata, nodes + 4 + 16 * node + 8)[0])
    except (struct.error, IndexError):
        raise CorruptBatch("the Arrow metadata of the batch is damaged") from None


def array_place(schema: pa.Schema, column: str) -> int:
    """The place of a column's array among all arrays of a batch, for `null_count`."""
    before = schema.names.index(column)
    if before == 0:
        return 0
    leading = pa.RecordBatch.from_pylist([], schema=pa.schema([schema.field(at) for at in range(before)]))
    metadata = _metadata(memoryview(leading.serialize()))
    return int(_U32.unpack_from(metadata, _nodes(metadata))[0])


def compression_of(message: Bytes) -> str | None:
    """How the batch's columns are compressed, as `encode` takes it. Raises CorruptBatch."""
    metadata = _metadata(message)
    try:
        at = _table_field(metadata, _record_batch(metadata), 3, absent=-1)
        if at < 0:
            return None
        codec_at = _table_field(metadata, at + _U32.unpack_from(metadata, at)[0], 0, absent=-1)
        return "zstd" if codec_at >= 0 and metadata[codec_at] == _ZSTD else "lz4"
    except (struct.error, IndexError):
        raise CorruptBatch("the Arrow metadata of the batch is damaged") from None


def _metadata(message: Bytes) -> bytes:
    view = memoryview(message)
    return bytes(view[FRAME_PREFIX_BYTES : FRAME_PREFIX_BYTES + int.from_bytes(view[4:8], "little")])


def _nodes(metadata: bytes) -> int:
    """Where the vector that describes each array begins, with its length."""
    at = _table_field(metadata, _record_batch(metadata), 1)
    return at + int(_U32.unpack_from(metadata, at)[0])


def _record_batch(metadata: bytes) -> int:
    """Where the flatbuffer table of the record batch begins."""
    at = _table_field(metadata, _U32.unpack_from(metadata, 0)[0], 2)
    return at + int(_U32.unpack_from(metadata, at)[0])


_ZSTD: Final = 1
_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")
_U16: Final = struct.Struct("<H")
_I64: Final = struct.Struct("<q")


def _table_field(flatbuffer: bytes, table: int, slot: int, absent: int | None = None) -> int:
    """Where a flatbuffer table keeps the field of that slot. A missing one is `absent`, or CorruptBatch."""
    vtable = table - int(_I32.unpack_from(flatbuffer, table)[0])
    if vtable < 0:
        raise CorruptBatch("the Arrow metadata of the batch is damaged")
    entry = 4 + 2 * slot
    offset = 0
    if entry < _U16.unpack_from(flatbuffer, vtable)[0]:
        offset = _U16.unpack_from(flatbuffer, vtable + entry)[0]
    if offset == 0:
        if absent is None:
            raise CorruptBatch("the Arrow metadata of the batch lacks a field")
        return absent
    return table + int(offset)


def find_headers(data: Bytes) -> Iterator[BatchHeader]:
    """The headers that stand anywhere in damaged bytes and pass their header CRC. `zone_at` counts from `data`."""
    whole = bytes(data)
    at = whole.find(_PREFIX)
    while at >= 0:
        zone = whole[at : at + ZONE_BYTES]
        if len(zone) == ZONE_BYTES and b"%08x" % crc32c(zone[:_HEADER_CRC_AT]) == zone[_HEADER_CRC_AT:]:
            yield _parse_zone(zone, at, 2**32)
        at = whole.find(_PREFIX, at + 1)
