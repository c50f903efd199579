"""A queue's records acquired and acknowledged one by one, and in batches, by several members in one process.

python -m benchmarks.queues --records 100000
"""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Callable

import raystream as rs
from benchmarks.harness import arguments, keep, machine, measure
from raystream import bench
from raystream.client.share_consumer import ShareConsumer

MEMBERS = 4
_shares = itertools.count()


def implicit(consumer: ShareConsumer, take: Callable[[int], bool]) -> None:
    """Each record is accepted when the next is asked for."""
    for _ in consumer:
        if not take(1):
            return


def explicit(consumer: ShareConsumer, take: Callable[[int], bool]) -> None:
    """Each record is acknowledged by a call of its own."""
    for record in consumer:
        consumer.acknowledge(record)
        if not take(1):
            return


def batches(consumer: ShareConsumer, take: Callable[[int], bool]) -> None:
    """Each batch is acknowledged as one."""
    while (batch := consumer.poll(10)) is not None:
        consumer.acknowledge(batch)
        if not take(len(batch)):
            return


def drained(
    cluster: rs.Cluster,
    topic: str,
    records: int,
    work: Callable[[ShareConsumer, Callable[[int], bool]], None],
    *,
    count: int = MEMBERS,
    most: int = 1_000,
) -> float:
    """Records per second from the first member's joining to the last acknowledgement's being durable."""
    share = f"bench-{next(_shares)}"
    left = records
    lock = threading.Lock()
    members: list[ShareConsumer] = []

    def take(count: int) -> bool:
        nonlocal left
        with lock:
            left -= count
            if left <= 0:
                for member in members:
                    member.stop()
            return left > 0

    def run(consumer: ShareConsumer) -> None:
        work(consumer, take)
        consumer.commit()

    begun = time.perf_counter()
    members += [
        cluster.consumer(topic, share=share, start="earliest", max_poll_records=most, max_in_flight=10_000)
        for _ in range(count)
    ]
    threads = [threading.Thread(target=run, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = records / (time.perf_counter() - begun)
    assert left == 0, f"{-left} records came twice"
    for member in members:
        member.close()
    cluster.delete_group(share)
    return rate


def main() -> None:
    args = arguments(__doc__, records=100_000)
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, rs.connect(data_dir=root) as cluster:
        with bench.fresh_topic(cluster) as topic:
            bench.send(cluster, topic, args.records - 1, keyed=False)  # it sends one more to begin with
            table = measure(
                f"a queue of 100-byte records on 4 partitions, {MEMBERS} members in one process",
                "records/s",
                {
                    "accepted when the next is asked for": lambda: drained(cluster, topic, args.records, implicit),
                    "acknowledged one by one": lambda: drained(cluster, topic, args.records, explicit),
                    "acknowledged in batches": lambda: drained(cluster, topic, args.records, batches),
                    "the same, one member, batches of 4,000": lambda: drained(
                        cluster, topic, args.records, batches, count=1, most=4_000
                    ),
                },
                runs=args.runs,
            )
        table.show()
    keep(args.json, table)


if __name__ == "__main__":
    main()
