"""What `raystream produce` reads: lines, or CSV, JSON lines, Parquet and Arrow files as record batches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raystream.errors import InvalidArgument, InvalidRecord

FORMATS = ("lines", "csv", "json", "parquet", "arrow")
_BY_SUFFIX = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_BLOCK_BYTES = 16 << 20
_PARQUET_ROWS = 1 << 16
_FOLLOW_POLL_S = 0.2


@dataclass(frozen=True)
class Frames:
    """A file as record batches of one schema. `rows` is None where the file does not say."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    rows: int | None = None


def format_of(path: str | None) -> str:
    """The format that a file's name states; stdin and other names are lines."""
    return "lines" if path is None else _BY_SUFFIX.get(Path(path).suffix.lower(), "lines")


def lines(path: str | None, *, follow: bool = False) -> Iterator[bytes]:
    """Lines without their ends, from a file or stdin. `follow` goes on when the file grows, until interrupted."""
    if path is None:
        for line in sys.stdin.buffer:
            yield line.rstrip(b"\r\n")
        return
    with Path(path).open("rb") as file:
        part = b""
        while True:
            piece = file.readline()
            part += piece
            if part.endswith(b"\n") or (part and not piece and not follow):
                yield part.rstrip(b"\r\n")
                part = b""
            elif not piece:
                if not follow:
                    return
                time.sleep(_FOLLOW_POLL_S)


@contextmanager
def frames(path: str | None, kind: str, known: pa.Schema | None) -> Iterator[Frames]:
    """Opens a file of columns. `known` is the schema of a topic that exists: CSV and JSON are read as it says.

    Raises InvalidRecord, inside the `with` too, where the file is not what its format says.
    """
    name = path or "stdin"
    try:
        if kind == "parquet":
            yield _parquet(path)
        elif kind == "arrow":
            yield _arrow(path)
        else:
            yield _text(path, kind, known)
    except pa.ArrowInvalid as error:
        raise InvalidRecord(f"{name} cannot be read as {kind}: {_first_line(error)}") from None
    except pa.ArrowKeyError as error:
        raise InvalidRecord(f"{name} does not have the topic's columns: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _input(path: str | None, *, seekable: bool = False) -> Any:
    if path is not None:
        return pa.memory_map(path) if seekable and Path(path).stat().st_size else pa.OSFile(path)
    return pa.BufferReader(sys.stdin.buffer.read()) if seekable else pa.PythonFile(sys.stdin.buffer, mode="r")


def _parquet(path: str | None) -> Frames:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(_input(path, seekable=True))
    return Frames(file.schema_arrow, file.iter_batches(_PARQUET_ROWS), file.metadata.num_rows)


def _arrow(path: str | None) -> Frames:
    source = _input(path, seekable=True)
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return Frames(stream.schema, iter(stream))
    return Frames(file.schema, (file.get_batch(i) for i in range(file.num_record_batches)))


def _text(path: str | None, kind: str, known: pa.Schema | None) -> Frames:
    source = _input(path)
    if kind == "csv":
        import pyarrow.csv as csv

        types = {field.name: field.type for field in known} if known is not None else None
        reader = csv.open_csv(
            source,
            read_options=csv.ReadOptions(block_size=_BLOCK_BYTES),
            convert_options=csv.ConvertOptions(column_types=types),
        )
    else:
        import pyarrow.json as json

        reader = json.open_json(
            source,
            read_options=json.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=json.ParseOptions(explicit_schema=known),
        )
    if not reader.schema.names:
        raise InvalidArgument(f"{path or 'stdin'} has no columns")
    schema = pa.schema([_typed(field) for field in reader.schema])
    return Frames(schema, (batch if batch.schema == schema else batch.cast(schema) for batch in reader))


def _typed(field: pa.Field) -> pa.Field:
    """A column that is empty throughout the first block has no type yet: text can hold whatever follows."""
    return field.with_type(pa.string()) if pa.types.is_null(field.type) else field
