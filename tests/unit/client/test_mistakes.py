"""What users get wrong, each answered by one sentence of raystream's own; what they raise themselves comes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

import raystream as rs
from raystream.types import Rows
from tests.fakes.cluster import FakeCluster
from tests.fakes.connection import connected

WAIT_S = 20


@pytest.fixture
def fake() -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        yield fake


@pytest.fixture
def cluster(fake: FakeCluster) -> rs.Cluster:
    return connected(fake)


@pytest.mark.parametrize("topics", [5, None, 1.5])
def test_topics_that_are_no_names(cluster: rs.Cluster, topics: Any) -> None:
    with pytest.raises(rs.InvalidArgument, match="topics must be a name"):
        cluster.consumer(topics)


def test_an_option_that_a_read_does_not_take(fake: FakeCluster, cluster: rs.Cluster) -> None:
    fake.create("t")
    with pytest.raises(rs.InvalidArgument, match="read\\(\\) takes no bogus=; there are: order, check_crcs"):
        cluster.read("t", bogus=1)
    with pytest.raises(rs.InvalidArgument, match="did you mean 'isolation'"):
        cluster.read("t", isolaton="read_committed")


def test_columns_that_an_existing_topic_does_not_have_as_key_or_time(fake: FakeCluster, cluster: rs.Cluster) -> None:
    frame = pa.table({"a": [1], "b": ["x"]})
    fake.create("typed", schema=frame.schema, key="b")
    fake.create("plain", schema=frame.schema)
    fake.create("raw")
    with pytest.raises(rs.InvalidArgument, match="'typed' exists and has the key column 'b', not 'a'"):
        cluster.write("typed", frame, key="a")
    with pytest.raises(rs.InvalidArgument, match="'plain' exists and has no key column, not 'a'"):
        cluster.write("plain", frame, key="a")
    with pytest.raises(rs.InvalidArgument, match="has no time column, not 'a'"):
        cluster.write("plain", frame, time="a")
    with pytest.raises(rs.InvalidArgument, match="'raw' exists and is raw"):
        cluster.write("raw", pa.table({"value": ["x"]}), key="value")
    assert cluster.write("typed", frame, key="b").rows == 1
    assert cluster.write("plain", frame).rows == 1


def test_a_topic_that_is_missing_is_not_to_be_created_by_who_asks_about_it(
    fake: FakeCluster, cluster: rs.Cluster
) -> None:
    fake.create("flights")
    with pytest.raises(rs.TopicNotFound, match="there is no topic 'flight'; did you mean 'flights'") as error:
        cluster.describe_topic("flight")
    assert "create" not in str(error.value)


def record(value: Any) -> rs.Record:
    return rs.Record("t", 1, 7, 0, None, value)


@pytest.mark.parametrize("use", [lambda r: r.text, lambda r: r.json()], ids=["text", "json"])
def test_values_that_are_no_text_and_no_json(use: Callable[[rs.Record], Any]) -> None:
    with pytest.raises(rs.InvalidRecord, match="t-1 at offset 7 is a dict already"):
        use(record({"a": 1}))
    with pytest.raises(rs.InvalidRecord, match="t-1 at offset 7 is no"):
        use(record(b"\xff{"))
    assert use(record(None)) is None
    assert str(use(record(b"1"))) == str(use(record("1"))) == "1"


def test_a_serializer_that_raises(fake: FakeCluster, cluster: rs.Cluster) -> None:
    def broken(value: Any) -> bytes:
        raise KeyError("price")

    fake.create("t")
    for which, producer in (
        ("value", cluster.producer(value_serializer=broken)),
        ("key", cluster.producer(key_serializer=broken)),
    ):
        with pytest.raises(rs.InvalidRecord, match=f"{which}_serializer raised KeyError on 'x'.*price") as error:
            producer.send("t", "x", key="x")
        assert isinstance(error.value.__cause__, KeyError)


def test_a_partitioner_that_raises(fake: FakeCluster, cluster: rs.Cluster) -> None:
    def broken(topic: str, key: bytes | None, value: Any, partitions: int) -> int:
        raise KeyError("region")

    fake.create("t", 2)
    producer = cluster.producer(partitioner=broken, linger_ms=0)
    failure = producer.send("t", b"x", key="k").exception(WAIT_S)
    assert isinstance(failure, rs.InvalidRecord) and isinstance(failure.__cause__, KeyError)
    assert "the partitioner raised KeyError for a record of topic 't' with key b'k'" in str(failure)
    with pytest.raises(rs.RaystreamError, match="the partitioner raised KeyError"):
        producer.send_frame("t", pa.table({"value": [b"x"]})).result(WAIT_S)


def test_numbers_that_name_something_are_shown_as_they_are(cluster: rs.Cluster) -> None:
    (broker,) = cluster.brokers()
    text = repr(Rows([broker.__class__(**{**broker.__dict__, "pid": 15080, "partitions": 2000})]))
    assert "15080" in text and "2,000" in text
