"""`cluster.read(…)`: a bounded read of a topic. Its bounds are fixed when it is made; nothing is read before asked."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from raystream.client.asof import Joined, Strategy, Tolerance, join_asof
from raystream.client.bounded import Range, counted, decode_runs, fetch_range
from raystream.client.columns import METADATA_FIELDS, Shape, append_times, check_columns, read_schema, stored_table
from raystream.client.dataframes import polars, to_pandas, to_polars
from raystream.client.fetched import Fetched
from raystream.client.latest import Columns, Latest, columns_of, latest_rows
from raystream.client.loop import BackgroundLoop
from raystream.client.positions import Place, compacted, parse, partitions_of, resolve
from raystream.client.records import runs as record_runs
from raystream.client.routing import Routing
from raystream.errors import InvalidArgument, OffsetOutOfRange
from raystream.schema import APPEND_TIME, RAW_SCHEMA, RESERVED_COLUMNS, restore
from raystream.types import EARLIEST, LATEST, Position, Record, TopicPartition

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Progress = Callable[[int, int], Any]
"""`progress(rows_done, rows_total)`, called from the reading thread as parts of a long read arrive."""


VIEW_OPTIONS: Final = ("order", "check_crcs", "mmap", "progress", "isolation")
"""What a view takes beside its bounds, columns and filter."""


class View:
    """Records of a topic between two positions, as tables and frames.

    The bounds are offsets per partition, fixed when the view is made: reading it twice gives the same rows, as long as
    they are not deleted (then OffsetOutOfRange). Rows come by partition, then offset; `order="time"` merges the
    partitions by timestamp. On the leader's own node the columns point into the log's files, without a copy, unless
    `mmap=False`. Every batch's CRC is checked unless `check_crcs=False`; a wrong one raises CorruptBatch.

    What is read is what is committed (`isolation="read_uncommitted"`: everything), up to the first transaction that is
    open when the view is made.

    `columns` projects. `filter` is a pyarrow compute expression or a polars expression over the topic's columns (and
    `_partition, _offset, _timestamp` on a typed topic), applied to what was read.
    """

    def __init__(
        self,
        routing: Routing,
        loop: BackgroundLoop,
        topic: str,
        *,
        start: Position = EARLIEST,
        end: Position = LATEST,
        columns: Sequence[str] | None = None,
        filter: Any = None,
        order: Literal["partition", "time"] = "partition",
        check_crcs: bool = True,
        mmap: bool = True,
        progress: Progress | None = None,
        isolation: Literal["read_committed", "read_uncommitted"] = "read_committed",
    ) -> None:
        if isolation not in ("read_committed", "read_uncommitted"):
            raise InvalidArgument(f"isolation={isolation!r} is neither 'read_committed' nor 'read_uncommitted'")
        self._committed = isolation == "read_committed"
        if order not in ("partition", "time"):
            raise InvalidArgument(f"order={order!r} is neither 'partition' nor 'time'")
        self._routing = routing
        self._loop = loop
        self.topic = topic
        self._order = order
        self._check_crcs = check_crcs
        self._mmap = mmap
        self._progress = progress
        self._filter = filter
        self._append_time = False
        now_ms = routing.clock.now_ms()
        begin = parse(start, (topic,), now_ms=now_ms, what="start")
        stop = parse(end, (topic,), now_ms=now_ms, what="end")
        self._ranges: list[Range] = []
        loop.run(self._freeze(begin, stop))
        if columns is not None:
            known = pa.schema([*read_schema(self._shape, self._stored), *self._metadata_fields()])
            columns = check_columns(columns, known, topic)
        self._columns = columns

    async def _freeze(self, start: Place, end: Place) -> None:
        metadata = await self._routing.topic(self.topic)
        self._topic_id, self._schema_version = metadata.topic_id, max(len(metadata.schemas), 1)
        self._shape = Shape.of(metadata)
        self._stored = self._routing.schema(metadata, len(metadata.schemas)) if metadata.typed else RAW_SCHEMA
        partitions = await partitions_of(self._routing, self.topic)
        earliest, latest, begins, ends = await asyncio.gather(
            resolve(self._routing, Place(word=EARLIEST), partitions),
            resolve(self._routing, Place(word=LATEST), partitions, committed=self._committed),
            resolve(self._routing, start, partitions, unnamed=EARLIEST, committed=self._committed),
            resolve(self._routing, end, partitions, unnamed=LATEST, committed=self._committed),
        )
        for p in partitions:
            if begins[p] < earliest[p]:
                raise OffsetOutOfRange(
                    f"{p} begins at offset {earliest[p]} now, so {begins[p]} cannot be read; "
                    "start='earliest' reads what is there"
                )
            stop = min(ends[p], latest[p])
            self._ranges.append(Range(p, min(begins[p], stop), stop, self._committed))

    def _metadata_fields(self) -> tuple[pa.Field, ...]:
        return METADATA_FIELDS if self._shape.typed else ()

    # What it is -----------------------------------------------------------------------------------------------------

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of `to_arrow()`."""
        seen = read_schema(self._shape, self._stored)
        if self._columns is None:
            return seen
        known = pa.schema([*seen, *self._metadata_fields()])
        return pa.schema([known.field(name) for name in self._columns])

    def offsets(self) -> dict[int, int]:
        """Where the view ends: {partition: offset}. As `start` of the next read it goes on where this one ended."""
        return {r.partition.partition: r.end for r in self._ranges}

    def ranges(self) -> dict[int, range]:
        """The half-open offset range of each partition."""
        return {r.partition.partition: range(r.start, r.end) for r in self._ranges}

    def count(self) -> int:
        """The number of rows. Read from the bounds alone, except with a filter, and where compaction has taken rows
        out or transactions have ended: there from the batches' headers."""
        if self._filter is None:
            gaps = self._loop.run(compacted(self._routing, [wanted.partition for wanted in self._ranges]))
            return sum(self._count(wanted) if wanted.partition in gaps else len(wanted) for wanted in self._ranges)
        return sum(int(part.num_rows) for part in self._filtered(self._ranges, metadata=False))

    def _count(self, wanted: Range) -> int:
        return sum(counted(run) for runs in self._parts(wanted) for run in runs)

    def __repr__(self) -> str:
        spans = ", ".join(f"{r.partition.partition}: {r.start:,} to {r.end:,}" for r in self._ranges)
        return f"<View of {self.topic!r}, offsets by partition {{{spans}}}>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>" + str(self.head(10).to_html())

    # Tables and frames ----------------------------------------------------------------------------------------------

    def to_arrow(self, metadata: bool = False) -> pa.Table:
        """All rows as a table: Kafka's columns for a raw topic, the user's own for a typed one.

        `metadata` adds `_partition, _offset, _timestamp` to a typed topic's columns.
        """
        return self._table(self._ranges, metadata=metadata)

    def to_pandas(self, metadata: bool = False) -> pd.DataFrame:
        """All rows as a pandas frame."""
        return to_pandas(self.to_arrow(metadata))

    def to_polars(self, metadata: bool = False) -> pl.DataFrame:
        """All rows as a polars frame."""
        return to_polars(self.to_arrow(metadata))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def lazy(self) -> pl.LazyFrame:
        """A polars LazyFrame over the rows, which reads only when it is collected, and only the columns it needs."""
        library = polars()

        def source(
            with_columns: list[str] | None, predicate: Any, n_rows: int | None, batch_size: int | None
        ) -> Iterator[pl.DataFrame]:
            left = sys.maxsize if n_rows is None else n_rows
            for part in self._filtered(self._ranges, metadata=False):
                if left <= 0:
                    return
                frame = to_polars(self._finished(part, metadata=False))
                frame = frame.select(with_columns) if with_columns is not None and predicate is None else frame
                frame = frame.head(left)
                left -= frame.height
                if predicate is not None:
                    frame = frame.filter(predicate)
                    frame = frame if with_columns is None else frame.select(with_columns)
                yield frame

        shown = to_polars(self.schema.empty_table()).schema
        frame: pl.LazyFrame = library.io.plugins.register_io_source(source, schema=shown)
        return frame

    def head(self, n: int = 10) -> pd.DataFrame:
        """The first `n` rows as a pandas frame, for looking at; reads no more than it needs."""
        return to_pandas(self._end_rows(n, first=True))

    def tail(self, n: int = 10) -> pd.DataFrame:
        """The last `n` rows as a pandas frame."""
        return to_pandas(self._end_rows(n, first=False))

    def tables(self) -> Iterator[pa.Table]:
        """The rows part by part, for reads that do not fit into memory; `order="time"` holds within a part only."""
        for part in self._filtered(self._ranges, metadata=False):
            yield self._finished(part, metadata=False)

    def records(self) -> Iterator[Record]:
        """The rows one by one as records (without `columns`, `filter` and `order`), read part by part."""
        for wanted in self._ranges:
            for fetched in self._parts(wanted):
                for part in decode_runs([(wanted.partition, run) for run in fetched], self._check_crcs):
                    for run in record_runs(part.pieces, self._shape, wanted.partition.partition):
                        yield from run.records

    def _end_rows(self, n: int, *, first: bool) -> pa.Table:
        if n < 0:
            raise InvalidArgument(f"n={n}: give 0 or more")
        if self._order == "time":
            rows = self.to_arrow()
            return rows.slice(0, n) if first else rows.slice(max(rows.num_rows - n, 0))
        if self._filter is None:
            return self._narrow_table(n, first=first)
        kept: deque[pa.Table] = deque()
        held = 0
        for part in self._filtered(self._ranges, metadata=False):
            kept.append(part)
            held += part.num_rows
            if first and held >= n:
                break
            while not first and held - kept[0].num_rows >= n:
                held -= kept.popleft().num_rows
        rows = self._finished(self._joined(list(kept), metadata=False), metadata=False)
        return rows.slice(0, n) if first else rows.slice(max(rows.num_rows - n, 0))

    def _narrow_table(self, n: int, *, first: bool) -> pa.Table:
        """Where compaction has taken rows out, it takes more offsets than rows."""
        wanted = n
        while True:
            ranges = _narrowed(self._ranges, wanted, first=first)
            rows = self._table(ranges, metadata=False)
            if rows.num_rows >= n or sum(map(len, ranges)) == sum(map(len, self._ranges)):
                return rows.slice(0, n) if first else rows.slice(max(rows.num_rows - n, 0))
            wanted *= 4

    # The latest per key ---------------------------------------------------------------------------------------------

    def latest(self) -> Latest:
        """Of every key the last record between the view's bounds. Raises InvalidArgument where the topic is typed and
        has no key column."""
        return Latest(self)

    def latest_columns(self) -> Columns:
        """For `Latest`."""
        shape = self._shape
        return columns_of(self._stored.names, topic=self.topic, typed=shape.typed, key=shape.key, time=shape.time)

    def latest_table(self, *, metadata: bool) -> pa.Table:
        """For `Latest`: its table."""
        whole = copy(self)
        whole._filter, whole._columns, whole._order = None, None, "partition"
        parts = (whole._filtered([wanted], metadata=True) for wanted in self._ranges)
        rows = latest_rows(parts, self.latest_columns())
        if rows is None:
            rows = stored_table([], self._shape, self._stored, 0, metadata=self._shape.typed)
        return self._finished(rows if self._filter is None else _apply(self._filter, rows), metadata=metadata)

    # Joins ----------------------------------------------------------------------------------------------------------

    def join_asof(
        self,
        right: View,
        *,
        on: str | None = None,
        left_on: str | None = None,
        right_on: str | None = None,
        by: str | Sequence[str] | None = None,
        by_left: str | Sequence[str] | None = None,
        by_right: str | Sequence[str] | None = None,
        known_at: str | None = None,
        tolerance: Tolerance = None,
        strategy: Strategy = "backward",
        allow_exact_matches: bool = True,
        suffix: str = "_right",
    ) -> Joined:
        """To each row of this view the last row of `right` that was there before it, by polars' names and rules
        (https://docs.pola.rs/api/python/stable/reference/dataframe/api/polars.DataFrame.join_asof.html).

        `on` is a time or a number; where none is named it is each topic's time column, or the records' timestamp. Times
        of different precision and zone are compared as instants; those without a zone are UTC. `by`: columns that have
        to be equal. `known_at` names the column of `right` that says when its row became known, or "_append_time", when
        it was appended to the log: what was not known at the moment of a row is not joined to it, however early its own
        time is; of what was known the latest is. `tolerance` (a timedelta, a number or polars' "10m") is how long
        before. Columns of `right` that this view has, too, get the suffix; its `by` columns are left out.

        The rows keep this view's order. Both views are read into memory. Raises InvalidArgument.
        """
        return join_asof(
            self,
            right,
            on=on,
            left_on=left_on,
            right_on=right_on,
            by=by,
            by_left=by_left,
            by_right=by_right,
            known_at=known_at,
            tolerance=tolerance,
            strategy=strategy,
            allow_exact_matches=allow_exact_matches,
            suffix=suffix,
        )

    def manifest(self) -> dict[str, Any]:
        """Which rows these are, as plain values: topic and its id, schema version, offsets by partition, and what is
        left out of them."""
        return {
            "topic": self.topic,
            "topic_id": self._topic_id,
            "schema": self._schema_version,
            "offsets": {str(r.partition.partition): [r.start, r.end] for r in self._ranges},
            "isolation": "read_committed" if self._committed else "read_uncommitted",
            "columns": None if self._columns is None else list(self._columns),
            "filter": None if self._filter is None else str(self._filter),
        }

    def times(self) -> tuple[str, frozenset[str]]:
        """The column by which rows are in time, and those of the log's own that are milliseconds since the epoch."""
        if not self._shape.typed:
            return "timestamp", frozenset(("timestamp", APPEND_TIME))
        return self._shape.time or "_timestamp", frozenset(("_timestamp", APPEND_TIME))

    def known_columns(self) -> list[str]:
        """What `with_columns` takes."""
        return [*read_schema(self._shape, self._stored, metadata=self._shape.typed).names, APPEND_TIME]

    def with_columns(self, names: Iterable[str]) -> pa.Table:
        """The rows with the view's columns, and those of its topic and its log that are named beside them."""
        whole = copy(self)
        columns = self.schema.names
        whole._columns = [*columns, *dict.fromkeys(name for name in names if name not in columns)]
        whole._append_time = APPEND_TIME in whole._columns
        return whole.to_arrow()

    # Reading --------------------------------------------------------------------------------------------------------

    def _table(self, ranges: list[Range], *, metadata: bool) -> pa.Table:
        total = sum(map(len, ranges))
        tables = []
        done = 0
        for part in self._decoded(self._arriving(ranges), metadata=metadata):
            tables.append(part)
            done += part.num_rows
            if self._progress is not None:
                self._progress(done, total)
        return self._finished(self._joined(tables, metadata=metadata), metadata=metadata)

    def _arriving(self, ranges: list[Range]) -> Iterator[tuple[TopicPartition, Fetched]]:
        """All ranges, fetched at the same time and given out in order."""

        async def one(wanted: Range) -> list[Fetched]:
            parts = fetch_range(self._routing, wanted, mmap=self._mmap, whole=True)
            return [run async for runs in parts for run in runs]

        fetching = [self._loop.submit(one(wanted)) for wanted in ranges]
        try:
            for wanted, future in zip(ranges, fetching, strict=True):
                for run in self._loop.wait(future):
                    yield wanted.partition, run
        finally:
            for future in fetching:
                future.cancel()

    def _parts(self, wanted: Range) -> Iterator[list[Fetched]]:
        """The range part by part, so that a long read need not fit into memory."""
        parts = fetch_range(self._routing, wanted, mmap=self._mmap, whole=False)

        async def following() -> list[Fetched] | None:
            return await anext(parts, None)

        while (runs := self._loop.run(following())) is not None:
            yield runs

    def _filtered(self, ranges: list[Range], *, metadata: bool) -> Iterator[pa.Table]:
        total = sum(map(len, ranges))
        done = 0
        for wanted in ranges:
            for fetched in self._parts(wanted):
                yield from self._decoded([(wanted.partition, run) for run in fetched], metadata=metadata)
                done += sum(run.next_offset - run.first_offset for run in fetched)
                if self._progress is not None:
                    self._progress(done, total)

    def _decoded(self, runs: Iterable[tuple[TopicPartition, Fetched]], *, metadata: bool) -> Iterator[pa.Table]:
        """Stored tables, filtered. They have the metadata columns where somebody needs them."""
        with_metadata = self._needs_metadata(metadata)
        keep = self._kept()
        for each in decode_runs(runs, self._check_crcs):
            of, schema = each.partition.partition, each.run.schema
            part = stored_table(each.pieces, self._shape, schema, of, metadata=with_metadata, columns=keep)
            if self._append_time:
                part = part.append_column(APPEND_TIME, append_times(each.pieces))
            yield part if self._filter is None else _apply(self._filter, part)

    def _needs_metadata(self, metadata: bool) -> bool:
        if not self._shape.typed:
            return False
        named = self._columns is not None and any(name in RESERVED_COLUMNS for name in self._columns)
        return metadata or named or self._filter is not None or self._order == "time"

    def _kept(self) -> list[str] | None:
        """The columns that are needed of what is stored; None: all."""
        if self._filter is not None or self._order == "time" or self._columns is None:
            return None
        return [name for name in self._columns if name != APPEND_TIME]

    def _joined(self, tables: list[pa.Table], *, metadata: bool) -> pa.Table:
        if not tables:
            with_metadata = self._needs_metadata(metadata)
            empty = stored_table([], self._shape, self._stored, 0, metadata=with_metadata, columns=self._kept())
            return empty.append_column(APPEND_TIME, append_times([])) if self._append_time else empty
        return pa.concat_tables(tables, promote_options="default")

    def _finished(self, stored: pa.Table, *, metadata: bool) -> pa.Table:
        """In order, with the columns asked for, dictionaries given back."""
        if self._order == "time":
            by = "_timestamp" if self._shape.typed else "timestamp"
            stored = stored.take(pc.sort_indices(stored.column(by)))
        names = list(self._columns) if self._columns is not None else self._plain_names(stored)
        if metadata and self._shape.typed:
            names += [name for name in RESERVED_COLUMNS if name not in names]
        return restore(stored.select(names))

    def _plain_names(self, stored: pa.Table) -> list[str]:
        return [name for name in stored.column_names if name not in RESERVED_COLUMNS]


def _apply(condition: Any, rows: pa.Table) -> pa.Table:
    if isinstance(condition, pc.Expression):
        return rows.filter(condition)
    if isinstance(condition, polars().Expr):
        mask = to_polars(rows).select(condition.alias("mask"))["mask"].to_arrow()
        return rows.filter(mask)
    raise InvalidArgument(f"filter={condition!r} is neither a pyarrow compute expression nor a polars expression")


def _narrowed(ranges: list[Range], n: int, *, first: bool) -> list[Range]:
    """The ranges that hold the first or the last `n` rows."""
    left = n
    kept = []
    for wanted in ranges if first else reversed(ranges):
        rows = min(len(wanted), left)
        left -= rows
        start = wanted.start if first else wanted.end - rows
        kept.append(replace(wanted, start=start, end=start + rows))
    return kept if first else kept[::-1]
