"""Which records say only that their key is gone.

On a raw topic one with a key and without a value. On a typed topic a row with a key of which every other column is
null, the event-time column left aside; where there is no other column, no row is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def value_columns(names: Sequence[str], *, typed: bool, key: str, time: str | None) -> list[str]:
    """The columns that hold what is said of the key."""
    return [name for name in names if name not in (key, time)] if typed else ["value"]


def tombstones(rows: pa.Table, *, key: str, values: Sequence[str]) -> Any:
    """A mask over the rows; None: none of them."""
    if not values or any(rows.column(name).null_count == 0 for name in values):
        return None
    dead = pc.is_valid(rows.column(key))
    for name in values:
        dead = pc.and_(dead, pc.is_null(rows.column(name)))
    return dead
