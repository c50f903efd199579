"""One run of the whole product: a world, real clients that record what they do, faults, and then peace.

    python -m tests.sim.cluster --seed 17 [--verbose]      repeats one run
    python -m tests.sim.cluster --seeds 2000               many, from --seed on

Clients and brokers run for `FAULTS_S` simulated seconds while things break. Then everything is mended; within `HEAL_S`
every partition must have all its replicas in sync again, and the whole topic is read and the history checked.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any, Final

from raystream.cluster import Cluster
from raystream.testing import checker
from raystream.testing.operations import Operation
from raystream.testing.workload import Workload
from tests.sim.cluster.checks import LOOK_S, Checks
from tests.sim.cluster.clients import Clients
from tests.sim.cluster.faults import Faults
from tests.sim.cluster.world import World, run_in_world
from tests.sim.world import WRONG, Outcome, Violation, require

FAULTS_S: Final = 10.0
HEAL_S: Final = 60.0
SETTLE_S: Final = 2.5
"""By then whoever is dead is known to be."""
TOPIC: Final = "events"


class Recorder:
    """A `raystream.testing.Recorder` whose file is the world's history."""

    def __init__(self, world: World) -> None:
        self._world = world

    def record(self, process: str, type: Any, kind: Any, **fields: Any) -> None:
        self._world.history.append(
            Operation(time=int(self._world.kernel.now_s * 1e9), process=process, type=type, kind=kind, **fields)
        )
        if self._world.verbose and kind != "poll":
            self._world.note(str(self._world.history[-1]))

    def invoke(self, process: str, kind: Any, **fields: Any) -> None:
        self.record(process, "invoke", kind, **fields)

    def ok(self, process: str, kind: Any, **fields: Any) -> None:
        self.record(process, "ok", kind, **fields)

    def fail(self, process: str, kind: Any, **fields: Any) -> None:
        self.record(process, "fail", kind, **fields)

    def info(self, process: str, kind: Any, **fields: Any) -> None:
        self.record(process, "info", kind, **fields)


class Run:
    """The operator of one world."""

    def __init__(self, world: World, focus: tuple[str, ...]) -> None:
        self.world = world
        self._focus = focus
        self._rng = random.Random(world.rng.getrandbits(64))
        self.checks = Checks(world)
        self.outcome: Outcome

    def main(self) -> None:
        """The first process's work."""
        world, kernel = self.world, self.world.kernel
        cluster = world.connect()
        self._wait_until_healthy()
        self._create_topics(cluster)
        kernel.thread(self._look)
        clients = self.clients(world, TOPIC, Recorder(world))
        self._start(clients)
        faults = Faults(world, cluster, clients, TOPIC, self._focus)
        faults.run(kernel.now_s + FAULTS_S)
        healed_s = kernel.now_s
        faults.heal()
        kernel.sleep(SETTLE_S)
        self._wait_until_healthy()
        healed_after_s = kernel.now_s - healed_s
        self._go_on()
        clients.stop()
        failures = [error for error in clients.failures if not getattr(error, "retriable", False)]
        require(not failures, f"a client has failed: {failures}")
        self._finish(cluster, clients.recorder)
        self.checks.look()
        report = checker.check(world.history, ignore=self.ignored)
        require(report.ok, f"{report}")
        self.outcome = Outcome(
            events=kernel.events,
            simulated_ms=kernel.now_s * 1e3,
            done=sum(op.type == "ok" and self._counts(op) for op in world.history),
            happened=faults.happened,
            healed_after_ms=healed_after_s * 1e3,
        )

    # What differs from one kind of world to another -----------------------------------------------------------------

    clients: type[Clients] = Clients
    ignored: tuple[str, ...] = ()
    """Anomalies that nothing in this kind of world forbids."""

    def _create_topics(self, cluster: Cluster) -> None:
        cluster.create_topic(
            TOPIC,
            partitions=self._rng.choice([1, 1, 2, 3]),
            replication_factor=3,
            config={"segment_ms": self._rng.choice([1_000, 4_000, 600_000])},
        )

    def _start(self, clients: Clients) -> None:
        rng = self._rng
        clients.start(producers=rng.choice([1, 1, 2]), members=rng.choice([1, 2]))
        clients.start(producers=rng.choice([0, 1]), members=rng.choice([0, 1, 2]))

    def _go_on(self) -> None:
        """What clients do in peace before they are stopped."""
        self.world.kernel.sleep(self._rng.uniform(0.2, 1.0))

    def _finish(self, cluster: Cluster, recorder: Any) -> None:
        """Whatever is left is done, and everything is read."""
        Workload(cluster, TOPIC, recorder, producers=0, members=0).final_read()

    def _counts(self, op: Operation) -> bool:
        """Whether it is one of those of which a run says how many were done."""
        return op.kind == "send"

    # ----------------------------------------------------------------------------------------------------------------

    def _wait_until_healthy(self) -> None:
        end_s = self.world.kernel.now_s + HEAL_S
        while not self.world.is_healthy():
            if self.world.kernel.now_s > end_s:
                image = self.world.image()
                records = [] if image is None else [r for held in image.partitions.values() for r in held.values()]
                raise Violation(f"liveness: not in sync after {HEAL_S:.0f} s without faults: {records}")
            self.world.kernel.sleep(0.05)

    def _look(self) -> None:
        while True:
            self.world.kernel.sleep(LOOK_S)
            self.checks.look()


def run(seed: int, *, shell: object = None, focus: tuple[str, ...] = (), verbose: bool = False) -> Outcome:
    """One run, of another kind where `shell` is one. Raises Violation where something is wrong."""
    kind = shell if isinstance(shell, type) and issubclass(shell, Run) else Run
    try:
        return _run(kind, seed, focus, verbose)
    except (*WRONG, KeyboardInterrupt):
        raise
    except Exception as error:
        raise Violation(f"nobody expected {error!r}") from error


def _run(kind: type[Run], seed: int, focus: tuple[str, ...], verbose: bool) -> Outcome:
    machines = random.Random(seed).choice([3, 3, 3, 4])
    made: list[Run] = []
    with contextlib.ExitStack() as watching:

        def main(world: World) -> None:
            made.append(kind(world, focus))
            watching.enter_context(made[0].checks.watching())
            made[0].main()

        run_in_world(seed, machines, main, verbose=verbose)
    return made[0].outcome
