"""Queues on real actors: members are killed, the coordinator is killed, and every record is accepted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import raystream as rs
from raystream.client.share_consumer import ShareConsumer
from tests.ray.actors import pids

RECORDS = 6_000
KILLED = 3
STAYING = 5
WORKER = """
    import threading, time
    import raystream as rs
    cluster = rs.connect(data_dir={data_dir!r})
    def work(number):
        with open({seen!r} + str(number), "w", buffering=1) as out:
            for record in cluster.consumer({topic!r}, share="workers", start="earliest", lock_timeout_ms=5_000):
                print(record.offset, file=out)
                time.sleep(0.002)
    for number in range({members}):
        threading.Thread(target=work, args=(number,)).start()
"""


def _until(holds: Callable[[], Any], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "this did not come about in time"
        time.sleep(0.05)


def test_every_record_is_accepted_though_members_and_the_coordinator_are_killed(
    cluster: rs.Cluster, topic_name: Callable[[], str], tmp_path: Path
) -> None:
    """Eight members on two partitions."""
    topic = cluster.create_topic(topic_name(), partitions=2).name
    with cluster.producer() as producer:
        producer.send_many(topic, [str(number) for number in range(RECORDS)])
    seen = str(tmp_path / "seen")
    script = textwrap.dedent(WORKER.format(data_dir=cluster.data_dir, topic=topic, seen=seen, members=KILLED))
    members: list[ShareConsumer] = []
    handled: list[set[tuple[int, int]]] = [set() for _ in range(STAYING)]

    def work(number: int) -> None:
        for record in members[number]:
            handled[number].add((record.partition, record.offset))
            time.sleep(0.002)

    with subprocess.Popen([sys.executable, "-c", script]) as dying:
        _until(lambda: all(Path(seen + str(number)).exists() for number in range(KILLED)))
        members += [
            cluster.consumer(topic, share="workers", start="earliest", lock_timeout_ms=5_000) for _ in range(STAYING)
        ]
        threads = [threading.Thread(target=work, args=(number,)) for number in range(STAYING)]
        for thread in threads:
            thread.start()
        _until(lambda: all(Path(seen + str(number)).read_text().count("\n") > 20 for number in range(KILLED)))
        dying.kill()
        for pid in pids("raystream-coordinator-"):
            os.kill(pid, signal.SIGKILL)
    _until(lambda: cluster.describe_group("workers").lag == 0)
    for member in members:
        member.stop()
    for thread in threads:
        thread.join(10)
    shares = cluster.describe_group("workers").share_list
    for member in members:
        member.close()
    assert sum(row.accepted for row in shares) == RECORDS
    assert sum(row.archived + row.dead_lettered + row.lost for row in shares) == 0
    assert all(handled), "everybody had some"


def test_what_cannot_be_handled_comes_to_the_dead_letter_topic(
    cluster: rs.Cluster, topic: str, topic_name: Callable[[], str]
) -> None:
    dead = cluster.create_topic(topic_name()).name
    with cluster.producer() as producer:
        producer.send_many(topic, [b"good", b"bad", b"good"])

    def handle(record: rs.Record) -> None:
        if record.value == b"bad":
            raise ValueError("bad")

    consumer = cluster.consumer(topic, share="careful", start="earliest", max_deliveries=2, dead_letter=dead)
    with consumer, cluster.consumer(dead, start="earliest") as letters:
        runner = threading.Thread(target=consumer.run, args=(handle,))
        runner.start()
        letter = next(iter(letters))
        consumer.stop()
        runner.join(10)
    headers = dict(letter.headers)
    assert (letter.value, headers["raystream.dead_letter.reason"]) == (b"bad", b"deliveries")
    assert headers["raystream.dead_letter.deliveries"] == b"2"


def test_workers_of_a_queue_run_as_ray_tasks(cluster: rs.Cluster, topic_name: Callable[[], str]) -> None:
    """Two on one partition, of a pattern."""
    topic = cluster.create_topic(topic_name(), partitions=1).name
    with cluster.producer() as producer:
        producer.send_many(topic, [str(number) for number in range(40)])
    share = f"tasks-of-{topic}"
    job = cluster.run_consumers(re.compile(topic), share=share, each_record=repr, workers=2, start="earliest")
    try:
        _until(lambda: share in {group.name for group in cluster.groups()})  # workers have a process, and join then
        _until(lambda: [part.accepted for part in cluster.describe_group(share).share_list] == [40])
        _until(lambda: cluster.describe_group(share).members == 2)
        assert job.group == share
    finally:
        job.stop()
    assert [worker.state for worker in job.status()] == ["finished"] * 2
