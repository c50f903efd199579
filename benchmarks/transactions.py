"""What idempotence and transactions cost: throughput of sends in alternating pairs, and how long a commit takes.

*Plain* sends carry no producer id, and their partition checks no sequence. The product has no such setting (with
`acks=0` there are no sequences either, but no acknowledgements): the benchmark reaches into the producer. Everything
else is the same: `acks="all"`, an fdatasync behind every acknowledgement, five batches in flight.

python -m benchmarks.transactions --records 500000 --runs 7
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import raystream as rs
from benchmarks.harness import Case, Table, arguments, keep, machine, measure
from raystream import batch as b
from raystream import bench
from raystream.client.producer import Producer
from raystream.client.transactional_producer import TransactionalProducer

OF = 1_000
"""So many records are a transaction."""
PRODUCERS = 4
VALUE = os.urandom(bench.RECORD_BYTES)
LARGE = os.urandom(1_000)
TITLE = f"sends of {bench.RECORD_BYTES}-byte records, 4 partitions"
FLUSHED = f"plain, flushed every {OF:,}"
WAITED = "transactions, each waited for"
TOPIC = "sends"
_ids = itertools.count()


def plain(cluster: rs.Cluster) -> Producer:
    """A producer without an identity."""
    producer = cluster.producer()
    producer._sender._producer_id = b.NO_PRODUCER_ID
    return producer


def sends(
    producer: Producer, topic: str, records: int, *, flush_each: int | None = None, value: bytes = VALUE
) -> float:
    """Records a second, to the acknowledgement of the last; `flush_each` waits for those of every so many."""
    producer.send(topic, value).result(30)
    one = producer.send
    began = time.perf_counter()
    for _ in range(records // (flush_each or records)):
        for _ in range(flush_each or records):
            one(topic, value)
        producer.flush()
    return records / (time.perf_counter() - began)


def transactions(
    producer: TransactionalProducer, topic: str, records: int, *, value: bytes = VALUE, wait: bool = True
) -> float:
    """Records a second in transactions one after the other, to the commit of the last; `wait` for each commit before
    the next begins."""
    with producer.transaction():
        producer.send(topic, value)
    one = producer.send
    began = time.perf_counter()
    for _ in range(records // OF):
        with producer.transaction(wait=wait):
            for _ in range(OF):
                one(topic, value)
    producer.flush()
    return records / (time.perf_counter() - began)


def together(works: list[Callable[[], float]]) -> float:
    """What several threads do in all."""
    rates: list[float] = []
    threads = [threading.Thread(target=lambda work=work: rates.append(work())) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rates) == len(works), "a producer failed"
    return sum(rates)


def transactional(cluster: rs.Cluster) -> TransactionalProducer:
    producer = cluster.producer(transactional_id=f"bench-{next(_ids)}")
    assert isinstance(producer, TransactionalProducer)
    return producer


def throughput(cluster: rs.Cluster, topic: str, make: Callable[[], Producer], records: int, **how: Any) -> float:
    with make() as producer:
        return sends(producer, topic, records, **how)


def in_transactions(cluster: rs.Cluster, topic: str, records: int, **how: Any) -> float:
    with transactional(cluster) as producer:
        return transactions(producer, topic, records, **how)


def commits(cluster: rs.Cluster, topic: str, *, records: int, whole: bool, count: int = 200) -> float:
    """p50 milliseconds of `commit_transaction` of so many records that are acknowledged already; `whole`: from
    `begin_transaction` on, and nobody waits for the acknowledgement before."""
    times = []
    with transactional(cluster) as producer:
        for turn in range(count + 20):
            began = time.perf_counter()
            producer.begin_transaction()
            for _ in range(records):
                sent = producer.send(topic, VALUE)
                if not whole:
                    sent.result(30)
            if not whole:
                began = time.perf_counter()
            producer.commit_transaction()
            if turn >= 20:
                times.append((time.perf_counter() - began) * 1_000)
    return statistics.median(times)


def against_plain(cluster: rs.Cluster, records: int, runs: int) -> Table:
    """Idempotent sends and plain ones, in pairs."""
    table = measure(
        TITLE,
        "records/s",
        {
            "plain": lambda: throughput(cluster, TOPIC, lambda: plain(cluster), records),
            "idempotent": lambda: throughput(cluster, TOPIC, cluster.producer, records),
        },
        runs=runs,
    )
    table.show({"idempotent": "plain"})
    return table


def by_thousands(cluster: rs.Cluster, records: int, runs: int) -> Table:
    """Transactions, and what stands beside them: plain sends, also where every thousand is waited for."""

    def plainly(some: int = records, **how: Any) -> float:
        return throughput(cluster, TOPIC, lambda: plain(cluster), some, **how)

    def in_them(some: int = records, **how: Any) -> float:
        return in_transactions(cluster, TOPIC, some, wait=False, **how)

    def waited_for(some: int = records) -> float:
        return in_transactions(cluster, TOPIC, some)

    def several(work: Callable[[int], float]) -> float:
        return together([lambda: work(records // PRODUCERS) for _ in range(PRODUCERS)])

    many = f", {PRODUCERS} producers"
    large = ", 1 KB records"
    cases: dict[str, Case] = {
        "plain": plainly,
        "transactions": in_them,
        WAITED: waited_for,
        FLUSHED: lambda: plainly(flush_each=OF),
        f"plain{many}": lambda: several(plainly),
        f"transactions{many}": lambda: several(in_them),
        f"{WAITED}{many}": lambda: several(waited_for),
        f"plain{large}": lambda: plainly(records // 4, value=LARGE),
        f"transactions{large}": lambda: in_them(records // 4, value=LARGE),
    }
    table = measure(
        f"{TITLE}, and in transactions of {OF:,}",
        "records/s",
        cases,
        runs=runs,
    )
    ratios = {f"transactions{which}": f"plain{which}" for which in ("", many, large)}
    table.show({**ratios, WAITED: "plain", f"{WAITED}{many}": f"plain{many}", FLUSHED: "plain"})
    print(f"{WAITED} / {FLUSHED}: {table.ratio(WAITED, FLUSHED):.2f}")
    return table


def latencies(cluster: rs.Cluster, runs: int) -> Table:
    """How long commits take, in round trips."""
    call = "empty actor call, round trip"
    cases: dict[str, Case] = {
        "commit of an empty transaction": lambda: commits(cluster, TOPIC, records=0, whole=False),
        "commit of one record": lambda: commits(cluster, TOPIC, records=1, whole=False),
        "begin, send one record, commit": lambda: commits(cluster, TOPIC, records=1, whole=True),
    }
    table = measure(
        "commits, p50",
        "ms",
        {call: bench.empty_call, **cases},
        runs=runs,
        better="lower",
    )
    table.show(dict.fromkeys(cases, call))
    return table


def begin(cluster: rs.Cluster) -> None:
    """One topic for all cases: actors that start for another would take part in what is measured."""
    cluster.create_topic(TOPIC, partitions=bench.PARTITIONS)
    time.sleep(5)


def main() -> None:
    args = arguments(__doc__, records=500_000)
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, rs.connect(data_dir=root) as cluster:
        begin(cluster)
        tables = (
            latencies(cluster, args.runs),
            against_plain(cluster, args.records, args.runs),
            by_thousands(cluster, args.records, args.runs),
        )
    keep(args.json, *tables)


if __name__ == "__main__":
    main()
