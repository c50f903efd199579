"""Arrow tables as pandas and polars frames. Both libraries are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raystream.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """The table as a pandas frame."""
    frame: pd.DataFrame = table.to_pandas()
    return frame


def to_polars(table: pa.Table) -> pl.DataFrame:
    """The table as a polars frame. Raises InvalidArgument where polars is not installed."""
    frame: pl.DataFrame = polars().from_arrow(table)
    return frame


def polars() -> Any:
    """The polars module. Raises InvalidArgument, with the remedy, where it is not installed."""
    try:
        import polars as pl
    except ImportError:
        raise InvalidArgument("polars is not installed: pip install 'raystream[polars]'") from None
    return pl
