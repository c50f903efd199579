"""Clients that are told to wait, wait."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from raystream import messages as m
from tests.fakes import cluster as producing
from tests.fakes import log as consuming

THROTTLE_MS = 300


def test_a_producer_waits_before_its_next_batch_and_loses_nothing() -> None:
    with producing.FakeCluster() as cluster:
        topic = cluster.create("t")
        partition: Any = topic.partitions[0]
        write, arrived = partition.append, []

        async def append(request: m.AppendRequest, batch: Any, *, timeout_ms: float) -> m.AppendReply:
            arrived.append((time.monotonic(), request.client_id))
            reply: m.AppendReply = await write(request, batch, timeout_ms=timeout_ms)
            return dataclasses.replace(reply, throttle_ms=THROTTLE_MS) if len(arrived) == 1 else reply

        partition.append = append
        with cluster.producer(linger_ms=0, client_id="etl") as producer:
            producer.send("t", b"1").result(10)
            later = [producer.send("t", b"2") for _ in range(10)]
            assert [sent.result(10).offset for sent in later] == list(range(1, 11))
    assert {client for _, client in arrived} == {"etl"}
    assert arrived[1][0] - arrived[0][0] >= THROTTLE_MS / 1000


@pytest.mark.parametrize("bounded", [False, True], ids=["consumer", "view"])
def test_a_reader_waits_before_its_next_fetch(bounded: bool) -> None:
    with consuming.FakeCluster() as cluster:
        cluster.create("t")
        for number in range(3):
            cluster.append("t", [str(number).encode()])
        partition: Any = cluster.partitions_by_topic()["t"][0]
        partition.max_fetch_bytes = 1
        read, arrived = partition.fetch, []

        async def fetch(request: m.FetchRequest, *, timeout_ms: float) -> m.FetchReply:
            arrived.append((time.monotonic(), request.client_id))
            reply: m.FetchReply = await read(request, timeout_ms=timeout_ms)
            return dataclasses.replace(reply, throttle_ms=THROTTLE_MS) if len(arrived) == 1 else reply

        partition.fetch = fetch
        if bounded:
            assert cluster.view("t").to_arrow()["offset"].to_pylist() == [0, 1, 2]
        else:
            with cluster.consumer("t", start="earliest", client_id="etl") as consumer:
                assert [record.offset for _, record in zip(range(3), consumer, strict=False)] == [0, 1, 2]
            assert {client for _, client in arrived} == {"etl"}
    assert arrived[1][0] - arrived[0][0] >= THROTTLE_MS / 1000
