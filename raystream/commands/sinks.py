"""Where `raystream consume` puts rows: JSON lines, CSV, Parquet, or a table on the terminal."""

from __future__ import annotations

import datetime as dt
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape
from rich.table import Table

from raystream.commands.shell import Shell, count_of, plain, to_json
from raystream.errors import InvalidArgument
from raystream.schema import RAW_READ_SCHEMA

FORMATS = ("json", "csv", "table", "parquet")
_BY_SUFFIX = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
TABLE_ROWS = 100
_JSON_ROWS = 4096


class Sink(Protocol):
    """Takes tables of one schema, one after the other."""

    def write(self, rows: pa.Table) -> None: ...

    def flush(self) -> None:
        """What was written is where a reader sees it."""

    def close(self) -> None: ...


def format_for(shell: Shell) -> str:
    """What was asked for; else by the output's name; else a table for people and JSON lines for programs."""
    args = shell.args
    if args.format:
        return str(args.format)
    if args.output and args.output != "-":
        suffix = Path(args.output).suffix.lower()
        if suffix and suffix not in _BY_SUFFIX:
            known = ", ".join(_BY_SUFFIX)
            args.usage_error(f"argument -o: {suffix} names no format; give --format, or a name that ends in {known}")
        return _BY_SUFFIX.get(suffix, "json")
    return "table" if shell.out.is_terminal and not shell.json and not args.follow else "json"


@contextmanager
def opened(shell: Shell, kind: str, topic: str) -> Iterator[Sink]:
    """The sink for `kind` on `--output` or stdout. What was written stands there however the block ends."""
    path = None if shell.args.output in (None, "-") else Path(shell.args.output)
    if kind == "parquet" and path is None and sys.stdout.isatty():
        raise InvalidArgument("Parquet is no text: give -o FILE")
    try:
        stream: IO[bytes] = sys.stdout.buffer if path is None else path.open("wb")
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror}") from None
    sink: Sink
    if kind == "json":
        sink = JsonSink(stream)
    elif kind == "csv":
        sink = CsvSink(stream)
    elif kind == "parquet":
        sink = ParquetSink(stream)
    else:
        sink = TableSink(shell, topic)
    try:
        yield sink
    finally:
        sink.close()
        stream.flush()
        if path is not None:
            stream.close()


class JsonSink:
    """An object a line. Raw records' keys and values are text, or `{"base64": …}` where they are no UTF-8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, rows: pa.Table) -> None:
        for batch in rows.to_batches(_JSON_ROWS):
            lines = (to_json(row) for row in _dicts(batch))
            self._stream.write("".join(f"{line}\n" for line in lines).encode())

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        pass


class CsvSink:
    """A header line, then a line a row. What CSV cannot hold stands there as JSON."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._head = True

    def write(self, rows: pa.Table) -> None:
        import pyarrow.csv as csv

        columns = {name: _for_csv(rows.column(name)) for name in rows.column_names}
        text = io.BytesIO()
        csv.write_csv(pa.table(columns), text, csv.WriteOptions(include_header=self._head))
        self._head = False
        self._stream.write(text.getvalue())

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        pass


def _for_csv(column: pa.ChunkedArray) -> Any:
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.array([_as_text(value) for value in column.to_pylist()], pa.string())
    if pa.types.is_dictionary(kind):
        return pc.cast(column, kind.value_type)
    return column


def _as_text(value: Any) -> str | None:
    found = plain(value)
    return found if found is None or isinstance(found, str) else json.dumps(found, ensure_ascii=False)


class ParquetSink:
    """One Parquet file, complete when closed."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._writer: Any = None

    def write(self, rows: pa.Table) -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, rows.schema)
        self._writer.write_table(rows)

    def flush(self) -> None:
        pass  # a row group is readable only once the footer stands behind it

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class TableSink:
    """The first rows as a table for people; how many more there were is said below it."""

    def __init__(self, shell: Shell, topic: str) -> None:
        self._shell = shell
        self._topic = topic
        self._rows: list[dict[str, Any]] = []
        self._hidden = 0
        self._limit = shell.args.max or shell.args.tail or TABLE_ROWS

    def write(self, rows: pa.Table) -> None:
        room = max(self._limit - len(self._rows), 0)
        shown = _dicts(rows.slice(0, room))
        self._rows += map(_raw_for_people, shown) if rows.column_names == _RAW_NAMES else shown
        self._hidden += max(rows.num_rows - room, 0)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        shell = self._shell
        if not self._rows:
            shell.note(f"{self._topic} has no records there")
            return
        names = [name for name in self._rows[0] if name != "headers" or any(row["headers"] for row in self._rows)]
        shown = self._that_fit(names)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in shown:
            numeric = all(isinstance(row[name], (int, float)) or row[name] is None for row in self._rows)
            table.add_column(name, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
        for row in self._rows:
            table.add_row(*(escape(_shown(row[name])) for name in shown))
        shell.out.print(table)
        if len(shown) < len(names):
            shell.note(f"{count_of(len(names) - len(shown), 'more column')}: --format json shows them")
        if self._hidden:
            shell.note(f"{count_of(self._hidden, 'more record')}: --max N or --format json shows them")

    def _that_fit(self, names: list[str]) -> list[str]:
        """As many columns as the terminal has room for; a long value alone takes no more than a third of it."""
        width = self._shell.out.width
        room = width
        shown: list[str] = []
        for name in names:
            widest = max(len(name), *(len(_shown(row[name])) for row in self._rows))
            room -= min(widest, max(width // 3, 12)) + 2
            if room < -2 and shown:
                break
            shown.append(name)
        return shown


def _shown(value: Any) -> str:
    """A value on one line; what a terminal would obey stands there in Python's spelling."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


_RAW_NAMES = RAW_READ_SCHEMA.names


def _raw_for_people(row: dict[str, Any]) -> dict[str, Any]:
    """Without what is the same on every row, with the time as people read it."""
    moment = dt.datetime.fromtimestamp(row["timestamp"] / 1000, dt.UTC)
    return {
        "partition": row["partition"],
        "offset": row["offset"],
        "timestamp": moment.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00"),
        "key": row["key"],
        "value": row["value"],
        "headers": "  ".join(f"{name}={value}" for name, value in row["headers"].items()),
    }


def _dicts(rows: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows in terms of JSON's types; a raw topic's headers become an object."""
    found: list[dict[str, Any]] = [plain(row) for row in rows.to_pylist()]
    if rows.schema.names == _RAW_NAMES:
        for row in found:
            row["headers"] = dict(row["headers"] or ())
    return found
