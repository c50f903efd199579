"""`cluster.sql`: queries over topics, and what is no query."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from raystream.client.reader import View
from raystream.client.sql import query
from raystream.errors import InvalidArgument, TopicNotFound
from tests.fakes.log import FakeCluster, raw_rows

FLIGHTS = pa.schema([("carrier", pa.string()), ("delay", pa.int64())])


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        for name in ("flights", "more.flights-2"):
            cluster.create(name, schema=FLIGHTS)
            cluster.append(name, pa.record_batch([["UA", "AA", "UA"], [5, -3, 40]], schema=FLIGHTS))
        cluster.create("t")
        cluster.append("t", raw_rows([b"a", b"b"]))
        yield cluster


def rows(cluster: FakeCluster, text: str) -> list[tuple[object, ...]]:
    return query(text, cluster.view).fetchall()


def test_topics_are_tables(cluster: FakeCluster) -> None:
    assert rows(cluster, "select carrier, sum(delay) from flights group by 1 order by 1") == [("AA", -3), ("UA", 45)]
    assert rows(cluster, 'select value from t order by "offset"') == [(b"a",), (b"b",)]
    found = query("from flights where delay > 0", cluster.view)
    assert found.df()["delay"].tolist() == [5, 40]
    assert found.to_arrow_table().num_rows == found.pl().height == 2


def test_several_in_one_query(cluster: FakeCluster) -> None:
    joined = """
        with late as (select * from flights where delay > 0)
        select count(*) from late join "more.flights-2" m using (carrier)
        where late.delay in (select delay from flights) and exists (select 1 from t)
    """
    assert rows(cluster, joined) == [(4,)]
    assert rows(cluster, "select 1") == [(1,)]


def test_only_the_topics_that_are_named_are_read(cluster: FakeCluster) -> None:
    read: list[str] = []

    def view(topic: str) -> View:
        read.append(topic)
        return cluster.view(topic)

    query("with t as (select 1 as x) select 'more.flights-2', x from t, flights", view)
    assert read == ["flights"]


def test_a_topic_that_is_not_there(cluster: FakeCluster) -> None:
    with pytest.raises(TopicNotFound, match="flightz"):
        rows(cluster, "select * from flightz")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("selec 1", "this is no query: syntax error at or near"),
        ("drop table flights", "Only SELECT statements"),
        ("select 1; select 2", "one query, not 2"),
        ("", "one query, not 0"),
        ("select dalay from flights", "cannot be answered: Binder Error"),
        (7, "a query is a str, not int"),
    ],
)
def test_what_is_no_query_is_one_sentence(cluster: FakeCluster, text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as raised:
        rows(cluster, text)
    assert "\n" not in str(raised.value)


def test_neither_files_nor_the_callers_variables_are_tables(cluster: FakeCluster, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with pytest.raises(InvalidArgument, match="cannot be answered"):
        rows(cluster, f"select * from read_csv('{secret}')")
    lying_about = pa.table({"a": [1]})
    with pytest.raises(TopicNotFound):
        rows(cluster, "select * from lying_about")
    assert lying_about.num_rows == 1


def test_without_duckdb_the_remedy_is_said(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'raystream\[sql\]'"):
        rows(cluster, "select 1")
