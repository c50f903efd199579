"""Reading what compaction has left: offsets and timestamps of rows stand in columns that users do not see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raystream.batch import ATTR_APPEND_TIME, ATTR_EXPLICIT_OFFSETS, LeaderFields, ProducerFields, encode, parse
from raystream.batch import with_leader_fields as stamped
from raystream.client.columns import Piece, Shape, decoded, table
from raystream.client.records import runs
from raystream.errors import CorruptBatch
from raystream.explicit import explicit_schema
from raystream.schema import RAW_READ_SCHEMA, RAW_SCHEMA
from tests.fakes.log import FakeCluster, FakePartition, Stored, raw_rows

TOPIC_ID = "00" * 16
SHAPE = Shape("t", False, None, None)


def cleaned(
    values: list[bytes], offsets: list[int], base: int, end: int, *, topic_id: str = TOPIC_ID, attributes: int = 0
) -> memoryview:
    """A batch over the offsets `base` to below `end`, of which these are left."""
    rows = raw_rows(values)
    columns = [*rows.columns, pa.array(offsets, pa.int64()), pa.array([100 * o for o in offsets], pa.int64())]
    fields = ProducerFields(
        topic_id=topic_id,
        partition=0,
        last_offset_delta=end - base - 1,
        first_timestamp_ms=0,
        max_timestamp_ms=100 * end,
        attributes=ATTR_EXPLICIT_OFFSETS | attributes,
    )
    message = encode(pa.RecordBatch.from_arrays(columns, schema=explicit_schema(RAW_SCHEMA)), fields)
    return memoryview(b"".join(stamped(message, parse(message), LeaderFields(base, 1, 0, 5_000))))


def piece(offsets: list[int], base: int, end: int, first: int = 0, stop: int | None = None, **more: Any) -> Piece:
    message = cleaned([b"%d" % offset for offset in offsets], offsets, base, end, **more)
    return decoded(parse(message), message, RAW_SCHEMA, first, stop, True)


def test_rows_have_the_offsets_and_times_of_their_columns() -> None:
    pieces = [piece([2, 5, 9], 0, 12), piece([14], 12, 20, attributes=ATTR_APPEND_TIME)]
    rows = table(pieces, SHAPE, RAW_SCHEMA, 0)
    assert rows.column("offset").to_pylist() == [2, 5, 9, 14]
    assert rows.column("timestamp").to_pylist() == [200, 500, 900, 1_400]
    assert rows.column("timestamp_type").to_pylist() == [0, 0, 0, 1]
    assert rows.schema == RAW_READ_SCHEMA
    records = [record for run in runs(pieces, SHAPE, 0) for record in run.records]
    assert [(r.offset, r.value, r.timestamp_ms) for r in records][-1] == (14, b"14", 1_400)


def test_a_batch_is_cut_by_offset() -> None:
    for first in range(13):
        for stop in (None, *range(first, 13)):
            found = piece([2, 5, 9], 0, 12, first, stop)
            wanted = [offset for offset in (2, 5, 9) if first <= offset < (99 if stop is None else stop)]
            assert found.row_offsets().tolist() == wanted
            assert found.rows.column("value").to_pylist() == [b"%d" % offset for offset in wanted]
            assert found.timestamps.to_pylist() == [100 * offset for offset in wanted]
    assert piece([2, 5, 9], 0, 12).part(1, 1).next_offset == 6


@pytest.mark.parametrize("offsets", [[5, 2], [2, 2], [2, 12], [-1, 3]])
def test_impossible_offsets_are_damage(offsets: list[int]) -> None:
    with pytest.raises(CorruptBatch, match="other offsets than it may"):
        piece(offsets, 0, 12)


def add(partition: FakePartition, values: list[bytes], offsets: list[int], end: int) -> None:
    base = partition.end_offset
    data = bytes(cleaned(values, offsets, base, end, topic_id=partition.topic_id))
    stamps = np.full(end - base, 0).tolist()
    partition.batches.append(Stored(base, end, 100 * end, data, partition.size, stamps))
    partition.size += len(data)
    partition.end_offset = end
    partition.compacted = True


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t", 1)
        yield cluster


def test_views_of_a_compacted_topic(cluster: FakeCluster) -> None:
    partition = cluster.topics["t"].partitions[0]
    add(partition, [b"%d" % o for o in (1, 4, 5)], [1, 4, 5], 40)
    add(partition, [], [], 60)
    add(partition, [b"70", b"71"], [70, 71], 90)
    cluster.append("t", raw_rows([b"90", b"91"]))
    view = cluster.view("t")
    offsets = [1, 4, 5, 70, 71, 90, 91]
    assert view.count() == 7
    assert view.to_arrow().column("offset").to_pylist() == offsets
    assert view.head(2)["offset"].tolist() == [1, 4]
    assert view.head(5)["offset"].tolist() == offsets[:5]
    assert view.tail(3)["offset"].tolist() == offsets[-3:]
    assert view.tail(99)["offset"].tolist() == offsets
    assert view.offsets() == {0: 92}
    assert [record.offset for record in view.records()] == offsets
    part = cluster.view("t", start={0: 5}, end={0: 71})
    assert part.count() == 2 and part.to_arrow().column("value").to_pylist() == [b"5", b"70"]


def test_a_consumer_of_a_compacted_topic(cluster: FakeCluster) -> None:
    partition = cluster.topics["t"].partitions[0]
    add(partition, [b"%d" % o for o in (1, 4, 5)], [1, 4, 5], 40)
    add(partition, [], [], 60)
    add(partition, [b"70", b"71"], [70, 71], 90)
    with cluster.consumer("t", start="earliest") as consumer:
        got = []
        for record in consumer:
            got.append(record.offset)
            if len(got) == 4:
                break
        assert got == [1, 4, 5, 70]
        consumer.seek("t", 0, 5)
        batch = consumer.poll(5)
        assert batch is not None and batch.to_arrow().column("offset").to_pylist()[0] == 5


def test_the_last_offsets_may_hold_no_row(cluster: FakeCluster) -> None:
    partition = cluster.topics["t"].partitions[0]
    add(partition, [b"1"], [1], 40)
    add(partition, [], [], 60)
    assert cluster.view("t").to_arrow().num_rows == cluster.view("t").count() == 1
    assert cluster.view("t").tail(1)["offset"].tolist() == [1]
