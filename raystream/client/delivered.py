"""The batch that a consumer hands to its user: consecutive records of one partition, as columns or one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

import pyarrow as pa

from raystream.client.columns import Piece, Shape, table
from raystream.client.dataframes import to_pandas, to_polars
from raystream.client.records import Deserializer, Run, runs
from raystream.types import Record, TopicPartition

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


class Batch:
    """Records of one partition. Immutable; its columns point into the memory that was fetched, without a copy.

    `len(batch)` is the number of records. `offsets` is the half-open range from the first record to the offset where
    the next batch begins; it may hold more offsets than there are records.
    """

    __slots__ = ("_deserializers", "_pieces", "_schema", "_shape", "high_watermark", "offsets", "partition")

    def __init__(
        self,
        shape: Shape,
        partition: int,
        pieces: Sequence[Piece],
        schema: pa.Schema,
        *,
        next_offset: int,
        high_watermark: int,
        deserializers: tuple[Deserializer | None, Deserializer | None] = (None, None),
    ) -> None:
        self._shape = shape
        self._pieces = pieces
        self._schema = schema
        self._deserializers = deserializers
        self.partition = partition
        self.offsets = range(pieces[0].base_offset if pieces else next_offset, next_offset)
        self.high_watermark = high_watermark

    @property
    def topic(self) -> str:
        return self._shape.topic

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self._shape.topic, self.partition)

    @property
    def caught_up(self) -> bool:
        """Whether this batch ended at the partition's high watermark when it was fetched."""
        return self.offsets.stop >= self.high_watermark

    def __len__(self) -> int:
        return sum(int(piece.rows.num_rows) for piece in self._pieces)

    def to_arrow(self, metadata: bool = False) -> pa.Table:
        """The records as a table: Kafka's columns for a raw topic, the user's own for a typed one.

        `metadata` adds `_partition, _offset, _timestamp` to a typed topic's columns.
        """
        return table(self._pieces, self._shape, self._schema, self.partition, metadata=metadata)

    def to_pandas(self, metadata: bool = False) -> pd.DataFrame:
        """The records as a pandas frame."""
        return to_pandas(self.to_arrow(metadata))

    def to_polars(self, metadata: bool = False) -> pl.DataFrame:
        """The records as a polars frame."""
        return to_polars(self.to_arrow(metadata))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def records(self) -> Iterator[Record]:
        """The records one by one, through the consumer's deserializers."""
        return chain.from_iterable(map(attrgetter("records"), self.runs()))

    def __iter__(self) -> Iterator[Record]:
        return self.records()

    def runs(self, deserialize: bool = True) -> Iterator[Run]:
        """The records in stretches that can be watched and cut short; for the consumer itself."""
        chosen = self._deserializers if deserialize else (None, None)
        return runs(self._pieces, self._shape, self.partition, *chosen)

    def contiguous(self) -> list[tuple[int, int]]:
        """The ranges of offsets in which each has a record."""
        ranges: list[tuple[int, int]] = []
        for piece in self._pieces:
            offsets = [(piece.base_offset, piece.next_offset)]
            if piece.offsets is not None:
                offsets = [(int(offset), int(offset) + 1) for offset in piece.offsets]
            for first, stop in offsets:
                begins_anew = not ranges or ranges[-1][1] != first
                ranges.append((first if begins_anew else ranges.pop()[0], stop))
        return ranges

    def between(self, offset: int, end: int | None = None) -> Batch:
        """The part of this batch from `offset` on, up to below `end`."""
        kept = []
        for piece in self._pieces:
            part = piece.between(offset, end)
            if part.rows.num_rows:
                kept.append(part)
        return self._with(kept, self.offsets.stop if end is None else end)

    def _with(self, pieces: Sequence[Piece], next_offset: int) -> Batch:
        make = partial(Batch, self._shape, self.partition, pieces, self._schema)
        return make(next_offset=next_offset, high_watermark=self.high_watermark, deserializers=self._deserializers)

    def __repr__(self) -> str:
        first, end = self.offsets.start, self.offsets.stop
        return f"<Batch {self.topic}-{self.partition}: {len(self):,} records, offsets {first:,} to {end:,}>"

    def _repr_html_(self) -> str:
        head = self._with(list(self._pieces[:1]), self.offsets.stop).to_arrow().slice(0, 10)
        return f"<p>{self.topic}-{self.partition}, {len(self):,} records</p>" + str(to_pandas(head).to_html())
