"""`cluster.read`: bounds, order, columns, filters, and what it says when it cannot."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raystream.client import bounded
from raystream.errors import CorruptBatch, InvalidArgument, OffsetOutOfRange, TopicNotFound
from raystream.schema import RAW_READ_SCHEMA
from tests.fakes.log import FakeCluster, FakePartition, raw_rows

FLIGHTS = pa.schema(
    [
        ("carrier", pa.dictionary(pa.int32(), pa.string())),
        ("delay", pa.int64()),
        ("at", pa.timestamp("ms", "UTC")),
    ]
)


@pytest.fixture(params=["mapped", "bytes"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeCluster]:
    with FakeCluster(tmp_path if request.param == "mapped" else None) as cluster:
        cluster.create("t", 2)
        cluster.append("t", raw_rows([b"a", b"b"], timestamps=[100, 300]))
        cluster.append("t", raw_rows([b"c", b"d"], timestamps=[500, 700]))
        cluster.append("t", raw_rows([b"x", b"y", b"z"], timestamps=[200, 400, 600]), 1)
        yield cluster


def flights(cluster: FakeCluster) -> None:
    topic = cluster.create("flights", 2, schema=FLIGHTS, key="carrier", time="at")
    schema = topic.partitions[0].schema
    for partition, carriers, delays in [(0, ["UA", "AA"], [5, -3]), (1, ["DL"], [60]), (0, ["UA"], [40])]:
        at = pa.array([1000 + d for d in delays], pa.timestamp("ms", "UTC"))
        cluster.append("flights", pa.record_batch([pa.array(carriers), pa.array(delays), at], schema=schema), partition)


def flip(partition: FakePartition, number: int) -> None:
    """Flips a bit in the rows of a batch, in its file too."""
    stored = partition.batches[number]
    data = bytearray(stored.data)
    data[-150] ^= 1
    stored.data = bytes(data)
    if partition.path is not None:
        content = bytearray(partition.path.read_bytes())
        content[stored.position : stored.position + len(data)] = data
        partition.path.write_bytes(content)


def values(table: pa.Table) -> list[bytes]:
    found: list[bytes] = table["value"].to_pylist()
    return found


def test_rows_come_by_partition_then_offset(cluster: FakeCluster) -> None:
    table = cluster.view().to_arrow()
    assert table.schema.equals(RAW_READ_SCHEMA) and cluster.view().schema.equals(RAW_READ_SCHEMA)
    assert values(table) == [b"a", b"b", b"c", b"d", b"x", b"y", b"z"]
    assert table["offset"].to_pylist() == [0, 1, 2, 3, 0, 1, 2]
    assert table["partition"].to_pylist() == [0, 0, 0, 0, 1, 1, 1]
    assert set(table["topic"].to_pylist()) == {"t"} and set(table["timestamp_type"].to_pylist()) == {0}


def test_order_by_time_merges(cluster: FakeCluster) -> None:
    view = cluster.view(order="time")
    assert values(view.to_arrow()) == [b"a", b"x", b"b", b"y", b"c", b"z", b"d"]
    assert view.tail(2)["value"].tolist() == [b"z", b"d"] and view.head(1)["value"].tolist() == [b"a"]


def test_bounds_are_frozen_at_the_call(cluster: FakeCluster) -> None:
    view = cluster.view()
    cluster.append("t", [b"later"])
    assert view.count() == view.to_arrow().num_rows == 7
    assert view.offsets() == {0: 4, 1: 3} and view.ranges() == {0: range(4), 1: range(3)}
    following = cluster.view(start=view.offsets())
    assert values(following.to_arrow()) == [b"later"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"start": {0: 1, 1: 1}}, b"bcdyz"),
        ({"start": {0: 3}}, b"dxyz"),
        ({"end": {0: 1, 1: 0}}, b"a"),
        ({"start": {0: 1, 1: 3}, "end": {0: 3}}, b"bc"),
        ({"start": {"t": {0: 4}}, "end": {"t": {1: 1}}}, b"x"),
        ({"start": dt.datetime.fromtimestamp(0.4, dt.UTC)}, b"cdyz"),
        (
            {"start": dt.datetime.fromtimestamp(0.2, dt.UTC), "end": dt.datetime.fromtimestamp(0.6, dt.UTC)},
            b"bcxy",
        ),
        ({"start": "latest"}, b""),
        ({"start": {0: 3, 1: 3}, "end": {0: 1}}, b""),
        ({"end": {0: 99, 1: 99}}, b"abcdxyz"),
    ],
)
def test_bounds(cluster: FakeCluster, how: dict[str, Any], expected: bytes) -> None:
    view = cluster.view(**how)
    assert b"".join(values(view.to_arrow())) == expected
    assert view.count() == len(expected)
    assert b"".join(part for table in view.tables() for part in values(table)) == expected
    assert b"".join(record.value for record in view.records()) == expected


def test_head_and_tail(cluster: FakeCluster) -> None:
    view = cluster.view()
    assert [view.head(n)["value"].tolist() for n in (0, 1, 5)] == [[], [b"a"], [b"a", b"b", b"c", b"d", b"x"]]
    assert [view.tail(n)["value"].tolist() for n in (0, 1, 4)] == [[], [b"z"], [b"d", b"x", b"y", b"z"]]
    assert len(view.head(100)) == len(view.tail(100)) == 7
    with pytest.raises(InvalidArgument, match="n=-1"):
        view.head(-1)


def test_head_reads_no_more_than_it_needs(cluster: FakeCluster) -> None:
    cluster.view().head(1)
    assert [f.end_offset for f in cluster.topics["t"].partitions[0].fetches] == [1]
    assert cluster.topics["t"].partitions[1].fetches == []


def test_columns(cluster: FakeCluster) -> None:
    view = cluster.view(columns=["value", "offset"])
    assert view.to_arrow().column_names == view.schema.names == ["value", "offset"]
    with pytest.raises(InvalidArgument, match="no column 'valeu'; did you mean 'value'"):
        cluster.view(columns=["valeu"])
    with pytest.raises(InvalidArgument, match=r"give a list, \['value'\]"):
        cluster.view(columns="value")


def test_a_typed_topic_shows_its_own_columns(cluster: FakeCluster) -> None:
    flights(cluster)
    view = cluster.view("flights")
    table = view.to_arrow()
    assert table.schema.equals(FLIGHTS) and view.schema.equals(FLIGHTS)
    assert table["carrier"].to_pylist() == ["UA", "AA", "UA", "DL"]
    metadata = view.to_arrow(metadata=True).select(["_partition", "_offset", "_timestamp"])
    assert metadata.to_pydict() == {
        "_partition": [0, 0, 0, 1],
        "_offset": [0, 1, 2, 0],
        "_timestamp": [1005, 997, 1040, 1060],
    }
    frame = view.to_pandas()
    assert frame["carrier"].dtype == "category" and frame["delay"].sum() == 102
    assert cluster.view("flights", columns=["_offset", "delay"]).to_arrow().to_pydict() == {
        "_offset": [0, 1, 2, 0],
        "delay": [5, -3, 40, 60],
    }
    assert cluster.view("flights", order="time").to_arrow()["delay"].to_pylist() == [-3, 5, 40, 60]


@pytest.mark.parametrize("condition", [pc.field("delay") > 10, pl.col("delay") > 10])
def test_filters(cluster: FakeCluster, condition: Any) -> None:
    flights(cluster)
    view = cluster.view("flights", filter=condition, columns=["carrier"])
    assert view.to_arrow()["carrier"].to_pylist() == ["UA", "DL"] and view.count() == 2
    assert view.head(1)["carrier"].tolist() == ["UA"] and view.tail(1)["carrier"].tolist() == ["DL"]
    assert pa.types.is_dictionary(view.to_arrow().schema.field("carrier").type)


def test_a_filter_over_metadata(cluster: FakeCluster) -> None:
    flights(cluster)
    view = cluster.view("flights", filter=(pc.field("_offset") == 0) & (pc.field("carrier") == "DL"))
    assert view.to_arrow()["delay"].to_pylist() == [60] and view.to_arrow().column_names == FLIGHTS.names


def test_a_filter_that_is_none(cluster: FakeCluster) -> None:
    with pytest.raises(InvalidArgument, match="neither a pyarrow compute expression nor a polars"):
        cluster.view(filter=lambda row: True).to_arrow()


def test_polars_and_lazy(cluster: FakeCluster) -> None:
    flights(cluster)
    view = cluster.view("flights")
    assert view.to_polars()["delay"].to_list() == [5, -3, 40, 60]
    lazy = view.lazy()
    assert lazy.collect_schema().names() == FLIGHTS.names
    assert lazy.filter(pl.col("delay") > 10).select("delay").collect()["delay"].to_list() == [40, 60]
    assert lazy.select(pl.col("delay").sum()).collect().item() == 102
    assert lazy.head(1).collect()["delay"].to_list() == [5]
    assert pl.DataFrame(view)["delay"].sum() == 102


def test_an_empty_topic(cluster: FakeCluster) -> None:
    cluster.create("raw")
    cluster.create("typed", schema=FLIGHTS)
    assert cluster.view("raw").to_arrow().schema.equals(RAW_READ_SCHEMA)
    assert cluster.view("typed").to_arrow(metadata=True).column_names == [
        *FLIGHTS.names,
        "_partition",
        "_offset",
        "_timestamp",
    ]
    assert cluster.view("typed", order="time", filter=pc.field("delay") > 0).to_pandas().empty
    assert cluster.view("typed").count() == 0 and cluster.view("typed").lazy().collect().is_empty()


def test_it_shows_itself(cluster: FakeCluster) -> None:
    view = cluster.view()
    assert repr(view) == "<View of 't', offsets by partition {0: 0 to 4, 1: 0 to 3}>"
    assert "<table" in view._repr_html_()


def test_progress_is_told(cluster: FakeCluster) -> None:
    told: list[tuple[int, int]] = []
    cluster.view(progress=lambda done, total: told.append((done, total))).to_arrow()
    assert told == [(4, 7), (7, 7)]


# What can go wrong --------------------------------------------------------------------------------------------------


def test_wrong_use(cluster: FakeCluster) -> None:
    with pytest.raises(TopicNotFound):
        cluster.view("nowhere")
    with pytest.raises(InvalidArgument, match="order='size'"):
        cluster.view(order="size")
    with pytest.raises(InvalidArgument, match="end='newest'"):
        cluster.view(end="newest")


def test_records_that_are_gone(cluster: FakeCluster) -> None:
    view = cluster.view()
    cluster.topics["t"].partitions[0].start_offset = 2
    with pytest.raises(OffsetOutOfRange, match="begins at offset 2 now"):
        cluster.view(start={0: 0})
    with pytest.raises(OffsetOutOfRange):
        view.to_arrow()
    assert values(cluster.view().to_arrow())[0] == b"c"


def test_a_flipped_bit_is_never_data(cluster: FakeCluster) -> None:
    flip(cluster.topics["t"].partitions[0], 1)
    with pytest.raises(CorruptBatch, match="t-0: the batch at offset 2 fails its producer CRC"):
        cluster.view().to_arrow()
    assert values(cluster.view(end={0: 2, 1: 0}).to_arrow()) == [b"a", b"b"]


def test_large_reads_are_checked_by_two_threads_in_order(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "HELP_FROM_BYTES", 1)
    cluster.create("large")
    for _ in range(200):
        cluster.append("large", [b"v" * 50] * 20)
    assert cluster.view("large").to_arrow()["offset"].to_pylist() == list(range(4000))


def test_two_threads_read_all_partitions_and_name_the_first_bad_batch(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "HELP_FROM_BYTES", 1)
    cluster.create("large", 3)
    for partition in range(3):
        for _ in range(50):
            cluster.append("large", [b"v" * 50] * 20, partition)
    view = cluster.view("large")
    assert view.to_arrow()["offset"].to_pylist() == 3 * list(range(1000))
    for partition, number in [(1, 30), (2, 0)]:
        flip(cluster.topics["large"].partitions[partition], number)
    with pytest.raises(CorruptBatch, match="large-1: the batch at offset 600 fails its producer CRC") as raised:
        view.to_pandas()
    assert (raised.value.topic, raised.value.partition, raised.value.offset) == ("large", 1, 600)
    with pytest.raises(CorruptBatch, match="large-2: the batch at offset 0 fails"):
        list(cluster.view("large", start={0: 1000, 1: 1000, 2: 0}).records())


def test_a_leader_that_answers_in_parts(cluster: FakeCluster) -> None:
    cluster.topics["t"].partitions[0].max_fetch_bytes = 1
    assert len(values(cluster.view().to_arrow())) == 7


def test_vanished_and_unreadable_files_fall_back_to_bytes(cluster: FakeCluster, tmp_path: Path) -> None:
    partition = cluster.topics["t"].partitions[0]
    (tmp_path / "file").touch()
    for path in (tmp_path / "gone", tmp_path / "file" / "below", tmp_path / "file"):
        partition.span_path = str(path)
        assert len(values(cluster.view().to_arrow())) == 7
