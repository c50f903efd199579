"""Reading as coroutines: what `raystream.aio` gives for views and tables."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from raystream.client.asof import Joined
    from raystream.client.reader import View as SyncView
    from raystream.client.table import Change
    from raystream.client.table import Table as SyncTable

P = ParamSpec("P")
T = TypeVar("T")

THREADS: Final = ThreadPoolExecutor(32, thread_name_prefix="raystream-aio")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the call returns or raises; it runs in a thread."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, functools.partial(call, *args, **kwargs))


class View:
    """`cluster.read(…)` with coroutines."""

    def __init__(self, view: SyncView) -> None:
        self.sync = view

    @property
    def schema(self) -> pa.Schema:
        """As `schema` of the view."""
        return self.sync.schema

    def offsets(self) -> dict[int, int]:
        """As `offsets` of the view."""
        return self.sync.offsets()

    def lazy(self) -> pl.LazyFrame:
        """As `lazy` of the view."""
        return self.sync.lazy()

    async def to_arrow(self, metadata: bool = False) -> pa.Table:
        """As `to_arrow` of the view."""
        return await in_thread(self.sync.to_arrow, metadata)

    async def to_pandas(self, metadata: bool = False) -> pd.DataFrame:
        """As `to_pandas` of the view."""
        return await in_thread(self.sync.to_pandas, metadata)

    async def to_polars(self, metadata: bool = False) -> pl.DataFrame:
        """As `to_polars` of the view."""
        return await in_thread(self.sync.to_polars, metadata)

    async def join_asof(self, right: View, **how: Any) -> Joined:
        """As `join_asof` of the view."""
        return await in_thread(self.sync.join_asof, right.sync, **how)

    async def latest(self) -> pa.Table:
        """The table that `latest()` of the view gives: of every key the last row."""
        return await in_thread(lambda: self.sync.latest().to_arrow())

    async def count(self) -> int:
        """As `count` of the view."""
        return await in_thread(self.sync.count)

    async def head(self, n: int = 10) -> pd.DataFrame:
        """As `head` of the view."""
        return await in_thread(self.sync.head, n)

    async def tail(self, n: int = 10) -> pd.DataFrame:
        """As `tail` of the view."""
        return await in_thread(self.sync.tail, n)


class Table:
    """`raystream`'s table with coroutines. What is there is looked up at once: `table.sync` is the mapping."""

    def __init__(self, table: SyncTable) -> None:
        self.sync = table

    async def wait_until_caught_up(self, timeout: float | None = 30.0) -> None:
        """As `wait_until_caught_up` of the table."""
        await in_thread(self.sync.wait_until_caught_up, timeout)

    async def watch(self) -> AsyncIterator[Change]:
        """As `watch` of the table: `async for change in table.watch()`. The first step begins to watch."""
        with self.sync.watch() as changes:
            while not changes.ended:
                change = await in_thread(changes.get, 0.2)
                if change is not None:
                    yield change

    async def close(self) -> None:
        """As `close` of the table."""
        await in_thread(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
