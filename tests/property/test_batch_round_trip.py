"""Any header and any rows come back as they went in, whatever stands around the batch."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream import batch as b
from raystream.errors import CorruptBatch

INT64 = st.integers(-(2**63), 2**63 - 1)
UINT32 = st.integers(0, 2**32 - 1)
SCHEMA = pa.schema([("text", pa.string()), ("number", pa.int64()), ("list", pa.list_(pa.float32()))])

fields = st.builds(
    b.ProducerFields,
    topic_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    partition=UINT32,
    schema_id=UINT32,
    producer_id=INT64,
    producer_epoch=st.integers(-(2**15), 2**15 - 1),
    base_sequence=st.integers(-(2**31), 2**31 - 1),
    last_offset_delta=UINT32,
    first_timestamp_ms=INT64,
    max_timestamp_ms=INT64,
    attributes=st.integers(0, 2**16 - 1),
)
leaders = st.builds(b.LeaderFields, INT64, st.integers(-(2**31), 2**31 - 1), INT64, INT64)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.text(max_size=40) | st.just("raystream/1 "),
            "number": st.none() | INT64,
            "list": st.none() | st.lists(st.none() | st.floats(width=32, allow_nan=False), max_size=4),
        }
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(fields, leaders, rows, st.sampled_from([None, "lz4", "zstd"]), st.binary(max_size=600))
def test_round_trip(
    stated: b.ProducerFields,
    assigned: b.LeaderFields,
    records: list[dict[str, object]],
    compression: str | None,
    trailing: bytes,
) -> None:
    encoded = b.encode(pa.RecordBatch.from_pylist(records, SCHEMA), stated, compression=compression)
    message = b"".join(b.with_leader_fields(encoded, b.parse(encoded), assigned))
    header = b.parse(message + trailing)
    b.check_header_crc(memoryview(message), header)
    b.check_producer_crc(memoryview(message + trailing), header)
    assert [getattr(header, name) for name in stated.__slots__] == [getattr(stated, n) for n in stated.__slots__]
    assert [getattr(header, name) for name in assigned.__slots__] == [getattr(assigned, n) for n in assigned.__slots__]
    assert b.row_count(message, header) == len(records)
    assert b.decode(message, SCHEMA).to_pylist() == records
    assert [bytes(found) for _, found in b.walk(message * 2)] == [message] * 2


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=800), st.booleans())
def test_junk_is_refused_or_read_never_anything_else(junk: bytes, framed: bool) -> None:
    data = b.CONTINUATION + (len(junk) & ~7).to_bytes(4, "little") + junk if framed else junk
    try:
        b.parse(data)
        raise AssertionError("junk passed for a batch")
    except CorruptBatch:
        pass
    assert list(b.find_headers(data)) == []
