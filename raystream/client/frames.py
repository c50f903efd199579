"""Frames in: pandas, polars, Arrow, anything with `__arrow_c_stream__`, as checked batches of a topic's stored schema.

A frame is taken slice by slice, so that a large one needs no second copy of itself. A pandas index is dropped: make it
a column (`frame.reset_index()`) to keep it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from raystream.client.accumulator import Sink
from raystream.client.columns import to_milliseconds
from raystream.errors import InvalidRecord
from raystream.schema import RAW_SCHEMA

SLICE_ROWS: Final = 65_536
MIN_SLICE_ROWS: Final = 256

Slices = Callable[[int], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class Source:
    """A frame before it is checked: its Arrow schema, its slices of at most so many rows, and roughly what a row
    weighs (None: not known). `mutable`: its memory may be changed by its owner once the call is over."""

    schema: pa.Schema
    slices: Slices
    row_bytes: float | None = None
    mutable: bool = False


def open_source(frame: Any, target: pa.Schema | None) -> Source:
    """The frame as slices. `target`, where given, guides the conversion of pandas columns. Raises InvalidRecord."""
    if isinstance(frame, pa.RecordBatch):
        frame = pa.Table.from_batches([frame])
    if isinstance(frame, pa.Table):
        row_bytes = _per_row(frame.nbytes, len(frame))
        return Source(frame.schema, lambda rows: _resliced(frame.to_batches(rows), rows), row_bytes)
    if isinstance(frame, pa.RecordBatchReader):
        return Source(frame.schema, lambda rows: _resliced(frame, rows))
    if _is_pandas(frame):
        return _pandas(frame, target)
    if type(frame).__module__.partition(".")[0] == "polars" and type(frame).__name__ == "LazyFrame":
        raise InvalidRecord("a polars LazyFrame has no rows yet: collect() it first")
    if hasattr(frame, "__arrow_c_stream__"):
        try:
            reader = pa.RecordBatchReader.from_stream(frame)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InvalidRecord(f"Arrow cannot read this {type(frame).__name__}: {error}") from None
        return Source(reader.schema, lambda rows: _resliced(reader, rows))
    raise InvalidRecord(
        f"a {type(frame).__name__} is no frame: give a pandas or polars DataFrame, a pyarrow Table, RecordBatch or "
        "RecordBatchReader, or anything with __arrow_c_stream__"
    )


def frame_schema(frame: Any) -> pa.Schema:
    """The Arrow schema of a frame's columns, a pandas index left out. Raises InvalidRecord."""
    return open_source(frame, None).schema.remove_metadata()


def _per_row(nbytes: int, rows: int) -> float | None:
    return nbytes / rows if rows else None


def _resliced(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The batches as slices of about `rows` rows: large ones are cut, small ones put together."""
    small: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        if small and held + batch.num_rows > rows:
            yield pa.concat_batches(small)
            small, held = [], 0
        if batch.num_rows >= rows:
            for first in range(0, batch.num_rows, rows):
                yield batch.slice(first, rows)
        elif batch.num_rows:
            small.append(batch)
            held += batch.num_rows
    if small:
        yield pa.concat_batches(small)


def _is_pandas(frame: Any) -> bool:
    return any(
        kind.__module__.partition(".")[0] == "pandas" and kind.__name__ == "DataFrame" for kind in type(frame).__mro__
    )


def _pandas(frame: Any, target: pa.Schema | None) -> Source:
    names = [str(name) for name in frame.columns]
    _refuse_duplicates(names)
    if list(frame.columns) != names:
        frame = frame.set_axis(names, axis=1)
    if target is not None and set(names) != set(target.names):
        target = None  # the check of the columns says what is wrong
    guide = None if target is None else pa.schema([_guided(frame[name], target.field(name)) for name in names])
    schema = guide if guide is not None else _converted(frame, None).schema.remove_metadata()

    def slices(rows: int) -> Iterator[pa.RecordBatch]:
        for first in range(0, len(frame), rows):
            yield from _resliced(_converted(frame.iloc[first : first + rows], schema, first).to_batches(), rows)

    weight = float(frame.memory_usage(index=False).sum()) if len(frame) else 0.0
    return Source(schema, slices, _per_row(int(weight), len(frame)), mutable=True)


def _guided(column: Any, field: pa.Field) -> pa.Field:
    """The Arrow type for a pandas column: the topic's own for objects, whose type pandas does not know."""
    if column.dtype == object:
        return pa.field(field.name, field.type)
    return pa.field(field.name, pa.Schema.from_pandas(column.iloc[:0].to_frame(), preserve_index=False).field(0).type)


def _converted(frame: Any, schema: pa.Schema | None, first: int = 0) -> pa.Table:
    try:
        return pa.Table.from_pandas(frame, schema=schema, preserve_index=False, nthreads=1)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidRecord(_conversion_failure(frame, schema, first, error)) from None


def _conversion_failure(frame: Any, schema: pa.Schema | None, first: int, error: Exception) -> str:
    """Which column, and which row of it, cannot be converted."""
    for name in frame.columns:
        kind = None if schema is None else schema.field(name).type
        values = frame[name]
        if _takes(values, kind):
            continue
        row = _first_bad(len(values), lambda end, values=values, kind=kind: _takes(values.iloc[:end], kind))  # type: ignore[misc]
        found = values.iloc[row]
        wanted = "any one Arrow type" if kind is None else str(kind)
        return f"column {name!r} cannot be {wanted}: row {first + row} holds {_shown(found)} ({type(found).__name__})"
    return f"Arrow cannot convert the frame: {error}"


def _takes(values: Any, kind: pa.DataType | None) -> bool:
    try:
        pa.array(values, type=kind, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True


def _first_bad(count: int, takes: Callable[[int], bool]) -> int:
    """The first row that makes the rows up to it fail."""
    good, bad = 0, count
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if takes(middle) else (good, middle)
    return bad - 1


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# Checks -------------------------------------------------------------------------------------------------------------


def checked_slices(source: Source, sink: Sink, now_ms: Callable[[], int]) -> Iterator[tuple[pa.RecordBatch, Any]]:
    """The frame's slices under the topic's stored schema, each with its records' timestamps. Raises InvalidRecord."""
    names = source.schema.names
    _refuse_duplicates(names)
    if not names:
        raise InvalidRecord(f"the frame has no columns; topic {sink.name!r} has {', '.join(sink.schema.names)}")
    if sink.typed:
        _check_names(names, sink.schema.names, sink.schema.names, sink.name)
    else:
        _check_names(names, ["value"], RAW_SCHEMA.names, sink.name)
    for name in names:
        found, wanted = source.schema.field(name).type, sink.schema.field(name).type
        instants = not sink.typed and name == "timestamp" and pa.types.is_timestamp(found)
        if not instants and not _may_cast(found, wanted):
            raise _mismatch(name, found, wanted, sink)
    first = 0
    for rows in source.slices(_slice_rows(source, sink)):
        now = now_ms()
        stored = _stored(rows, sink, first, now)
        stamps = _timestamps(stored, sink, now)
        _refuse_future(stamps, sink, now, first)
        first += rows.num_rows
        if stored.num_rows:
            yield stored, stamps


def _slice_rows(source: Source, sink: Sink) -> int:
    """How many rows make about one batch for every partition."""
    if not source.row_bytes:
        return SLICE_ROWS
    wanted = int(sink.frame_bytes * max(sink.partitions, 1) / source.row_bytes)
    return max(MIN_SLICE_ROWS, min(SLICE_ROWS, wanted))


def _refuse_duplicates(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRecord(f"the frame has more than one column {twice[0]!r}: give every column its own name")


def _check_names(names: Sequence[str], needed: Sequence[str], known: Sequence[str], topic: str) -> None:
    extra = [name for name in names if name not in known]
    missing = [name for name in needed if name not in names]
    if extra:
        near = difflib.get_close_matches(extra[0], missing or known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"topic {topic!r} has {', '.join(known)}: drop it"
        raise InvalidRecord(f"the frame has a column {extra[0]!r} that topic {topic!r} has not; {hint}")
    if missing:
        raise InvalidRecord(f"the frame lacks the column {missing[0]!r} of topic {topic!r}; it has {', '.join(names)}")


def _may_cast(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether a safe cast between the types keeps the meaning: numbers stay numbers, text text, instants instants."""
    if source == target or pa.types.is_null(source):
        return True
    if pa.types.is_dictionary(source) or pa.types.is_run_end_encoded(source):
        return _may_cast(source.value_type, target)
    kinds = _family(source), _family(target)
    if "nested" in kinds:
        return kinds[0] == kinds[1]
    return kinds[0] == kinds[1] or kinds == ("text", "binary") or kinds == ("date", "timestamp")


_FAMILIES: Final = (
    ("number", (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)),
    ("text", (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)),
    (
        "binary",
        (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary),
    ),
    ("boolean", (pa.types.is_boolean,)),
    ("timestamp", (pa.types.is_timestamp,)),
    ("date", (pa.types.is_date,)),
    ("time", (pa.types.is_time,)),
    ("duration", (pa.types.is_duration,)),
)


def _family(kind: pa.DataType) -> str:
    for name, checks in _FAMILIES:
        if any(check(kind) for check in checks):
            return name
    return "nested"


def _mismatch(name: str, found: pa.DataType, wanted: pa.DataType, sink: Sink) -> InvalidRecord:
    remedy = "convert it first"
    if not sink.typed and name in ("value", "key"):
        remedy = "a raw topic takes strings or binary; convert it, or create a typed topic with schema="
    return InvalidRecord(f"column {name!r} is {found}, topic {sink.name!r} has it as {wanted}: {remedy}")


def _stored(rows: pa.RecordBatch, sink: Sink, first: int, now_ms: int) -> pa.RecordBatch:
    if rows.schema.equals(sink.schema, check_metadata=False) and all(field.nullable for field in sink.schema):
        stored = rows
    else:
        names = rows.schema.names
        columns = [
            _cast(rows.column(field.name), field, sink, first)
            if field.name in names
            else pa.nulls(rows.num_rows, field.type)
            for field in sink.schema
        ]
        stored = pa.record_batch(columns, schema=sink.schema)
    if not sink.typed and stored.column("timestamp").null_count:
        at = RAW_SCHEMA.get_field_index("timestamp")
        stored = stored.set_column(at, RAW_SCHEMA.field(at), stored.column(at).fill_null(now_ms))
    return stored


def _cast(column: Any, field: pa.Field, sink: Sink, first: int) -> Any:
    if not field.nullable and column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InvalidRecord(f"column {field.name!r} of topic {sink.name!r} takes no null; row {row} holds one")
    if column.type == field.type:
        return column
    if not sink.typed and field.name == "timestamp" and pa.types.is_timestamp(column.type):
        return to_milliseconds(column)
    try:
        return _plain(column).cast(field.type)
    except (pa.ArrowException, ValueError):
        plain = _plain(column)
        row = _first_bad(len(plain), lambda end: _casts(plain.slice(0, end), field.type))
        raise InvalidRecord(
            f"column {field.name!r} is {column.type}, topic {sink.name!r} has it as {field.type}, which cannot hold "
            f"{_shown(plain[row].as_py())} in row {first + row}"
        ) from None


def _plain(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _casts(column: Any, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except (pa.ArrowException, ValueError):
        return False
    return True


def _timestamps(stored: pa.RecordBatch, sink: Sink, now_ms: int) -> Any:
    name = sink.time if sink.typed else "timestamp"
    if name is None:
        return np.full(stored.num_rows, now_ms, np.int64)
    stamps = to_milliseconds(stored.column(name))
    return (stamps.fill_null(now_ms) if stamps.null_count else stamps).to_numpy()


def _refuse_future(stamps: Any, sink: Sink, now_ms: int, first: int) -> None:
    limit = now_ms + sink.config.max_timestamp_ahead_ms
    if len(stamps) and int(stamps.max()) > limit:
        row = int(np.flatnonzero(stamps > limit)[0])
        raise InvalidRecord(
            f"the timestamp in row {first + row} lies {int(stamps[row]) - now_ms:,} ms in the future; topic "
            f"{sink.name!r} takes up to {sink.config.max_timestamp_ahead_ms:,} (max_timestamp_ahead_ms)"
        )
