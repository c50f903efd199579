"""What topics keep, on real actors: retention and compaction while the topic is in use."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

import raystream as rs

WAIT_S = 40.0


def eventually(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.2)


def test_a_compacted_topic_is_a_table(cluster: rs.Cluster, topic_name: Callable[[], str]) -> None:
    config = {"cleanup_policy": "compact", "segment_bytes": 1 << 20}
    topic = cluster.create_topic(topic_name(), config=config).name
    with cluster.producer() as producer, cluster.table(topic) as table:
        for number in range(600):
            producer.send(topic, b"%d" % number + b"x" * 10_000, key=f"k{number % 7}")
            if number % 50 == 49:
                producer.flush()
        with pytest.raises(rs.InvalidRecord, match="give a key"):
            producer.send(topic, b"no key")
        producer.send(topic, None, key="k0")
        producer.flush()
        view = cluster.read(topic)
        table.wait_until_caught_up(WAIT_S)
        assert len(table) == 6 and table["k4"].startswith(b"599x")
        eventually(lambda: cluster.read(topic).count() < 300)
        rows = view.to_arrow()
        assert rows.num_rows == view.count() < 300
        assert rows["offset"].to_pylist() == sorted(set(rows["offset"].to_pylist()))
        latest = view.latest().to_arrow()
        assert dict(zip(latest["key"].to_pylist(), latest["value"].to_pylist(), strict=True)) == dict(table)
        with cluster.consumer(topic, start="earliest") as consumer:
            read = [record.offset for batch in iter(lambda: consumer.poll(2.0), None) for record in batch]
        assert read == rows["offset"].to_pylist()


def test_records_past_their_retention_go(cluster: rs.Cluster, topic: str) -> None:
    with cluster.producer() as producer:
        producer.send_many(topic, [b"old"] * 10)
        producer.flush()
        cluster.alter_topic(topic, config={"retention_ms": 100})
        eventually(lambda: cluster.read(topic).count() == 0)
        cluster.alter_topic(topic, config={"retention_ms": None})
        assert producer.send(topic, b"new").result(timeout=10).offset == 10
    assert [record.value for record in cluster.read(topic).records()] == [b"new"]
