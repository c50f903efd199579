"""`view.latest()`: of every key the last record, as a table: what compaction keeps, made of any keyed topic."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream.client.dataframes import to_pandas, to_polars
from raystream.errors import InvalidArgument
from raystream.tombstones import tombstones, value_columns

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from raystream.client.reader import View


class Columns(NamedTuple):
    """Where a topic's stored tables keep what is needed here."""

    key: str
    values: list[str]
    timestamp: str


def columns_of(names: list[str], *, topic: str, typed: bool, key: str | None, time: str | None) -> Columns:
    """Raises InvalidArgument for a typed topic without a key column."""
    if typed and key is None:
        raise InvalidArgument(f"topic {topic!r} has no key column: there is no latest row per key")
    column = key if typed and key is not None else "key"
    timestamp = "_timestamp" if typed else "timestamp"
    return Columns(column, value_columns(names, typed=typed, key=column, time=time), timestamp)


def last_of_each(rows: pa.Table, key: str) -> pa.Table:
    """The last row of each key, in the rows' order."""
    places = pa.table({"key": rows.column(key), "place": np.arange(rows.num_rows)})
    last = places.group_by("key", use_threads=False).aggregate([("place", "max")]).column("place_max")
    return rows.take(pa.array(np.sort(last.to_numpy())))


def latest_rows(partitions: Iterable[Iterable[pa.Table]], columns: Columns) -> pa.Table | None:
    """The last row of each key over the parts of each partition, without tombstones; None: there were no parts.

    A key that stands in several partitions, because some were added since, is the one with the greatest timestamp.
    Takes memory for the keys' last rows and one part.
    """
    kept: list[pa.Table] = []
    for parts in partitions:
        last: pa.Table | None = None
        for part in parts:
            keyed = part.filter(pc.is_valid(part.column(columns.key)))
            both = keyed if last is None else pa.concat_tables([last, keyed], promote_options="default")
            last = last_of_each(both, columns.key)
        if last is not None:
            kept.append(last)
    if not kept:
        return None
    rows = pa.concat_tables(kept, promote_options="default")
    if len(kept) > 1:
        order = pc.sort_indices(rows.column(columns.timestamp)).to_numpy()
        places = pa.table({columns.key: rows.column(columns.key).take(pa.array(order)), "place": order})
        rows = rows.take(pa.array(np.sort(last_of_each(places, columns.key).column("place").to_numpy())))
    dead = tombstones(rows, key=columns.key, values=columns.values)
    return rows if dead is None else rows.filter(pc.invert(dead))


class Latest:
    """Of every key the last record between a view's bounds: a table as the view's is, with one row per key.

    Records without a key do not count; a key whose last record is a tombstone is left out. The view's `filter` and
    `columns` apply to what is left, and its order stays. Reading it twice gives the same rows, as long as they are
    there.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        view.latest_columns()  # raises where the topic has no keys

    @property
    def topic(self) -> str:
        return self._view.topic

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of `to_arrow()`."""
        return self._view.schema

    def offsets(self) -> dict[int, int]:
        """Where it ends, {partition: offset}: as `start` of the next read it goes on where this one ended."""
        return self._view.offsets()

    def to_arrow(self, metadata: bool = False) -> pa.Table:
        """One row per key: Kafka's columns for a raw topic, the user's own for a typed one.

        `metadata` adds `_partition, _offset, _timestamp` to a typed topic's columns.
        """
        return self._view.latest_table(metadata=metadata)

    def to_pandas(self, metadata: bool = False) -> pd.DataFrame:
        """The rows as a pandas frame."""
        return to_pandas(self.to_arrow(metadata))

    def to_polars(self, metadata: bool = False) -> pl.DataFrame:
        """The rows as a polars frame."""
        return to_polars(self.to_arrow(metadata))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def count(self) -> int:
        """The number of keys. Reads the view."""
        return int(self.to_arrow().num_rows)

    def head(self, n: int = 10) -> pd.DataFrame:
        """The first `n` rows as a pandas frame."""
        return to_pandas(self.to_arrow().slice(0, n))

    def tail(self, n: int = 10) -> pd.DataFrame:
        """The last `n` rows as a pandas frame."""
        rows = self.to_arrow()
        return to_pandas(rows.slice(max(rows.num_rows - n, 0)))

    def __repr__(self) -> str:
        return f"<the latest per key of {self._view!r}>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>" + str(self.head(10).to_html())
