"""Rows of typed topics: a dict is checked when it is sent and becomes columns when its chunk is cut."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from raystream.client.columns import to_milliseconds
from raystream.errors import InvalidRecord

Check = Callable[[Any], tuple[Any, int]]
"""Takes a value that is not None; returns it as Arrow takes it, with its bytes. Raises TypeError, ValueError."""

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Row(NamedTuple):
    """A checked row: its values in the schema's order, its size in bytes, and its event time if it has one."""

    values: tuple[Any, ...]
    nbytes: int
    timestamp_ms: int | None


class RowCheck:
    """Checks rows against one topic's stored schema."""

    def __init__(self, topic: str, schema: pa.Schema, time: str | None) -> None:
        self._topic = topic
        self._schema = schema
        self._names = tuple(schema.names)
        self._known = frozenset(self._names)
        self._checks = tuple((field.name, field.type, bool(field.nullable), _check_of(field.type)) for field in schema)
        self._time_at = None if time is None else schema.get_field_index(time)

    def check(self, row: Any) -> Row:
        """The row ready to be stored. A column that is missing is null. Raises InvalidRecord naming the column."""
        if not isinstance(row, Mapping):
            raise InvalidRecord(
                f"topic {self._topic!r} is typed: send a dict of its columns ({', '.join(self._names)}), not "
                f"{type(row).__name__}"
            )
        if not row.keys() <= self._known:
            raise self._extra(row)
        nbytes = 0
        values: list[Any] = []
        for name, kind, nullable, check in self._checks:
            value = row.get(name)
            if value is None:
                if not nullable:
                    raise InvalidRecord(f"column {name!r} of topic {self._topic!r} takes no null")
                values.append(None)
                nbytes += 4
                continue
            try:
                value, size = check(value)
            except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
                shown = repr(value)
                shown = shown if len(shown) <= 60 else shown[:57] + "..."
                raise InvalidRecord(
                    f"column {name!r} of topic {self._topic!r} is {kind} and cannot take {shown} "
                    f"({type(value).__name__}): {error}"
                ) from None
            values.append(value)
            nbytes += size
        stamp = None if self._time_at is None else _milliseconds(values[self._time_at])
        return Row(tuple(values), nbytes, stamp)

    def _extra(self, row: Mapping[Any, Any]) -> InvalidRecord:
        extra = next(name for name in row if name not in self._known)
        near = difflib.get_close_matches(str(extra), self._names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self._names)}"
        return InvalidRecord(f"topic {self._topic!r} has no column {extra!r}; {hint}")

    def to_batch(self, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
        """Checked rows as columns."""
        columns: Iterable[Any] = zip(*rows, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        return pa.record_batch(arrays, schema=self._schema)


def event_times(rows: pa.RecordBatch, time: str | None, now_ms: int) -> Any:
    """The records' timestamps, int64 milliseconds: the time column's, now where that is null or there is none."""
    if time is None:
        return np.full(rows.num_rows, now_ms, np.int64)
    stamps = to_milliseconds(rows.column(time))
    return stamps.fill_null(now_ms).to_numpy() if stamps.null_count else stamps.to_numpy()


def _milliseconds(value: Any) -> int | None:
    if value is None or isinstance(value, int):
        return value
    assert isinstance(value, dt.datetime)
    aware = value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)
    return (aware - _EPOCH) // dt.timedelta(milliseconds=1)


def _check_of(kind: pa.DataType) -> Check:
    types = pa.types
    if types.is_boolean(kind):
        return _boolean
    if types.is_integer(kind):
        signed = types.is_signed_integer(kind)
        low = -(1 << (kind.bit_width - 1)) if signed else 0
        high = (1 << (kind.bit_width - signed)) - 1
        return lambda value: _integer(value, low, high, kind.bit_width // 8)
    if types.is_floating(kind):
        return _number
    if types.is_string(kind) or types.is_large_string(kind):
        return _text
    if types.is_binary(kind) or types.is_large_binary(kind):
        return _binary
    if types.is_timestamp(kind):
        return lambda value: _instant(value, kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return lambda value: _list(value, kind)
    return lambda value: _any(value, kind)


def _boolean(value: Any) -> tuple[Any, int]:
    if isinstance(value, (bool, np.bool_)):
        return bool(value), 1
    raise TypeError("give True or False")


def _integer(value: Any, low: int, high: int, size: int) -> tuple[Any, int]:
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError("give an int")
    number = value.__index__()
    if not low <= number <= high:
        raise ValueError(f"it lies outside {low} to {high}")
    return number, size


def _number(value: Any) -> tuple[Any, int]:
    if isinstance(value, float):
        return value, 8
    if isinstance(value, (int, np.integer, np.floating)) and not isinstance(value, bool):
        return float(value), 8
    raise TypeError("give a float")


def _text(value: Any) -> tuple[Any, int]:
    if not isinstance(value, str):
        raise TypeError("give a str")
    return value, (len(value) if value.isascii() else len(value.encode())) + 5


def _binary(value: Any) -> tuple[Any, int]:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError("give bytes")
    data = bytes(value)
    return data, len(data) + 5


def _instant(value: Any, kind: pa.DataType) -> tuple[Any, int]:
    if isinstance(value, str):
        value = dt.datetime.fromisoformat(value)
    if isinstance(value, np.datetime64):
        value = pa.scalar(value).cast(pa.timestamp("us")).as_py()
    if not isinstance(value, dt.datetime):
        raise TypeError("give a datetime or an ISO 8601 string")
    pa.scalar(value, kind)  # raises where the unit cannot hold it
    return value, 8


def _list(value: Any, kind: pa.DataType) -> tuple[Any, int]:
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise TypeError("give a list")
    return _any(value, kind)


def _any(value: Any, kind: pa.DataType) -> tuple[Any, int]:
    pa.scalar(value, kind)
    return value, _rough_size(value)


def _rough_size(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value) + 5
    if isinstance(value, Mapping):
        return 16 + sum(_rough_size(k) + _rough_size(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return 8 + sum(map(_rough_size, value))
    return 16
