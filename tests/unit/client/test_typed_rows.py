"""`send` of a dict to a typed topic is a row: checked when it is sent, stored under the topic's schema."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raystream.client.partitioner import partition_of
from raystream.errors import InvalidRecord, RecordTooLarge
from tests.fakes.cluster import FakeCluster, FakeTopic

WAIT_S = 10
SCHEMA = pa.schema(
    [
        pa.field("carrier", pa.string()),
        pa.field("number", pa.int32()),
        pa.field("delay", pa.float64()),
        pa.field("late", pa.bool_()),
        pa.field("blob", pa.binary()),
        pa.field("at", pa.timestamp("us", "UTC")),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("origin", pa.string(), nullable=False),
    ]
)
NOON = dt.datetime(2013, 1, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def topic(cluster: FakeCluster) -> FakeTopic:
    return cluster.create("t", 4, schema=SCHEMA, key="carrier", time="at")


def row(**columns: Any) -> dict[str, Any]:
    return {"carrier": "UA", "origin": "JFK", "at": NOON, **columns}


def test_a_row_is_stored_as_it_was_sent(cluster: FakeCluster, topic: FakeTopic) -> None:
    full = row(number=-5, delay=1.5, late=True, blob=b"\x00", tags=["a", None])
    where = cluster.producer().send("t", full).result(WAIT_S)
    assert where.partition == partition_of(b"UA", 4)
    assert where.timestamp_ms == 1_357_041_600_000
    part = topic.partitions[where.partition]
    assert part.rows() == [full]
    assert part.headers[0].max_timestamp_ms == 1_357_041_600_000


def test_what_is_missing_is_null(cluster: FakeCluster, topic: FakeTopic) -> None:
    where = cluster.producer().send("t", {"origin": "JFK"}).result(WAIT_S)
    (stored,) = topic.partitions[where.partition].rows()
    assert stored == {**dict.fromkeys(SCHEMA.names), "origin": "JFK"}
    assert where.timestamp_ms > 1_600_000_000_000


@pytest.mark.parametrize(
    ("column", "value", "stored"),
    [
        ("number", np.int64(7), 7),
        ("delay", 3, 3.0),
        ("delay", np.float32(0.5), 0.5),
        ("late", np.bool_(True), True),
        ("blob", bytearray(b"ab"), b"ab"),
        ("at", "2013-01-01T12:00:00Z", NOON),
        ("at", NOON.astimezone(dt.timezone(dt.timedelta(hours=5))), NOON),
        ("at", dt.datetime(2013, 1, 1, 12), NOON),  # noqa: DTZ001 - naive is UTC
        ("at", np.datetime64("2013-01-01T12:00:00"), NOON),
        ("tags", [], []),
        ("carrier", "", ""),
    ],
)
def test_values_that_fit(cluster: FakeCluster, topic: FakeTopic, column: str, value: Any, stored: Any) -> None:
    where = cluster.producer().send("t", row(**{column: value})).result(WAIT_S)
    assert topic.partitions[where.partition].rows()[0][column] == stored


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"bytes", "send a dict of its columns"),
        (None, "send a dict"),
        ([1], "send a dict"),
        (row(carier="UA"), "no column 'carier'; did you mean 'carrier'"),
        (row(zzzzzzz=1), "no column 'zzzzzzz'; there are: carrier"),
        (row(origin=None), "'origin' of topic 't' takes no null"),
        ({"carrier": "UA"}, "'origin' of topic 't' takes no null"),
        (row(carrier=1), "column 'carrier'.*string.*int"),
        (row(carrier="\ud800"), "column 'carrier'"),
        (row(number="5"), "column 'number'.*int32.*str"),
        (row(number=5.0), "column 'number'"),
        (row(number=True), "column 'number'"),
        (row(number=2**31), "outside -2147483648 to 2147483647"),
        (row(delay="1"), "column 'delay'"),
        (row(delay=True), "column 'delay'"),
        (row(delay=10**400), "column 'delay'"),
        (row(late=1), "give True or False"),
        (row(blob="text"), "give bytes"),
        (row(at=5), "datetime"),
        (row(at="yesterday"), "column 'at'"),
        (row(tags="abc"), "column 'tags'"),
        (row(tags=[1]), "column 'tags'"),
        (row(at=dt.datetime(2999, 1, 1, tzinfo=dt.UTC)), "in the future"),
    ],
)
def test_rows_that_do_not_fit(cluster: FakeCluster, topic: FakeTopic, value: Any, says: str) -> None:
    producer = cluster.producer()
    with pytest.raises(InvalidRecord, match=says):
        producer.send("t", value)
    producer.send("t", row()).result(WAIT_S)
    assert sum(part.end_offset for part in topic.partitions) == 1


@pytest.mark.parametrize("extra", [{"key": "UA"}, {"headers": {"a": "b"}}, {"timestamp_ms": 5}])
def test_a_typed_topic_takes_only_its_columns(cluster: FakeCluster, topic: FakeTopic, extra: dict[str, Any]) -> None:
    assert topic.typed
    with pytest.raises(InvalidRecord, match=f"no {next(iter(extra))}="):
        cluster.producer().send("t", row(), **extra)


def test_a_row_may_name_its_partition(cluster: FakeCluster, topic: FakeTopic) -> None:
    assert cluster.producer().send("t", row(), partition=3).result(WAIT_S).partition == 3
    assert topic.partitions[3].end_offset == 1


def test_a_row_that_is_too_large(cluster: FakeCluster) -> None:
    cluster.create("t", schema=SCHEMA, config={"max_batch_bytes": 16_384})
    with pytest.raises(RecordTooLarge, match="max_batch_bytes"):
        cluster.producer().send("t", row(blob=b"x" * 20_000))


def test_integer_keys_and_times(cluster: FakeCluster) -> None:
    schema = pa.schema([("id", pa.int32()), ("ms", pa.int64())])
    topic = cluster.create("t", 5, schema=schema, key="id", time="ms")
    producer = cluster.producer()
    sent = [producer.send("t", {"id": number % 7, "ms": 1_000 + number}) for number in range(200)]
    producer.flush(WAIT_S)
    for number, one in enumerate(sent):
        where = one.result(0)
        assert where.partition == partition_of((number % 7).to_bytes(8, "big"), 5)
        assert where.timestamp_ms == 1_000 + number
        assert topic.partitions[where.partition].column("ms")[where.offset] == 1_000 + number


def test_a_partitioner_sees_the_row(cluster: FakeCluster, topic: FakeTopic) -> None:
    seen: list[Any] = []

    def partitioner(name: str, key: bytes | None, value: Any, partitions: int) -> int:
        seen.append((name, key, value["number"], partitions))
        return 1

    assert cluster.producer(partitioner=partitioner).send("t", row(number=3)).result(WAIT_S).partition == 1
    assert seen == [("t", b"UA", 3, 4)]
    assert topic.partitions[1].end_offset == 1


def test_categories_are_stored_as_plain_values(cluster: FakeCluster) -> None:
    schema = pa.schema([("c", pa.dictionary(pa.int8(), pa.string()))])
    topic = cluster.create("t", schema=schema)
    cluster.producer().send("t", {"c": "x"}).result(WAIT_S)
    assert topic.column("c") == ["x"]
