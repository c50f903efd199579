"""One run of the soak, in this process: a cluster, real clients, one kind of fault. What was seen goes to files.

python -m benchmarks.chaos.trial --fault leader --seconds 120 --turn 0 --every 12 --directory DIRECTORY

Made to be started by `benchmarks.chaos.runs`, which gives it a time limit and checks the history afterwards. The
directory's name is also that of the network namespaces. Writes `history`, and `outcome.json` at the end.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.chaos.faults import GROUPS_LOG, INJECTIONS, SETTLE_S
from benchmarks.chaos.namespaces import Network
from benchmarks.chaos.nodes import Nodes
from benchmarks.chaos.workloads import PARTITIONS_OF, Workloads
from raystream.testing.faults import Fault, FaultSchedule
from raystream.testing.history import Recorder

FIRST_S: Final = 10.0
HISTORY: Final = "history"
OUTCOME: Final = "outcome.json"


@dataclass
class Seen:
    """What the run itself knows; the rest is in its history."""

    injected: dict[str, int] = field(default_factory=dict)
    not_injected: list[str] = field(default_factory=list)
    client_errors: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", nargs="+", choices=INJECTIONS, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--turn", type=int, default=0, help="which of several runs it is: the first victim, the order")
    parser.add_argument("--every", type=float, required=True, help="seconds from one fault to the next")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--namespaces", action="store_true", help="every Ray node in a network namespace of its own")
    args = parser.parse_args()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    with ExitStack() as stack:
        network = None
        if args.namespaces:
            network = stack.enter_context(Network(args.directory.name))
            network.enter(0)
        nodes = stack.enter_context(Nodes(args.directory / "data", network=network))
        recorder = stack.enter_context(Recorder(args.directory / HISTORY))
        seen = _run(nodes, recorder, _order(args.fault, args.turn), args.seconds, args.every)
        (args.directory / OUTCOME).write_text(json.dumps(asdict(seen)))


def _order(faults: list[str], turn: int) -> Iterator[tuple[str, int]]:
    """Faults and their turns without end: all of them, in an order that is the run's own, then all again."""
    shuffled = random.Random(turn)
    for again in itertools.count(turn):
        for fault in shuffled.sample(faults, len(faults)):
            yield fault, again


def _run(nodes: Nodes, recorder: Recorder, order: Iterator[tuple[str, int]], seconds: float, every_s: float) -> Seen:
    nodes.wait_for_brokers(3)
    workloads = Workloads(nodes.cluster, recorder)
    nodes.wait_for_isr(GROUPS_LOG, 3)
    seen = Seen()
    busy = threading.Lock()

    def inject() -> None:
        fault, turn = next(order)
        recorder.invoke("faults", "fault", value=fault)
        with busy:
            try:
                INJECTIONS[fault](nodes, turn)
                seen.injected[fault] = seen.injected.get(fault, 0) + 1
            except Exception as error:  # noqa: BLE001 - the run goes on, and says so
                seen.not_injected.append(f"{fault}: {error!r}")
        recorder.info("faults", "fault", value=fault)

    with workloads.running(), FaultSchedule([Fault("fault", inject, every_s, first_s=FIRST_S)]):
        time.sleep(seconds)
    with busy:  # the last fault is over
        if nodes.network is not None:
            nodes.network.heal()
        nodes.replace_the_dead()
    nodes.wait_for_brokers(3)
    for topic in (GROUPS_LOG, *PARTITIONS_OF):
        nodes.wait_for_isr(topic, 3, SETTLE_S)
    wrong = workloads.finish()
    seen.client_errors = [*map(repr, workloads.failures), *wrong]
    return seen


if __name__ == "__main__":
    main()
