"""How long a writer waits when something dies: the time from a fault to the next acknowledged append.

python -m benchmarks.chaos.failover [--runs 10] [--faults leader,node,pause,controller,follower,broker]

Three Ray nodes on this machine, a topic with three replicas, a producer that sends one record after the other with
acks="all". After each fault everything is let heal. Every acknowledged record must be there at the end.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import raystream as rs
from benchmarks.chaos.nodes import Nodes

TOPIC = "failover"
PAUSE_S = 6.0
FAULTS = ("leader", "follower", "broker", "controller", "pause", "node")


class Writer:
    """Sends record after record and notes when each was acknowledged."""

    def __init__(self, cluster: rs.Cluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self.acknowledged: list[tuple[float, int]] = []
        self.errors: list[Exception] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        with self._cluster.producer(linger_ms=0) as producer:
            while not self._stop.is_set():
                try:
                    producer.send(TOPIC, str(number)).result(timeout=60)
                    self.acknowledged.append((time.monotonic(), number))
                except Exception as error:  # noqa: BLE001 - it is counted
                    self.errors.append(error)
                number += 1
                time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(90)

    def gap_after(self, moment: float, timeout_s: float = 60.0) -> float:
        """The longest time without an acknowledgement that began around `moment`, once it is over."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            time.sleep(0.2)
            times = [t for t, _ in self.acknowledged if t >= moment - 0.5]
            gaps = [b - a for a, b in itertools.pairwise(times)]
            if times and time.monotonic() - moment > 8.0 and time.monotonic() - times[-1] < 0.5:
                return max(gaps, default=0.0)
        raise TimeoutError("the writer does not go on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--data-dir", default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, Nodes(Path(root)) as nodes:
        nodes.wait_for_brokers(3)
        nodes.cluster.create_topic(TOPIC, replication_factor=3)
        for fault in args.faults.split(","):
            _measure(nodes, fault, args.runs)


def _measure(nodes: Nodes, fault: str, runs: int) -> None:
    inject: Callable[[Nodes], object] = globals()[f"_{fault}"]
    writer = Writer(nodes.cluster)
    waits = []
    for _ in range(runs):
        nodes.wait_for_isr(TOPIC, 3)
        time.sleep(1.0)
        moment = time.monotonic()
        heal = inject(nodes)
        waits.append(writer.gap_after(moment))
        if callable(heal):
            heal()
            nodes.wait_for_brokers(3)
    writer.stop()
    lost = _lost(nodes.cluster, writer)
    waits.sort()
    print(
        f"{fault:>10}: next acknowledged append after p50 {statistics.median(waits):.2f} s, worst {waits[-1]:.2f} s "
        f"({runs} runs); {len(writer.acknowledged):,} acknowledged, {lost} lost, {len(writer.errors)} errors",
        flush=True,
    )


def _lost(cluster: rs.Cluster, writer: Writer) -> int:
    there = set(cluster.read(TOPIC).to_arrow().column("value").to_pylist())
    return sum(str(number).encode() not in there for _, number in writer.acknowledged)


def _leader(nodes: Nodes) -> None:
    nodes.kill(nodes.pid_of(nodes.leader_actor(TOPIC)))


def _follower(nodes: Nodes) -> None:
    nodes.kill(nodes.pid_of(nodes.follower_actors(TOPIC)[0]))


def _broker(nodes: Nodes) -> None:
    nodes.kill(nodes.broker(nodes.leader(TOPIC)).pid)


def _controller(nodes: Nodes) -> None:
    nodes.kill(nodes.broker(nodes.controller()).pid)


def _pause(nodes: Nodes) -> None:
    leader = nodes.leader(TOPIC)
    pids = [nodes.pid_of(nodes.leader_actor(TOPIC)), nodes.broker(leader).pid]
    threads = [threading.Thread(target=nodes.pause, args=(pid, PAUSE_S)) for pid in pids]
    for thread in threads:
        thread.start()


def _node(nodes: Nodes) -> Callable[[], object]:
    leading = nodes.broker(nodes.leader(TOPIC)).node_id
    nodes.kill_node(leading if leading in nodes.removable else nodes.removable[0])
    return nodes.add_node


if __name__ == "__main__":
    main()
