"""murmur2 as Kafka's, for single keys and for columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.client.partitioner import (
    NO_KEY,
    column_partitions,
    key_column,
    key_value_bytes,
    murmur2,
    murmur2_column,
    partition_of,
    partitions_of,
)
from raystream.errors import InvalidRecord

KAFKA = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}
"""From org.apache.kafka.common.utils.UtilsTest."""

keys = st.lists(st.one_of(st.none(), st.binary(max_size=40), st.binary(min_size=1000, max_size=1100)), max_size=80)


@pytest.mark.parametrize(("key", "expected"), KAFKA.items())
def test_kafkas_vectors(key: str, expected: int) -> None:
    assert murmur2(key.encode()) == expected & 0xFFFFFFFF
    column = pa.array([b"x", key.encode(), b""], pa.binary())
    assert int(murmur2_column(column)[1]) == expected & 0xFFFFFFFF


def test_the_sign_bit_is_cleared_not_negated() -> None:
    assert partition_of(b"21", 1000) == (-973932308 & 0x7FFFFFFF) % 1000


@settings(deadline=None)
@given(keys, st.integers(1, 300))
def test_a_column_is_hashed_as_its_keys_are(column: list[bytes | None], partitions: int) -> None:
    expected = [NO_KEY if key is None else partition_of(key, partitions) for key in column]
    assert partitions_of(pa.array(column, pa.binary()), partitions).tolist() == expected
    padded = pa.array([b"before", *column, *[b"after"] * 40], pa.binary())
    assert partitions_of(padded.slice(1, len(column)), partitions).tolist() == expected
    many = partitions_of(padded.slice(1), partitions).tolist()  # long enough for the vectorized form
    assert many[: len(column)] == expected
    assert set(many[len(column) :]) == {partition_of(b"after", partitions)}


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=12)), max_size=60), st.integers(1, 9))
def test_a_typed_column_goes_where_its_bytes_go(column: list[str | None], partitions: int) -> None:
    expected = [NO_KEY if key is None else partition_of(key.encode(), partitions) for key in column]
    for kind in (pa.string(), pa.large_string()):
        assert column_partitions(pa.array(column, kind), partitions).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=60))
def test_integers_are_eight_bytes_big_endian(column: list[int | None]) -> None:
    expected = [None if number is None else number.to_bytes(8, "big", signed=True) for number in column]
    assert key_column(pa.array(column, pa.int64())).to_pylist() == expected
    assert [key_value_bytes(number) for number in column] == expected


def test_every_width_of_an_integer_has_the_same_bytes() -> None:
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint64()):
        assert key_column(pa.array([7], kind)).to_pylist() == [b"\0\0\0\0\0\0\0\7"]
    assert key_column(pa.array([2**64 - 1], pa.uint64())).to_pylist() == [b"\xff" * 8] == [key_value_bytes(2**64 - 1)]


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.timestamp("ms"), pa.list_(pa.int8())])
def test_other_types_are_no_keys(kind: pa.DataType) -> None:
    with pytest.raises(InvalidRecord, match="keys are strings, integers or binary"):
        key_column(pa.array([None], kind))


def test_no_rows() -> None:
    assert len(partitions_of(pa.array([], pa.binary()), 4)) == 0
    assert len(column_partitions(pa.array([], pa.string()), 4)) == 0
    assert column_partitions(pa.array([None, None], pa.string()), 4).tolist() == [NO_KEY, NO_KEY]
    assert np.all(partitions_of(pa.array([b"a"] * 5), 1) == 0)
