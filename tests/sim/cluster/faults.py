"""What befalls a world: everything that RELIABILITY asks to survive, one after the other, as the seed says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from raystream.errors import RaystreamError
from tests.sim.cluster.machines import DRIVER, Machine

if TYPE_CHECKING:
    from raystream.cluster import Cluster
    from tests.sim.cluster.clients import Clients
    from tests.sim.cluster.world import World

DISK_BYTES: Final = 1 << 50


class Faults:
    """One kind is one method; what it breaks it mends again after a while, and `heal` mends all."""

    def __init__(
        self, world: World, cluster: Cluster, clients: Clients, topic: str, focus: tuple[str, ...] = ()
    ) -> None:
        self._world = world
        self._kernel = world.kernel
        self._cluster = cluster
        self._clients = clients
        self._topic = topic
        self._rng = rng = random.Random(world.rng.getrandbits(64))
        self.happened: Counter[str] = Counter()
        self._gone: set[int] = set()
        """Brokers whose disk is lost: they never come back."""
        kinds: list[tuple[Callable[[], None], float]] = [
            (self.kill_partition_actor, 3),
            (self.kill_broker, 3),
            (self.kill_coordinator, 2),
            (self.kill_machine, 3),
            (self.power_cut, 3),
            (self.blackout, 1),
            (self.blackout_at_sync, 1),
            (self.pause_process, 3),
            (self.pause_machine, 2),
            (self.pause_client, 2),
            (self.kill_client, 1),
            (self.cut_link, 3),
            (self.isolate, 3),
            (self.bad_network, 2),
            (self.slow_disk, 2),
            (self.io_error, 2),
            (self.full_disk, 2),
            (self.jump_clock, 1),
            (self.reassign, 1),
            (self.elect, 1),
            (self.drain, 1),
            (self.wipe, 1),
        ]
        self._kinds = [kind for kind, _ in kinds]
        self._weights = [weight * rng.choice([0, 1, 1, 3]) for _, weight in kinds]
        if focus:
            self._weights = [float(kind.__name__ in focus) for kind in self._kinds]
        if not any(self._weights):
            self._weights = [1.0] * len(kinds)
        self._pause_s = rng.choice([0.3, 0.8, 2.0])

    def run(self, until_s: float) -> None:
        """On a thread of its own."""
        while self._kernel.now_s < until_s:
            self._kernel.sleep(self._rng.expovariate(1 / self._pause_s))
            (kind,) = self._rng.choices(self._kinds, self._weights)
            kind()

    def _note(self, kind: str, what: Any = "") -> None:
        self.happened[kind] += 1
        self._world.note(f"FAULT {kind} {what}")

    def _later(self, low_s: float, high_s: float, mend: Callable[[], None]) -> None:
        self._kernel.call_later(self._rng.uniform(low_s, high_s), mend)

    # Processes ------------------------------------------------------------------------------------------------------

    def _kill_one(self, kind: str, actor_kind: str) -> None:
        actors = self._world.actors(actor_kind)
        if actors:
            actor = self._rng.choice(actors)
            self._note(kind, actor.process)
            actor.process.kill()

    def kill_partition_actor(self) -> None:
        self._kill_one("kill_partition_actor", "PartitionActor")

    def kill_broker(self) -> None:
        self._kill_one("kill_broker", "BrokerActor")

    def kill_coordinator(self) -> None:
        self._kill_one("kill_coordinator", "CoordinatorActor")

    def pause_process(self) -> None:
        kinds = self._rng.choice(["PartitionActor", "PartitionActor", "BrokerActor", "CoordinatorActor"])
        actors = self._world.actors(kinds)
        if actors:
            process = self._rng.choice(actors).process
            self._note("pause_process", process)
            process.pause()
            self._later(0.1, 6.0, process.resume)

    def pause_client(self) -> None:
        """For long enough now and then that others have its partitions meanwhile."""
        running = [process for process in self._clients.living if not process.paused]
        if running:
            process = self._rng.choice(running)
            self._note("pause_client", process)
            process.pause()
            self._later(*self._rng.choice([(0.1, 2.0), (4.0, 8.0)]), process.resume)

    def kill_client(self) -> None:
        """Another one comes in its place."""
        if self._clients.living:
            process = self._rng.choice(self._clients.living)
            self._note("kill_client", process)
            process.kill()
            self._operate("new_client", lambda: self._clients.start(producers=1, members=1))

    # Machines -------------------------------------------------------------------------------------------------------

    def _machine(self) -> Machine | None:
        """One that may die: not Ray's head."""
        up = [machine for machine in self._world.machines if machine.up and not machine.head]
        return self._rng.choice(up) if up else None

    def _end(self, kind: str, end: Callable[[Machine], None]) -> None:
        machine = self._machine()
        if machine is not None:
            self._note(kind, machine)
            end(machine)
            self._world.ray.node_died(machine)
            self._later(0.3, 6.0, lambda: self.start(machine))

    def start(self, machine: Machine) -> None:
        """It comes back, as another Ray node."""
        if not machine.up:
            machine.start()

    def kill_machine(self) -> None:
        self._end("kill_machine", Machine.kill_processes)

    def power_cut(self) -> None:
        self._end("power_cut", Machine.power_cut)

    def blackout(self) -> None:
        """All machines at once."""
        self._note("blackout")
        for machine in self._world.machines:
            if machine.up:
                machine.crash()

    def blackout_at_sync(self) -> None:
        """At the worst moment: one log is not synced yet, the others may be."""
        disk = self._rng.choice(self._world.machines).disk
        nth = self._rng.randint(1, 30)

        def before(path: str) -> None:
            nonlocal nth
            nth -= path.endswith(".log")
            if nth == 0:
                disk.before_sync = lambda path: None
                self._kernel.call_later(self._rng.uniform(0.0, 0.2), self.blackout)
                self._kernel.sleep(0.3)

        disk.before_sync = before

    def pause_machine(self) -> None:
        machine = self._rng.choice(self._world.machines)
        if machine.up:
            self._note("pause_machine", machine)
            for process in machine.processes():
                process.pause()
            self._later(0.1, 6.0, lambda: self._resume(machine))

    def _resume(self, machine: Machine) -> None:
        for process in machine.processes():
            if process.paused:
                process.resume()

    def wipe(self) -> None:
        """Another disk, where all others have everything."""
        machine = self._machine()
        broker = next((a.instance for a in self._world.actors("BrokerActor") if a.machine is machine), None)
        if machine is not None and broker is not None and broker._node is not None and self._world.is_healthy():
            gone = broker._broker_id
            self._gone.add(gone)
            self._note("wipe", machine)
            machine.kill_processes()
            machine.wipe()
            self._world.ray.node_died(machine)
            self._kernel.sleep(self._rng.uniform(0.3, 2.0))
            self.start(machine)
            self._operate("drain", lambda: self._drain_until_empty(gone))
            self._kernel.sleep(self._rng.uniform(3.0, 8.0))

    def _drain_until_empty(self, broker: int) -> None:
        """As docs/operations.md says of a lost disk: a broker with another id is to have what it held."""
        while True:
            try:
                return self._cluster.drain_broker(broker)
            except RaystreamError as error:
                self._world.note(f"drain: {error!r}")
            self._kernel.sleep(0.5)

    # Network --------------------------------------------------------------------------------------------------------

    def cut_link(self) -> None:
        one, other = self._rng.sample([DRIVER, *(machine.name for machine in self._world.machines)], 2)
        both_ways = self._rng.random() < 0.5
        self._note("cut_link" if both_ways else "cut_link_one_way", f"{one} {other}")
        self._world.network.cut_off(one, other, both_ways=both_ways)
        self._later(0.2, 7.0, lambda: self._world.network.cut.difference_update({(one, other), (other, one)}))

    def isolate(self) -> None:
        """One machine alone, for long enough now and then that another leads and is read from meanwhile."""
        names = [machine.name for machine in self._world.machines]
        one = self._rng.choice(names)
        if self._world.network.cut:
            return
        both_ways = self._rng.random() < 0.7
        self._note("isolate" if both_ways else "isolate_one_way", one)
        links = {(one, other) for other in names if other != one}
        if both_ways:
            links |= {(other, one) for other in names if other != one}
        self._world.network.cut |= links
        self._later(
            *self._rng.choice([(0.2, 3.0), (5.0, 9.0)]), lambda: self._world.network.cut.difference_update(links)
        )

    def bad_network(self) -> None:
        network, rng = self._world.network, self._rng
        self._note("bad_network")
        network.loss, network.slow = rng.choice([0.0, 0.02, 0.1]), rng.choice([0.0, 0.05, 0.3])
        network.repeats = rng.choice([0.0, 0.05, 0.2])
        self._later(0.5, 5.0, self._good_network)

    def _good_network(self) -> None:
        network = self._world.network
        network.loss = network.slow = network.repeats = 0.0

    # Disks and clocks -----------------------------------------------------------------------------------------------

    def slow_disk(self) -> None:
        disk = self._rng.choice(self._world.machines).disk
        self._note("slow_disk")
        disk.slow_syncs = self._rng.choice([0.05, 0.3])

        def mend() -> None:
            disk.slow_syncs = 0.0

        self._later(0.5, 5.0, mend)

    def io_error(self) -> None:
        machine = self._rng.choice(self._world.machines)
        if machine.up:
            self._note("io_error", machine)
            machine.disk.fail_soon(self._rng)

    def full_disk(self) -> None:
        disk = self._rng.choice(self._world.machines).disk
        self._note("full_disk")
        disk.capacity_bytes = sum(len(file.now) for file in disk._entries.values()) + self._rng.choice([0, 500, 5_000])

        def mend() -> None:
            disk.capacity_bytes = DISK_BYTES

        self._later(0.3, 3.0, mend)

    def jump_clock(self) -> None:
        machine = self._rng.choice(self._world.machines)
        self._note("jump_clock", machine)
        machine.wall_offset_s += self._rng.choice([-600.0, -3.0, 3.0, 600.0])

    # Operators ------------------------------------------------------------------------------------------------------

    def _operate(self, kind: str, work: Callable[[], Any]) -> None:
        self._note(kind)

        def run() -> None:
            try:
                work()
            except RaystreamError as error:
                self._world.note(f"{kind}: {error!r}")

        with self._kernel.init.current():
            self._kernel.thread(run)

    def _broker_ids(self) -> list[int]:
        image = self._world.image()
        return [] if image is None else sorted(set(image.brokers) - self._gone)

    def reassign(self) -> None:
        brokers = self._broker_ids()
        if len(brokers) >= 3:
            replicas = self._rng.sample(brokers, self._rng.choice([2, 3, 3]))
            self._operate("reassign", lambda: self._cluster.reassign(self._topic, {0: replicas}))

    def elect(self) -> None:
        self._operate("elect", lambda: self._cluster.elect_leaders(self._topic))

    def drain(self) -> None:
        brokers = self._broker_ids()
        if len(brokers) >= 4:
            broker = self._rng.choice(brokers)
            self._operate("drain", lambda: self._cluster.drain_broker(broker))
            self._later(1.0, 6.0, lambda: self._undrain(broker))

    def _undrain(self, broker: int) -> None:
        self._operate("undrain", lambda: self._cluster.drain_broker(broker, drain=False))

    # The end --------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Nothing is broken any more."""
        world = self._world
        world.network.heal()
        for machine in world.machines:
            machine.disk.capacity_bytes = DISK_BYTES
            machine.disk.slow_syncs = 0.0
            machine.disk.before_sync = lambda path: None
            machine.disk._fail_at = None
            self._resume(machine)
            self.start(machine)
        for process in self._clients.living:
            if process.paused:
                process.resume()
        for broker in self._broker_ids():
            self._undrain(broker)
