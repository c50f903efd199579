"""`send_frame`: what it takes, where the rows go, what it refuses."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from raystream.client.frames import frame_schema
from raystream.client.partitioner import partition_of
from raystream.errors import (
    BufferFull,
    DeliveryFailed,
    InvalidRecord,
    NotLeader,
    RecordTooLarge,
    RequestTimeout,
)
from raystream.types import WriteResult
from tests.fakes.cluster import FakeCluster, FakeTopic, Fault, lost_reply, refused

WAIT_S = 20
SCHEMA = pa.schema([("carrier", pa.string()), ("delay", pa.float64()), ("n", pa.int64())])


@pytest.fixture
def topic(cluster: FakeCluster) -> FakeTopic:
    return cluster.create("t", 4, schema=SCHEMA, key="carrier")


def flights(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(rows)
    carriers = np.array(["AA", "UA", "B6", "DL", None], object)[rng.integers(0, 5, rows)]
    return pd.DataFrame({"carrier": carriers, "delay": rng.random(rows), "n": np.arange(rows)})


FORMS: dict[str, Any] = {
    "pandas": lambda frame: frame,
    "polars": pl.from_pandas,
    "table": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "batch": lambda frame: pa.RecordBatch.from_pandas(frame, preserve_index=False),
    "reader": lambda frame: pa.Table.from_pandas(frame, preserve_index=False).to_reader(1_000),
    "stream": lambda frame: Stream(pa.Table.from_pandas(frame, preserve_index=False)),
    "reordered": lambda frame: frame[["n", "carrier", "delay"]],
    "categories": lambda frame: frame.astype({"carrier": "category"}),
    "small": lambda frame: frame.astype({"n": "int32", "delay": "float64"}),
}


class Stream:
    """Somebody's own frame."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("form", FORMS)
def test_every_row_arrives_once_in_order_by_its_key(cluster: FakeCluster, topic: FakeTopic, form: str) -> None:
    frame = flights(20_000)
    written = cluster.producer().send_frame("t", FORMS[form](frame)).result(WAIT_S)
    assert isinstance(written, WriteResult)
    assert written.rows == len(written) == 20_000
    numbers: list[int] = []
    for part in topic.partitions:
        assert written.offsets.get(part.number, (0, 0)) == (0, part.end_offset)
        rows = part.rows()
        numbers += [row["n"] for row in rows]
        for row in rows:
            carrier = frame["carrier"].iloc[row["n"]]
            assert row["carrier"] == (None if pd.isna(carrier) else carrier)
            assert row["delay"] == frame["delay"].iloc[row["n"]]
            if row["carrier"] is not None:
                assert part.number == partition_of(row["carrier"].encode(), 4)
        keyed = [row["n"] for row in rows if row["carrier"] is not None]
        assert keyed == sorted(keyed)
    assert sorted(numbers) == list(range(20_000))


def test_rows_without_a_key_spread_in_order(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 3, schema=SCHEMA)
    producer = cluster.producer(max_batch_bytes=8_192)
    producer.send_frame("t", flights(50_000)).result(WAIT_S)
    ends = [part.end_offset for part in topic.partitions]
    assert sum(ends) == 50_000
    assert min(ends) > 10_000
    for part in topic.partitions:
        assert part.column("n") == sorted(part.column("n"))
        assert max(part.sizes) <= 4 * 8_192 + 2_048


def test_batches_are_large(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1, schema=SCHEMA)
    cluster.producer().send_frame("t", flights(600_000)).result(WAIT_S)
    sizes = topic.partitions[0].sizes
    assert sum(sizes) / len(sizes) > 1 << 20
    assert max(sizes) <= 4 * (1 << 20) + 2_048


def test_frames_and_records_keep_their_order(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1, schema=SCHEMA)
    producer = cluster.producer(linger_ms=50)
    number = 0
    for _ in range(10):
        producer.send("t", {"n": number})
        producer.send_frame("t", pd.DataFrame({"carrier": ["x"] * 5, "delay": 0.0, "n": range(number + 1, number + 6)}))
        number += 6
    producer.flush(WAIT_S)
    assert topic.column("n") == list(range(60))


def test_the_users_memory_may_change_after_the_call(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1, schema=SCHEMA)
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer()
    numbers = np.arange(1_000)
    frame = pd.DataFrame({"carrier": ["x"] * 1_000, "delay": 0.0, "n": numbers}, copy=False)
    sent = producer.send_frame("t", frame)
    numbers[:] = -1
    frame.loc[:, "n"] = -1
    cluster.on_loop(gate.set)
    sent.result(WAIT_S)
    assert topic.column("n") == list(range(1_000))


def test_no_rows(cluster: FakeCluster, topic: FakeTopic) -> None:
    producer = cluster.producer()
    for frame in (flights(0), pl.from_pandas(flights(5))[:0], SCHEMA.empty_table()):
        assert producer.send_frame("t", frame).result(0) == WriteResult("t", 0, {})
    assert not topic.partitions[0].requests


def test_a_pandas_index_is_dropped(cluster: FakeCluster, topic: FakeTopic) -> None:
    frame = flights(10).set_index(pd.Index(list("abcdefghij"), name="letter"))
    assert cluster.producer().send_frame("t", frame).result(WAIT_S).rows == 10
    assert frame_schema(frame).names == ["carrier", "delay", "n"]
    assert topic.typed


def test_nan_is_null_in_pandas_columns(cluster: FakeCluster, topic: FakeTopic) -> None:
    frame = pd.DataFrame({"carrier": ["x", np.nan], "delay": [1.0, np.nan], "n": [1, 2]})
    cluster.producer().send_frame("t", frame).result(WAIT_S)
    assert sorted(topic.column("delay"), key=str) == [1.0, None]
    assert set(topic.column("carrier")) == {"x", None}


def test_whole_floats_become_integers(cluster: FakeCluster, topic: FakeTopic) -> None:
    frame = pd.DataFrame({"carrier": ["x"] * 3, "delay": [1, 2, 3], "n": [1.0, np.nan, 3.0]})
    cluster.producer().send_frame("t", frame).result(WAIT_S)
    assert topic.column("n") == [1, None, 3]


MIXED = pd.DataFrame({"carrier": ["x", 5, "y"], "delay": 0.0, "n": 1})


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (None, "NoneType is no frame"),
        ([1, 2], "list is no frame"),
        ({"n": [1]}, "dict is no frame"),
        (pl.from_pandas(flights(3)).lazy(), "collect"),
        (flights(3).drop(columns="n"), "lacks the column 'n'"),
        (flights(3).rename(columns={"carrier": "carier"}), "'carier'.*did you mean 'carrier'"),
        (flights(3).assign(zzz=1), "column 'zzz' that topic 't' has not"),
        (pd.concat([flights(3), flights(3)[["n"]]], axis=1), "more than one column 'n'"),
        (pa.table([[1], [2]], names=["n", "n"]), "more than one column 'n'"),
        (pd.DataFrame(), "no columns"),
        (pa.table({}), "no columns"),
        (MIXED, "column 'carrier'.*row 1 holds 5"),
        (flights(3).assign(n=["a", "b", "c"]), "column 'n' is .*string, topic 't' has it as int64"),
        (flights(3).assign(n=[1, 2, 2.5]), "column 'n'.*2.5 in row 2"),
        (flights(3).assign(n=np.array([1, 2**63, 3], np.uint64)), r"column 'n'.*9223372036854775808 in row 1"),
        (flights(3).assign(delay=pd.to_datetime(["2013-01-01"] * 3)), "column 'delay'"),
        (flights(3).assign(carrier=[1, 2, 3]), "column 'carrier'"),
        (flights(3).assign(n=pd.Series([[1], [2], [3]], dtype=object)), "column 'n'"),
    ],
)
def test_frames_that_do_not_fit(cluster: FakeCluster, topic: FakeTopic, frame: Any, says: str) -> None:
    producer = cluster.producer()
    with pytest.raises(InvalidRecord, match=says):
        producer.send_frame("t", frame)
    producer.flush(WAIT_S)
    assert topic.column("n") == []


def test_a_bad_row_far_down_is_named(cluster: FakeCluster, topic: FakeTopic) -> None:
    table = pa.table(
        {"carrier": ["x"] * 200_000, "delay": [0.0] * 200_000, "n": [1.0] * 150_000 + [0.5] + [1.0] * 49_999}
    )
    with pytest.raises(InvalidRecord, match=r"0\.5 in row 150000"):
        cluster.producer().send_frame("t", table)
    assert topic.typed


def test_a_column_that_takes_no_null(cluster: FakeCluster) -> None:
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False)])
    cluster.create("t", schema=schema)
    with pytest.raises(InvalidRecord, match="'a' of topic 't' takes no null; row 1"):
        cluster.producer().send_frame("t", pa.table({"a": [1, None]}))


def test_event_times(cluster: FakeCluster) -> None:
    schema = pa.schema([("at", pa.timestamp("ns", "America/New_York")), ("n", pa.int64())])
    topic = cluster.create("t", schema=schema, time="at")
    at = pd.date_range("2013-01-01", periods=3, freq="h", tz="America/New_York")
    producer = cluster.producer()
    producer.send_frame("t", pd.DataFrame({"at": at, "n": [1, 2, 3]})).result(WAIT_S)
    (header,) = topic.partitions[0].headers
    assert header.first_timestamp_ms == at[0].timestamp() * 1000
    assert header.max_timestamp_ms == at[2].timestamp() * 1000
    later = at + dt.timedelta(days=365 * 100)
    with pytest.raises(InvalidRecord, match=r"row 0 lies .* in the future"):
        producer.send_frame("t", pd.DataFrame({"at": later, "n": [1, 2, 3]}))


# Raw topics -----------------------------------------------------------------------------------------------------------


def test_a_frame_of_a_raw_topic(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 2)
    frame = pd.DataFrame(
        {
            "key": ["a", "b", None],
            "value": ["1", "2", "3"],
            "timestamp": pd.to_datetime([1_000, 2_000, 3_000], unit="ms"),
            "headers": [[("h", b"1")], None, []],
        }
    )
    producer = cluster.producer()
    producer.send_frame("t", frame).result(WAIT_S)
    rows = sorted((row for part in topic.partitions for row in part.rows()), key=lambda row: row["timestamp"])
    assert [row["value"] for row in rows] == [b"1", b"2", b"3"]
    assert [row["key"] for row in rows] == [b"a", b"b", None]
    assert [row["timestamp"] for row in rows] == [1_000, 2_000, 3_000]
    assert rows[0]["headers"] == [("h", b"1")]
    for part in topic.partitions:
        assert all(row["key"] is None or partition_of(row["key"], 2) == part.number for row in part.rows())


def test_a_raw_frame_of_values_only(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1)
    cluster.producer().send_frame("t", pl.DataFrame({"value": ["a", None]})).result(WAIT_S)
    rows = topic.partitions[0].rows()
    assert [(row["key"], row["value"], row["headers"]) for row in rows] == [(None, b"a", None), (None, None, None)]
    assert rows[0]["timestamp"] > 1_600_000_000_000


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pd.DataFrame({"key": ["a"]}), "lacks the column 'value'"),
        (pd.DataFrame({"value": [1]}), "a raw topic takes strings or binary"),
        (pd.DataFrame({"value": ["a"], "key": [1.5]}), "column 'key'"),
        (pd.DataFrame({"value": ["a"], "offset": [1]}), "column 'offset' that topic 't' has not"),
        (pd.DataFrame({"value": ["a"], "headers": ["x"]}), "column 'headers'"),
        (pd.DataFrame({"value": ["a"], "timestamp": ["x"]}), "column 'timestamp'"),
        (pd.DataFrame({"value": [{"a": 1}]}), "column 'value'"),
    ],
)
def test_raw_frames_that_do_not_fit(cluster: FakeCluster, frame: Any, says: str) -> None:
    cluster.create("t", 1)
    with pytest.raises(InvalidRecord, match=says):
        cluster.producer().send_frame("t", frame)


# Delivery -------------------------------------------------------------------------------------------------------------


async def test_a_frame_is_one_awaitable(cluster: FakeCluster, topic: FakeTopic) -> None:
    producer = cluster.producer()
    seen: list[Any] = []
    sent = producer.send_frame("t", flights(1_000))
    sent.add_done_callback(seen.append)
    assert (await sent).rows == 1_000
    assert (await sent).rows == 1_000
    assert sent.done()
    assert sent.exception() is None
    assert seen == [sent]
    assert topic.typed


def test_faults_neither_lose_nor_double_rows(cluster: FakeCluster, topic: FakeTopic) -> None:
    for part in topic.partitions:
        part.faults.extend([lost_reply(), refused(NotLeader("moved")), Fault(late=True, delay_ms=20)])
    cluster.producer(max_batch_bytes=16_384).send_frame("t", flights(50_000)).result(WAIT_S)
    assert sorted(topic.column("n")) == list(range(50_000))


def test_a_frame_that_fails_in_part_says_what_was_written(cluster: FakeCluster, topic: FakeTopic) -> None:
    bad = topic.partitions[partition_of(b"UA", 4)]
    bad.fault = lambda _: refused(InvalidRecord("bad"))
    producer = cluster.producer()
    frame = flights(1_000).dropna()
    sent = producer.send_frame("t", frame)
    with pytest.raises(DeliveryFailed, match="records for t") as raised:
        sent.result(WAIT_S)
    failed = sum(count for _, _, count, _ in raised.value.failures)
    assert raised.value.delivered.rows == len(frame) - failed == len(topic.column("n"))
    producer.flush(WAIT_S)
    producer.send_frame("t", frame)
    with pytest.raises(DeliveryFailed):
        producer.flush(WAIT_S)


def test_a_frame_larger_than_the_buffer_goes_through_it(cluster: FakeCluster, topic: FakeTopic) -> None:
    producer = cluster.producer(max_buffered_bytes=1 << 20)
    assert producer.send_frame("t", flights(300_000)).result(WAIT_S).rows == 300_000
    assert producer.stats.buffered_bytes == 0
    assert topic.typed


def test_a_frame_that_finds_no_room(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1, schema=SCHEMA)
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer(max_buffered_bytes=1 << 20, max_block_ms=50)
    with pytest.raises(BufferFull):
        producer.send_frame("t", flights(300_000))
    with pytest.raises(RequestTimeout):
        producer.flush(0.05)
    cluster.on_loop(gate.set)
    producer.flush(WAIT_S)
    numbers = topic.column("n")
    assert numbers == list(range(len(numbers)))
    assert len(numbers) < 300_000


def test_a_row_that_is_too_large(cluster: FakeCluster) -> None:
    cluster.create("t", config={"max_batch_bytes": 16_384})
    with pytest.raises(RecordTooLarge, match="max_batch_bytes"):
        cluster.producer().send_frame("t", pd.DataFrame({"value": ["small", "x" * 20_000]}))


def test_a_partitioner_is_asked_row_by_row(cluster: FakeCluster, topic: FakeTopic) -> None:
    producer = cluster.producer(partitioner=lambda _topic, _key, row, partitions: row["n"] % partitions)
    producer.send_frame("t", flights(100)).result(WAIT_S)
    for part in topic.partitions:
        assert part.column("n") == list(range(part.number, 100, 4))


def test_columns_in_many_chunks(cluster: FakeCluster, topic: FakeTopic) -> None:
    """As pandas and polars leave them after a concat."""
    parts = [flights(n) for n in (1, 70_000, 3, 0, 500)]
    frame = pd.concat(parts, ignore_index=True)
    frame["carrier"] = frame["carrier"].astype("str")
    producer = cluster.producer()
    assert producer.send_frame("t", frame).result(WAIT_S).rows == 70_504
    tables = [pa.Table.from_pandas(part, schema=SCHEMA, preserve_index=False) for part in parts]
    assert producer.send_frame("t", pa.concat_tables(tables)).result(WAIT_S).rows == 70_504
    assert sum(part.end_offset for part in topic.partitions) == 2 * 70_504
