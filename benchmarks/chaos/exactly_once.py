"""A pipeline moves the real flights, exactly once, while its workers and what they stand on are killed at random.

python -m benchmarks.chaos.exactly_once --seconds 300 [--seed 1] [--rows N]

Three Ray nodes on this machine, both topics with three replicas. The flights that left New York in 2013 are published
at a rate that lasts the whole time; workers of `cluster.pipeline(…, exactly_once=True)`, each a process, write them to
another topic with running sums beside them. Faults: SIGKILL of a worker (another one takes its number), of the actor
that leads a partition of either topic or of the groups' log, and of the coordinator; and a worker is stopped until
after its successor has taken over, then goes on. At the end the output must be the input, row for row and carrier by
carrier in order, and a reader that was there all the time must have seen the same. Exits with 1 where it is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import ray

import raystream as rs
from benchmarks.chaos.faults import GROUPS_LOG
from benchmarks.chaos.moving import GROUP, SINK, SOURCE, Mover, differences, markers, sink_schema
from benchmarks.chaos.nodes import Nodes
from raystream.demo import flights

if TYPE_CHECKING:
    import pandas as pd

WORKERS: Final = 3
CHUNK_S: Final = 0.25
CHUNKS_IN_FLIGHT: Final = 20
FIRST_S: Final = 3.0
BETWEEN_S: Final = (3.0, 9.0)
PAUSE_S: Final = 5.0
"""Longer than a member's session."""
DRAIN_S: Final = 120.0
END_S: Final = 60.0
EXPECTED_ENDS: Final = ("killed", "FencedProducer", "stopped")


class Workers:
    """One actor for each number; where one has ended another takes its number."""

    def __init__(self, cluster: rs.Cluster, count: int) -> None:
        self._cluster = cluster
        self._kind = ray.remote(Mover)
        self._living: dict[int, tuple[Any, Any, int]] = {}
        self._past: list[tuple[Any, Any]] = []
        self.ended: Counter[str] = Counter()
        for number in range(count):
            self.start(number)

    def start(self, number: int) -> None:
        """A worker of that number; an earlier one that lives is left to find out."""
        if number in self._living:
            self._past.append(self._living.pop(number)[:2])
        actor = self._kind.options(num_cpus=0, max_concurrency=3, scheduling_strategy="SPREAD").remote(number)
        running = actor.run.remote(self._cluster)
        pid = ray.get(actor.pid.remote(END_S), timeout=END_S)
        self._living[number] = (actor, running, pid)

    def pid(self, number: int) -> int:
        return self._living[number][2]

    def replace_the_dead(self) -> None:
        """Looks who has ended, and why; a number that nobody has any more is given again."""
        for number, (_, running, _) in list(self._living.items()):
            if self._has_ended(running):
                del self._living[number]
                self.start(number)
        self._past = [(actor, running) for actor, running in self._past if not self._has_ended(running)]

    def _has_ended(self, running: Any, timeout_s: float = 0.0) -> bool:
        try:
            ray.get(running, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            return False
        except ray.exceptions.RayActorError:
            self.ended["killed"] += 1
        except ray.exceptions.RayTaskError as error:
            self.ended[type(error.cause).__name__] += 1
            if not isinstance(error.cause, rs.FencedProducer):
                print(f"a worker ended: {error.cause!r}", file=sys.stderr, flush=True)
        else:
            self.ended["stopped"] += 1
        return True

    def stop(self) -> None:
        """All, after the batch in hand; those that were replaced must have ended."""
        for actor, _, _ in self._living.values():
            actor.stop.remote()
        for _, running, _ in self._living.values():
            self._has_ended(running, END_S)
        for _, running in self._past:
            if not self._has_ended(running, END_S):
                self.ended["hanging"] += 1


class Chaos(threading.Thread):
    """Breaks one thing after the other until `stop`."""

    def __init__(self, nodes: Nodes, workers: Workers, seed: int) -> None:
        super().__init__(name="chaos", daemon=True)
        self._nodes = nodes
        self._workers = workers
        self._rng = random.Random(seed)
        self._ending = threading.Event()
        self.happened: Counter[str] = Counter()
        self.missed: list[str] = []
        self._kinds = {
            "worker killed": self._kill_worker,
            "worker stopped and succeeded": self._succeed_worker,
            "leader killed": self._kill_leader,
            "coordinator killed": self._kill_coordinator,
            "groups' log leader killed": self._kill_groups_log,
        }

    def run(self) -> None:
        wait_s = FIRST_S
        while not self._ending.wait(wait_s):
            kind = self._rng.choice(list(self._kinds))
            try:
                self._kinds[kind]()
                self.happened[kind] += 1
            except Exception as error:  # noqa: BLE001 - the victim may be gone already: the run goes on, and says so
                self.missed.append(f"{kind}: {error!r}")
            with contextlib.suppress(ray.exceptions.RayError):
                self._workers.replace_the_dead()
            wait_s = self._rng.uniform(*BETWEEN_S)

    def stop(self) -> None:
        """Nothing more is broken."""
        self._ending.set()
        self.join()
        self._workers.replace_the_dead()

    def _kill_worker(self) -> None:
        number = self._rng.randrange(WORKERS)
        self._nodes.kill(self._workers.pid(number))
        self._workers.start(number)

    def _succeed_worker(self) -> None:
        number = self._rng.randrange(WORKERS)
        pid = self._workers.pid(number)
        os.kill(pid, signal.SIGSTOP)
        try:
            self._workers.start(number)
            self._ending.wait(PAUSE_S)
        finally:
            os.kill(pid, signal.SIGCONT)

    def _kill_leader(self) -> None:
        topic, partition = self._rng.choice([SOURCE, SINK]), self._rng.randrange(flights.PARTITIONS)
        self._nodes.kill(self._nodes.pid_of(self._nodes.leader_actor(topic, partition)))

    def _kill_coordinator(self) -> None:
        """The one that answers: beside the leader of the groups' log."""
        self._nodes.kill(self._nodes.pid_of(self._nodes.broker(self._nodes.leader(GROUPS_LOG)).coordinator))

    def _kill_groups_log(self) -> None:
        self._nodes.kill(self._nodes.pid_of(self._nodes.leader_actor(GROUPS_LOG)))


class Reader(threading.Thread):
    """Reads what is committed as it comes, in no group."""

    def __init__(self, cluster: rs.Cluster) -> None:
        super().__init__(name="reader", daemon=True)
        self._cluster = cluster
        self._ending = threading.Event()
        self.parts: dict[int, list[pa.Table]] = {}
        self.rows = 0
        self.seen = time.monotonic()
        self.longest_s = 0.0
        """The longest time without a row."""
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            with self._cluster.consumer(SINK, start="earliest") as consumer:
                while not self._ending.is_set():
                    batch = consumer.poll(0.2)
                    if batch is None:
                        continue
                    now = time.monotonic()
                    self.longest_s = max(self.longest_s, now - self.seen) if self.rows else 0.0
                    self.seen = now
                    self.rows += len(batch)
                    self.parts.setdefault(batch.partition, []).append(batch.to_arrow())
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits for it
            self.failure = error

    def stop(self) -> None:
        self._ending.set()
        self.join()

    def table(self) -> pa.Table:
        """All rows by partition, in the order in which they came."""
        return pa.concat_tables([part for _, parts in sorted(self.parts.items()) for part in parts])


def publish(cluster: rs.Cluster, source: pd.DataFrame, seconds: float) -> None:
    """All rows, spread over the time; raises where one is not acknowledged."""
    rows = max(round(len(source) * CHUNK_S / seconds), 1)
    begun = time.monotonic()
    waiting: deque[Any] = deque()
    with cluster.producer() as producer:
        for at in range(0, len(source), rows):
            time.sleep(max(begun + at / len(source) * seconds - time.monotonic(), 0))
            waiting.append(producer.send_frame(SOURCE, source.iloc[at : at + rows]))
            if len(waiting) > CHUNKS_IN_FLIGHT:
                waiting.popleft().result()
        for sent in waiting:
            sent.result()


def run(nodes: Nodes, source: pd.DataFrame, seconds: float, seed: int) -> list[str]:
    """Prints what happened; answers what is not as it must be."""
    cluster = nodes.cluster
    nodes.wait_for_brokers(3)
    schema = pa.Schema.from_pandas(source, preserve_index=False)
    keyed: dict[str, Any] = {
        "partitions": flights.PARTITIONS,
        "replication_factor": 3,
        "key": flights.KEY,
        "time": flights.TIME,
    }
    for topic, columns in ((SOURCE, schema), (SINK, sink_schema(schema))):
        cluster.create_topic(topic, schema=columns, **keyed)
        nodes.wait_for_isr(topic, 3)
    workers, reader = Workers(cluster, WORKERS), Reader(cluster)
    nodes.wait_for_isr(GROUPS_LOG, 3)
    reader.start()
    chaos = Chaos(nodes, workers, seed)
    chaos.start()
    begun = time.monotonic()
    publish(cluster, source, seconds)
    published_s = time.monotonic() - begun
    chaos.stop()
    deadline = time.monotonic() + DRAIN_S
    while reader.rows < len(source) and reader.failure is None and time.monotonic() < deadline:
        workers.replace_the_dead()
        time.sleep(0.2)
    moved_s = reader.seen - begun
    workers.stop()
    reader.stop()
    moved = cluster.read(SINK).to_pandas()
    wrong = differences(source, moved, sum(row.lag or 0 for row in cluster.lag(GROUP)))
    if reader.failure is not None or not reader.table().to_pandas().equals(moved):
        wrong.append(f"a reader that was there all the time has not seen the same: {reader.failure!r}")
    if left := {how: count for how, count in workers.ended.items() if how not in EXPECTED_ENDS}:
        wrong.append(f"workers ended otherwise than they should: {left}")
    committed, aborted = markers(cluster)
    _show(
        {
            "published in": f"{published_s:.0f} s",
            "faults": f"{sum(chaos.happened.values())}: {_listed(chaos.happened)}",
            "rows in / out": f"{len(source):,} / {len(moved):,}",
            "transactions committed / aborted": f"{committed:,} / {aborted:,}",
            "workers": _listed(workers.ended),
            "longest time without a committed row": f"{reader.longest_s:.1f} s",
            "last row seen": f"{moved_s:.0f} s after the first was published",
            "output equals input, row for row; sums agree": "no" if wrong else "yes",
        }
    )
    for missed in chaos.missed:
        print(f"not injected: {missed}", flush=True)
    return wrong


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def _show(rows: dict[str, str]) -> None:
    print("\n".join(["| | |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows.items())]), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rows", type=int, default=None, help="only the first so many flights")
    parser.add_argument("--seed", type=int, default=1, help="which faults come in which order")
    parser.add_argument("--data-dir", default=None)
    args = parser.parse_args()
    source = flights.load().iloc[: args.rows]
    with tempfile.TemporaryDirectory(prefix="rs", dir=args.data_dir) as root, Nodes(Path(root)) as nodes:
        wrong = run(nodes, source, args.seconds, args.seed)
    for sentence in wrong:
        print(f"WRONG: {sentence}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
