"""Batches that compaction wrote: their rows' offsets and timestamps stand in two columns behind the topic's own.

The header's range covers the offsets of removed rows as well, up to the next batch's first: offsets leave no gap
between batches, and a range of which nothing is left is a batch without rows. This file knows the two columns, for
whoever writes or reads such a batch; readers of a topic do not see them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from raystream.batch import BatchHeader, Bytes, decode
from raystream.errors import CorruptBatch

OFFSET_COLUMN: Final = "_offset"
TIMESTAMP_COLUMN: Final = "_timestamp"
_COLUMNS: Final = (
    pa.field(OFFSET_COLUMN, pa.int64(), nullable=False),
    pa.field(TIMESTAMP_COLUMN, pa.int64(), nullable=False),
)


class Rows(NamedTuple):
    """A batch's rows in the topic's schema. Of an explicit batch with their offsets, an int64 numpy array, and their
    timestamps, an int64 Arrow array of milliseconds; of any other None: they follow each other from the base offset."""

    rows: pa.RecordBatch
    offsets: Any = None
    timestamps: Any = None


@lru_cache(maxsize=256)
def explicit_schema(schema: pa.Schema) -> pa.Schema:
    """The Arrow schema of explicit batches of a topic whose stored schema this is."""
    return pa.schema([*schema, *_COLUMNS])


def is_explicit_schema(schema: pa.Schema) -> bool:
    """Whether a segment with this schema holds explicit batches: no topic may have such columns itself."""
    return bool(schema.names[-2:] == [OFFSET_COLUMN, TIMESTAMP_COLUMN])


def rows_of(message: Bytes, header: BatchHeader, schema: pa.Schema) -> Rows:
    """Decodes a batch of a topic with the stored schema `schema`. Raises CorruptBatch, also where rows and header do
    not fit each other."""
    if not header.is_explicit:
        rows = decode(message, schema)
        if rows.num_rows != header.last_offset_delta + 1:
            raise CorruptBatch(
                f"the batch at offset {header.base_offset} holds {rows.num_rows} rows, its header says "
                f"{header.last_offset_delta + 1}"
            )
        return Rows(rows)
    whole = decode(message, explicit_schema(schema))
    own = len(schema)
    offsets = whole.column(own).to_numpy()
    if len(offsets) and not (
        header.base_offset <= offsets[0]
        and offsets[-1] < header.next_offset
        and (len(offsets) == 1 or bool(np.all(np.diff(offsets) > 0)))
    ):
        raise CorruptBatch(f"the batch at offset {header.base_offset} holds rows with other offsets than it may")
    rows = pa.RecordBatch.from_arrays(whole.columns[:own], schema=schema)
    return Rows(rows, offsets, whole.column(own + 1))
