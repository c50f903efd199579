"""`cluster.table(…)`: the latest value per key, live."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from raystream import aio
from raystream.client.table import Table
from raystream.config import ConsumerConfig, build
from raystream.errors import Closed, InvalidArgument, InvalidRecord, RequestTimeout
from tests.fakes.log import FakeCluster, eventually, raw_rows

SCHEMA = pa.schema([("id", pa.string()), ("x", pa.int64())])


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t", 2)
        yield cluster


def table_of(cluster: FakeCluster, topic: str = "t", **options: Any) -> Table:
    config = build(ConsumerConfig, {"fetch_max_wait_ms": 100})
    return Table(cluster.routing, cluster.loop, topic, config, **options)


def add(cluster: FakeCluster, *rows: tuple[bytes | None, bytes | None], partition: int = 0) -> None:
    keys, values = zip(*rows, strict=True)
    cluster.append("t", raw_rows(values, keys=keys), partition)


def test_it_is_a_mapping_of_the_latest_values(cluster: FakeCluster) -> None:
    add(cluster, (b"a", b"1"), (b"b", b"1"), (None, b"?"), (b"c", b"1"))
    add(cluster, (b"a", b"2"), (b"c", None))
    add(cluster, (b"z", b"9"), partition=1)
    with table_of(cluster) as table:
        table.wait_until_caught_up(10)
        assert dict(table) == table.snapshot() == {b"a": b"2", b"b": b"1", b"z": b"9"}
        assert len(table) == 3 and table["a"] == table[b"a"] == b"2"
        assert "c" not in table and "a" in table and table.get("nothing", b"x") == b"x"
        with pytest.raises(KeyError):
            table["c"]
        assert sorted(table.items()) == [(b"a", b"2"), (b"b", b"1"), (b"z", b"9")]
        add(cluster, (b"a", None), (b"d", b"3"))
        table.wait_until_caught_up(10)
        assert table.snapshot() == {b"b": b"1", b"z": b"9", b"d": b"3"}
        assert repr(table) == "<table of 't', 3 keys, live>"
    assert table.closed and table[b"d"] == b"3"
    with pytest.raises(Closed):
        table.wait_until_caught_up(1)


def test_an_empty_topic_is_caught_up_at_once(cluster: FakeCluster) -> None:
    with table_of(cluster) as table:
        table.wait_until_caught_up(10)
        assert not table


def test_offsets_without_a_record_do_not_hold_it_up(cluster: FakeCluster) -> None:
    add(cluster, (b"a", b"1"))
    cluster.append_control("t")
    with table_of(cluster) as table:
        table.wait_until_caught_up(10)
        assert table.snapshot() == {b"a": b"1"}


def test_changes_are_watched_and_those_of_one_key_come_together(cluster: FakeCluster) -> None:
    add(cluster, (b"a", b"1"))
    with table_of(cluster) as table:
        table.wait_until_caught_up(10)
        with table.watch() as changes:
            add(cluster, (b"a", b"2"), (b"b", b"1"))
            add(cluster, (b"a", b"3"), (b"b", None))
            table.wait_until_caught_up(10)
            first, second = next(changes), next(changes)
            assert (first.key, first.value, first.deleted, first.offset) == (b"a", b"3", False, 3)
            assert (second.key, second.value, second.deleted) == (b"b", None, True)
            assert changes.get(0.01) is None
            threading.Timer(0.1, table.close).start()
            assert list(changes) == []
        assert changes.ended


def test_deserializers_and_typed_topics(cluster: FakeCluster) -> None:
    add(cluster, (b"a", b'{"x": 1}'), (b"b", None))
    with table_of(cluster, key_deserializer=bytes.decode, value_deserializer=json.loads) as table:
        table.wait_until_caught_up(10)
        assert dict(table) == {"a": {"x": 1}}
    cluster.create("u", schema=SCHEMA, key="id")
    cluster.append("u", pa.record_batch([["a", "b", "a"], [1, 2, 3]], schema=SCHEMA))
    cluster.append("u", pa.record_batch([["b"], pa.array([None], pa.int64())], schema=SCHEMA))
    with table_of(cluster, "u") as table:
        table.wait_until_caught_up(10)
        assert dict(table) == {"a": {"id": "a", "x": 3}}
    cluster.create("w", schema=SCHEMA)
    with pytest.raises(InvalidArgument, match="no key column"):
        table_of(cluster, "w")


def test_what_reading_fails_with_is_raised_by_whoever_waits(cluster: FakeCluster) -> None:
    add(cluster, (b"a", b"no json"))
    with table_of(cluster, value_deserializer=json.loads) as table:
        with pytest.raises(InvalidRecord, match="JSONDecodeError"):
            table.wait_until_caught_up(10)
        with pytest.raises(InvalidRecord):
            next(table.watch())


def test_waiting_has_an_end(cluster: FakeCluster) -> None:
    add(cluster, (b"a", b"1"))
    with table_of(cluster) as table:
        table.wait_until_caught_up(10)
        table._reached.clear()
        table._note_positions = lambda: None  # type: ignore[method-assign]
        with pytest.raises(RequestTimeout, match="has not caught up within"):
            table.wait_until_caught_up(0.05)


async def test_coroutines(cluster: FakeCluster) -> None:
    async with aio.Table(table_of(cluster)) as table:
        add(cluster, (b"a", b"1"))
        await table.wait_until_caught_up(10)
        assert table.sync["a"] == b"1"
        changes = table.watch()
        first = asyncio.ensure_future(anext(changes))
        await asyncio.to_thread(eventually, lambda: table.sync._watchers)
        add(cluster, (b"a", b"2"))
        assert (await first).value == b"2"
        await table.close()
        assert [change async for change in changes] == []
