"""Which partition a record goes to: murmur2 of its key, where Kafka's default partitioner puts it.

`partition = (murmur2(key) & 0x7fffffff) % partitions`. There are a scalar form for single keys and a vectorized one
for Arrow columns; both give the same numbers. Source: org.apache.kafka.common.utils.Utils.murmur2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import InvalidRecord

Partitioner = Callable[[str, bytes | None, Any, int], int]
"""A user's own: `partitioner(topic, key_bytes, value, partitions) -> partition`."""
Partitions = npt.NDArray[np.int32]

NO_KEY: Final = -1
"""In an array of partitions: the row has no key, and goes wherever there is room."""
MEMO_KEYS: Final = 65_536
_MAX_MEMO_KEY_BYTES: Final = 256
_LONG_KEY_BYTES: Final = 1024
"""Longer keys are hashed one by one: a vector step per four bytes would cost more."""
_FEW_KEYS: Final = 32

_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF
_NP_M: Final = np.uint32(_M)


def murmur2(key: bytes) -> int:
    """Kafka's murmur2 as an unsigned 32-bit number."""
    h = _SEED ^ len(key)
    whole = len(key) & ~3
    for k in np.frombuffer(key, "<u4", whole >> 2).tolist() if whole > 64 else _words(key, whole):
        k = (k * _M) & _MASK
        k ^= k >> 24
        h = ((h * _M) & _MASK) ^ ((k * _M) & _MASK)
    if len(key) & 3:
        h ^= int.from_bytes(key[whole:], "little")
        h = (h * _M) & _MASK
    h ^= h >> 13
    h = (h * _M) & _MASK
    return h ^ (h >> 15)


def _words(key: bytes, whole: int) -> list[int]:
    return [int.from_bytes(key[at : at + 4], "little") for at in range(0, whole, 4)]


_remembered = lru_cache(MEMO_KEYS)(murmur2)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of one key. Short keys are remembered, up to MEMO_KEYS of them."""
    h = _remembered(key) if len(key) <= _MAX_MEMO_KEY_BYTES else murmur2(key)
    return (h & 0x7FFFFFFF) % partitions


def partitions_of(keys: pa.Array, partitions: int) -> Partitions:
    """The partition of every key of a binary column, NO_KEY where it is null."""
    count = len(keys)
    if partitions == 1 and keys.null_count == 0:
        return np.zeros(count, np.int32)
    if count <= _FEW_KEYS:
        few = [NO_KEY if key is None else partition_of(key, partitions) for key in keys.to_pylist()]
        return np.array(few, np.int32)
    hashes = murmur2_column(keys)
    targets = ((hashes & np.uint32(0x7FFFFFFF)) % np.uint32(partitions)).astype(np.int32)
    if keys.null_count:
        targets[keys.is_null().to_numpy(zero_copy_only=False)] = NO_KEY
    return targets


def column_partitions(column: pa.Array, partitions: int) -> Partitions:
    """The partition of every row by its typed key column; each distinct key is hashed once."""
    encoded = column.dictionary_encode()
    lookup = partitions_of(key_column(encoded.dictionary), partitions)
    if len(lookup) == 0:
        return np.full(len(column), NO_KEY, np.int32)
    indices = encoded.indices
    if indices.null_count == 0:
        dense: Partitions = lookup[indices.to_numpy()]
        return dense
    targets: Partitions = lookup[indices.fill_null(0).to_numpy()]
    targets[indices.is_null().to_numpy(zero_copy_only=False)] = NO_KEY
    return targets


def key_column(column: pa.Array) -> pa.Array:
    """A typed key column as the bytes that partitioning hashes: strings UTF-8, integers 8 bytes big-endian, binary as
    it is. Raises InvalidRecord for other types."""
    kind = column.type
    if pa.types.is_binary(kind):
        return column
    if is_key_type(kind) and not pa.types.is_integer(kind):
        return column.cast(pa.binary())
    if not pa.types.is_integer(kind):
        raise InvalidRecord(f"a key column of type {kind} cannot be hashed: keys are strings, integers or binary")
    unsigned = pa.types.is_unsigned_integer(kind)
    numbers = column.cast(pa.uint64() if unsigned else pa.int64()).fill_null(0).to_numpy()
    data = numbers.astype(">u8" if unsigned else ">i8").tobytes()
    offsets = np.arange(0, 8 * len(column) + 1, 8, dtype=np.int32)
    keys = pa.BinaryArray.from_buffers(pa.binary(), len(column), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    return keys if column.null_count == 0 else pc.if_else(column.is_valid(), keys, None)


def is_key_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can be a key."""
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_binary(kind)
        or types.is_string(kind)
        or types.is_large_binary(kind)
        or types.is_large_string(kind)
        or types.is_fixed_size_binary(kind)
    )


def key_value_bytes(key: Any) -> bytes | None:
    """One typed key as the bytes that partitioning hashes; the scalar form of `key_column`."""
    if key is None or isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, int):
        return key.to_bytes(8, "big", signed=key < 1 << 63)
    raise InvalidRecord(f"a key of type {type(key).__name__} cannot be hashed: keys are strings, integers or binary")


def murmur2_column(keys: pa.Array) -> npt.NDArray[np.uint32]:
    """murmur2 of every key of a binary column; what stands for a null is meaningless."""
    count = len(keys)
    _, offsets_buffer, data_buffer = keys.buffers()
    if offsets_buffer is None or count == 0:
        return np.zeros(count, np.uint32)
    offsets = np.frombuffer(offsets_buffer, np.int32)[keys.offset : keys.offset + count + 1].astype(np.int64)
    first, end = int(offsets[0]), int(offsets[-1])
    data = np.zeros(end - first + 4, np.uint8)  # four more, so that a word may be read from any byte
    if data_buffer is not None:
        data[: end - first] = np.frombuffer(data_buffer, np.uint8)[first:end]
    starts, lengths = offsets[:-1] - first, np.diff(offsets)
    words = np.ndarray(shape=(len(data) - 3,), dtype="<u4", buffer=data, strides=(1,))
    long = lengths > _LONG_KEY_BYTES
    if not long.any():
        return _murmur2_rows(words, starts, lengths)
    hashes = np.zeros(count, np.uint32)
    short = ~long
    hashes[short] = _murmur2_rows(words, starts[short], lengths[short])
    for row in np.flatnonzero(long):
        hashes[row] = murmur2(data[starts[row] : starts[row] + lengths[row]].tobytes())
    return hashes


def _murmur2_rows(words: Any, starts: Any, lengths: Any) -> npt.NDArray[np.uint32]:
    h = np.uint32(_SEED) ^ lengths.astype(np.uint32)
    whole = lengths >> 2
    shortest, longest = (int(whole.min()), int(whole.max())) if len(whole) else (0, 0)
    for step in range(longest):
        if step < shortest:
            h = (h * _NP_M) ^ _mixed(words[starts + 4 * step])
        else:
            rows = np.flatnonzero(whole > step)
            h[rows] = (h[rows] * _NP_M) ^ _mixed(words[starts[rows] + 4 * step])
    rest = (lengths & 3).astype(np.uint32)
    tails = words[starts + 4 * whole] & ((np.uint32(1) << (rest * np.uint32(8))) - np.uint32(1))
    h = np.where(rest > 0, (h ^ tails) * _NP_M, h)
    h ^= h >> np.uint32(13)
    h *= _NP_M
    h ^= h >> np.uint32(15)
    hashes: npt.NDArray[np.uint32] = h
    return hashes


def _mixed(k: Any) -> Any:
    k = k * _NP_M
    k ^= k >> np.uint32(24)
    return k * _NP_M
