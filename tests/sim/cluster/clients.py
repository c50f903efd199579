"""Client processes of a world: each runs a workload in the one group, outside the cluster or on a machine."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from raystream.errors import RaystreamError
from raystream.testing.workload import Workload
from tests.sim.cluster.kernel import Process

if TYPE_CHECKING:
    from tests.sim.cluster.world import World

GROUP: Final = "workload"


class Clients:
    """Processes that may be paused and killed, also with the machine that they run on."""

    def __init__(self, world: World, topic: str, recorder: Any) -> None:
        self._world = world
        self._topic = topic
        self.recorder = recorder
        self._rng = rng = random.Random(world.rng.getrandbits(64))
        self._records_per_s = rng.choice([3.0, 6.0, 15.0])
        self._rejoin_s = rng.choice([3.0, 8.0])
        self._producer = {"linger_ms": rng.choice([0, 5]), "request_timeout_ms": rng.choice([2_000, 10_000])}
        self._consumer = {"session_timeout_ms": rng.choice([3_000, 10_000])}
        self._running: list[tuple[Process, Workload]] = []
        self._started = 0
        self._stopped = False
        self.failures: list[Exception] = []

    @property
    def living(self) -> list[Process]:
        """The processes that were not killed."""
        return [process for process, _ in self._running if process.alive]

    def start(self, producers: int, members: int) -> None:
        """One more process. Waits for the cluster to tell it of the topic."""
        up = [machine for machine in self._world.machines if machine.up]
        machine = self._rng.choice([None, None, *up])
        self._started += 1
        name = f"clients-{self._started}"
        process = self._world.kernel.spawn_process(name if machine is None else f"{machine}/{name}", machine)
        with process.current():
            self._world.kernel.thread(lambda: self._run(process, name, producers, members))

    def _run(self, process: Process, name: str, producers: int, members: int) -> None:
        workload = None
        while workload is None and not self._stopped:
            workload = self._workload(name, producers, members)
        if workload is None or self._stopped:  # it came up too late
            return
        self._running.append((process, workload))
        workload.start()

    def _workload(self, name: str, producers: int, members: int) -> Workload | None:
        try:
            return Workload(
                self._world.join(),
                self._topic,
                self.recorder,
                group=GROUP,
                name=name,
                producers=producers,
                members=members,
                records_per_s=self._records_per_s,
                rejoin_s=self._rejoin_s,
                seed=self._world.seed,
                producer_settings=self._producer,
                consumer_settings=self._consumer,
            )
        except RaystreamError as error:
            self._world.note(f"{name} cannot begin: {error!r}")
            self._world.kernel.sleep(0.5)
            return None

    def stop(self) -> None:
        """Ends those that live after what they have in hand."""
        self._stopped = True
        for process, workload in self._running:
            if process.alive:
                workload.stop()
            self.failures += workload.failures
