"""`view.latest()`: one row per key."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raystream.errors import InvalidArgument
from tests.fakes.log import FakeCluster, raw_rows

SCHEMA = pa.schema([("id", pa.string()), ("x", pa.int64()), ("y", pa.string())])


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t", 2)
        yield cluster


Pairs = list[tuple[bytes | None, bytes | None]]


def add(cluster: FakeCluster, rows: Pairs, partition: int = 0, at: int = 1_000) -> None:
    keys, values = zip(*rows, strict=True)
    times = range(at, at + len(rows))
    cluster.append("t", raw_rows(values, keys=keys, timestamps=times), partition)


def rows_of(table: pa.Table) -> list[tuple[bytes, bytes]]:
    return list(zip(table.column("key").to_pylist(), table.column("value").to_pylist(), strict=True))


def test_the_last_record_of_each_key_in_the_views_order(cluster: FakeCluster) -> None:
    add(cluster, [(b"a", b"1"), (b"b", b"1"), (None, b"?"), (b"c", b"1")])
    add(cluster, [(b"a", b"2"), (b"c", None)])
    add(cluster, [(b"z", b"9")], 1)
    latest = cluster.view().latest()
    assert rows_of(latest.to_arrow()) == [(b"b", b"1"), (b"a", b"2"), (b"z", b"9")]
    assert latest.to_arrow().schema == latest.schema
    assert latest.count() == 3 and latest.offsets() == {0: 6, 1: 1}
    assert latest.head(1)["value"].tolist() == [b"1"] and latest.tail(1)["value"].tolist() == [b"9"]
    assert isinstance(latest.to_polars(), pl.DataFrame)
    assert latest.to_polars()["offset"].to_list() == [1, 4, 0]
    assert pa.table(latest).num_rows == len(latest.to_pandas()) == 3
    assert "latest per key" in repr(latest) and "<p>" in latest._repr_html_()


def test_a_key_that_moved_to_another_partition_is_the_younger_one(cluster: FakeCluster) -> None:
    add(cluster, [(b"a", b"new"), (b"b", b"old")], 0, at=5_000)
    add(cluster, [(b"a", b"old"), (b"b", b"new")], 1, at=4_999)
    add(cluster, [(b"b", b"newer")], 1, at=6_000)
    assert rows_of(cluster.view().latest().to_arrow()) == [(b"a", b"new"), (b"b", b"newer")]


def test_bounds_filter_and_columns(cluster: FakeCluster) -> None:
    add(cluster, [(b"a", b"1"), (b"b", b"1"), (b"a", b"2")])
    assert rows_of(cluster.view(end={0: 2}).latest().to_arrow()) == [(b"a", b"1"), (b"b", b"1")]
    old = cluster.view(filter=pc.field("value") == b"1").latest()
    assert rows_of(old.to_arrow()) == [(b"b", b"1")]
    assert cluster.view(columns=["value"]).latest().to_arrow().to_pydict() == {"value": [b"1", b"2"]}


def test_typed_topics_go_by_their_key_column(cluster: FakeCluster) -> None:
    cluster.create("u", schema=SCHEMA, key="id")
    for ids, xs, ys in ((["a", "b", "c"], [1, 2, 3], ["p", "q", "r"]), (["a", "b"], [4, None], [None, None])):
        cluster.append("u", pa.record_batch([ids, xs, ys], schema=SCHEMA))
    latest = cluster.view("u").latest()
    assert latest.to_arrow().to_pydict() == {"id": ["c", "a"], "x": [3, 4], "y": ["r", None]}
    assert latest.to_arrow(metadata=True).column("_offset").to_pylist() == [2, 3]
    cluster.create("w", schema=SCHEMA)
    with pytest.raises(InvalidArgument, match="topic 'w' has no key column"):
        cluster.view("w").latest()


def test_an_empty_view(cluster: FakeCluster) -> None:
    assert cluster.view().latest().to_arrow().num_rows == 0
    cluster.create("u", schema=SCHEMA, key="id")
    assert cluster.view("u").latest().to_arrow().schema == SCHEMA
