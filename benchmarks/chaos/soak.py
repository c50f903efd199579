"""Real clients on three Ray nodes while things die; what they saw is checked for anomalies.

python -m benchmarks.chaos.soak --fault mixed --seconds 600
python -m benchmarks.chaos.soak --fault leader --seconds 120

Faults: leader, follower, broker, coordinator, controller, pause (past the lease), node, mixed (all of them in turn).
Prints operations, anomalies and the longest time without an acknowledgement, and exits with 1 on an anomaly.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos.nodes import Nodes
from raystream.testing.faults import Fault, FaultSchedule
from raystream.testing.history import Recorder, check
from raystream.testing.workload import Workload

TOPIC = "soak"
PARTITIONS = 4
EVERY_S = 12.0
PAUSE_S = 5.0
SETTLE_S = 40.0
FAULTS = ("leader", "follower", "broker", "coordinator", "controller", "pause", "node")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=(*FAULTS, "mixed"), default="mixed")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--data-dir", default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, Nodes(Path(root) / "data") as nodes:
        return _soak(nodes, args.fault, args.seconds, Path(root))


def _soak(nodes: Nodes, fault: str, seconds: float, root: Path) -> int:
    nodes.wait_for_brokers(3)
    nodes.cluster.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=3)
    nodes.wait_for_isr("__consumer_offsets", 3)
    turn = itertools.count()
    chosen = FAULTS if fault == "mixed" else (fault,)

    def inject() -> None:
        number = next(turn)
        _INJECT[chosen[number % len(chosen)]](nodes, number % PARTITIONS)

    with Recorder(root / "history") as recorder:
        workloads = [
            Workload(nodes.cluster, TOPIC, recorder, producers=2, members=2, group=f"group-{n}", name=f"w{n}", seed=n)
            for n in range(2)
        ]
        with workloads[0], workloads[1], FaultSchedule([Fault(fault, inject, every_s=EVERY_S)], recorder) as schedule:
            time.sleep(seconds)
        nodes.wait_for_brokers(3)
        nodes.wait_for_isr(TOPIC, 3)
        for workload in workloads:
            workload.final_read()
    report = check(root / "history")
    failures = [failure for workload in workloads for failure in workload.failures]
    result = {
        "fault": fault,
        "seconds": seconds,
        "injected": len(schedule.injected),
        "not_injected": [repr(error) for error in schedule.failures],
        "operations": dict(report.operations),
        "ok": report.ok,
        "client_failures": [repr(error) for error in failures],
        "longest_gap_s": round(_longest_gap_s(root / "history"), 2),
    }
    print(json.dumps(result), flush=True)
    if not report.ok or failures:
        print(report)
    return 0 if report.ok and not failures else 1


def _longest_gap_s(history: Path) -> float:
    """The longest time in which no send was acknowledged."""
    times = []
    for line in history.read_text().splitlines():
        entry = json.loads(line)
        if entry.get("kind") == "send" and entry.get("type") == "ok":
            times.append(entry["time"] / 1e9)
    return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


def _leader(nodes: Nodes, partition: int) -> None:
    nodes.kill(nodes.pid_of(nodes.leader_actor(TOPIC, partition)))


def _follower(nodes: Nodes, partition: int) -> None:
    followers = nodes.follower_actors(TOPIC, partition)
    if followers:
        nodes.kill(nodes.pid_of(followers[0]))


def _broker(nodes: Nodes, partition: int) -> None:
    nodes.kill(nodes.broker(nodes.leader(TOPIC, partition)).pid)


def _coordinator(nodes: Nodes, partition: int) -> None:
    name = next((broker.coordinator for broker in nodes.brokers() if broker.coordinator), "")
    if name:
        nodes.kill(nodes.pid_of(name))


def _controller(nodes: Nodes, partition: int) -> None:
    controller = nodes.controller()
    if controller >= 0:
        nodes.kill(nodes.broker(controller).pid)


def _pause(nodes: Nodes, partition: int) -> None:
    """The leader's whole node stands still past its lease: its broker and the partition's actor."""
    pids = [nodes.broker(nodes.leader(TOPIC, partition)).pid, nodes.pid_of(nodes.leader_actor(TOPIC, partition))]
    threads = [threading.Thread(target=nodes.pause, args=(pid, PAUSE_S)) for pid in pids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _node(nodes: Nodes, partition: int) -> None:
    """A node is lost, and another comes with its disk."""
    nodes.kill_node(nodes.removable[partition % len(nodes.removable)])
    time.sleep(4.0)
    nodes.add_node()
    nodes.wait_for_brokers(3)
    nodes.wait_for_isr(TOPIC, 3, SETTLE_S)


_INJECT: dict[str, Callable[[Nodes, int], None]] = {name: globals()[f"_{name}"] for name in FAULTS}


if __name__ == "__main__":
    sys.exit(main())
