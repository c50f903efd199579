"""`cluster.sql(…)`: a query over topics as tables, by DuckDB, which is imported when it is first used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from raystream.errors import InvalidArgument

if TYPE_CHECKING:
    import duckdb

    from raystream.client.reader import View


def query(text: str, view_of: Callable[[str], View]) -> duckdb.DuckDBPyRelation:
    """The query's result, over the views of the topics that it names. Raises InvalidArgument for what is no query, and
    where DuckDB is not installed; what `view_of` raises for a topic."""
    library = _duckdb()
    connection = library.connect()
    try:
        # Tables are topics, and nothing else that lies about: no variable of the caller, no file
        connection.execute("SET python_enable_replacements = false; SET enable_external_access = false")
        for name in sorted(_tables(library, text)):
            connection.register(name, view_of(name).to_arrow())
        found: duckdb.DuckDBPyRelation = connection.sql(text)
    except library.Error as error:
        raise InvalidArgument(f"the query cannot be answered: {_first_line(error)}") from None
    return found


def _tables(library: Any, text: str) -> set[str]:
    """The tables that a query names, but for those that it makes itself."""
    if not isinstance(text, str):
        raise InvalidArgument(f"a query is a str, not {type(text).__name__}")
    with library.connect() as connection:
        parsed = json.loads(connection.execute("SELECT json_serialize_sql(?)", [text]).fetchone()[0])
    if parsed["error"]:
        raise InvalidArgument(f"this is no query: {parsed['error_message']}")
    if len(parsed["statements"]) != 1:
        raise InvalidArgument(f"give one query, not {len(parsed['statements'])}")
    named = {node["table_name"] for node in _nodes(parsed) if node.get("type") == "BASE_TABLE"}
    own = {entry["key"] for node in _nodes(parsed) for entry in (node.get("cte_map") or {}).get("map", ())}
    return named - own


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(part)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise InvalidArgument("DuckDB is not installed: pip install 'raystream[sql]'") from None
    return duckdb
