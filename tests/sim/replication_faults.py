"""What goes wrong in a simulated replicated partition, and what its operator does meanwhile."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from raystream.core.leader import Leader
from tests.sim.replication_broker import CONTROLLER, Broker
from tests.sim.replication_log import ModelLog
from tests.sim.world import Fault, Mixture

if TYPE_CHECKING:
    from tests.sim.replication import Simulation

TOPIC = "t"


class Faults:
    """One after the other, some kinds more often than others, as the run's seed says."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._rng = random.Random(simulation.rng.getrandbits(32))
        pause_ms = self._rng.choice([30.0, 120.0, 300.0])
        kinds: list[tuple[Fault, float]] = [
            (self.power_cut, 3),
            (self.kill_and_restart, 3),
            (self.power_cut_and_restart, 3),
            (self.lose_actor, 3),
            (self.restart, 5),
            (self.pause, 3),
            (self.resume, 4),
            (self.split, 3),
            (self.cut_one_way, 3),
            (self.cut_pair, 3),
            (self.cut_from_controller, 3),
            (self.mend, 5),
            (self.wipe, 2),
            (self.wipe_and_restart, 1),
            (self.jump_clock, 1),
            (self.controller_change, 1),
            (self.reassign, 2),
            (self.reorder, 1),
            (self.prefer, 2),
            (self.change_min_insync, 1),
            (self.delete_records, 1),
        ]
        repairs = (self.restart, self.resume, self.mend)
        self.happen = Mixture(simulation, self._rng, kinds, repairs=repairs, pause_ms=pause_ms).happen

    def _running(self) -> list[Broker]:
        return [broker for broker in self._simulation.brokers.values() if broker.running]

    def _any(self) -> Broker | None:
        """One that runs, more often one that leads."""
        running = self._running()
        leaders = [broker for broker in running if isinstance(broker.role, Leader)]
        if leaders and self._rng.random() < 0.5:
            return self._rng.choice(leaders)
        return self._rng.choice(running) if running else None

    # Processes and disks --------------------------------------------------------------------------------------------

    def _may_lose(self, broker: Broker) -> bool:
        """Whether nothing is lost for good if this disk loses something now."""
        simulation = self._simulation
        record = simulation.controller.record
        others = [member for member in (*record.isr, *record.elr) if member != broker.id]
        alone = any(each.lost for each in simulation.brokers.values()) or not others
        return not alone and simulation.controller.min_insync_replicas >= 2

    def _stop(self, broker: Broker) -> None:
        self._simulation.note(f"broker {broker.id} stops")
        broker.stop()

    def _cut_power(self, broker: Broker) -> None:
        if not self._simulation.flush_os or self._may_lose(broker):
            self._stop(broker)
            broker.lost |= broker.log.power_cut(self._rng)
            self._simulation.checks.happened["writes lost"] += broker.lost

    def power_cut(self) -> None:
        broker = self._any()
        if broker is not None:
            self._cut_power(broker)

    def power_cut_and_restart(self) -> None:
        broker = self._any()
        if broker is not None:
            self._cut_power(broker)
            if not broker.running:
                broker.start()

    def kill_and_restart(self) -> None:
        broker = self._any()
        if broker is not None:
            self._stop(broker)
            broker.start()

    def lose_actor(self) -> None:
        broker = self._any()
        if broker is not None and not broker.paused:
            broker.lose_actor()

    def wipe(self) -> None:
        """A crash that takes the disk with it."""
        broker = self._any()
        if broker is not None and self._may_lose(broker):
            self._simulation.note(f"broker {broker.id} loses its disk")
            self._simulation.checks.happened["disk wiped"] += 1
            broker.stop()
            broker.log, broker.lost = ModelLog(), True

    def wipe_and_restart(self) -> None:
        """So soon that what it said in its earlier life may come later."""
        self.wipe()
        lost = [broker for broker in self._simulation.brokers.values() if broker.lost and not broker.running]
        for broker in lost:
            broker.start()

    def restart(self) -> None:
        down = [broker for broker in self._simulation.brokers.values() if not broker.running]
        if down:
            self._rng.choice(down).start()

    def pause(self) -> None:
        broker = self._any()
        if broker is not None:
            broker.paused = True

    def resume(self) -> None:
        paused = [broker for broker in self._running() if broker.paused]
        if paused:
            self._simulation.resume(self._rng.choice(paused))

    def jump_clock(self) -> None:
        broker = self._any()
        if broker is not None:
            broker.clock_offset_ms += self._rng.choice([50.0, 400.0, 5_000.0])

    # Links ----------------------------------------------------------------------------------------------------------

    def _cut(self, some: set[int], others: set[int]) -> None:
        self._simulation.cut |= {(a, b) for a in some for b in others}
        if self._rng.random() < 0.6:
            self._simulation.cut |= {(b, a) for a in some for b in others}

    def split(self) -> None:
        nodes = {CONTROLLER, *self._simulation.brokers}
        some = {node for node in nodes if self._rng.random() < 0.5}
        self._cut(some, nodes - some)

    def cut_one_way(self) -> None:
        a, b = self._rng.sample([CONTROLLER, *self._simulation.brokers], 2)
        self._simulation.cut.add((a, b))

    def cut_pair(self) -> None:
        a, b = self._rng.sample([CONTROLLER, *self._simulation.brokers], 2)
        self._simulation.cut |= {(a, b), (b, a)}

    def cut_from_controller(self) -> None:
        """The rest still hears it."""
        broker = self._any()
        if broker is not None:
            self._cut({CONTROLLER}, {broker.id})

    def mend(self) -> None:
        self._simulation.cut.clear()

    # The operator ---------------------------------------------------------------------------------------------------

    def controller_change(self) -> None:
        self._simulation.controller.forget()

    def _reassign(self, replicas: list[int]) -> None:
        controller = self._simulation.controller
        controller.decide(controller.elections.reassign(TOPIC, 0, replicas))

    def reassign(self) -> None:
        brokers = sorted(self._simulation.brokers)
        self._reassign(self._rng.sample(brokers, self._rng.choice([2, 3, 3])))

    def reorder(self) -> None:
        record = self._simulation.controller.record
        target = [broker for broker in record.replicas if broker not in record.removing]
        self._reassign(self._rng.sample(target, len(target)))

    def prefer(self) -> None:
        self._simulation.controller.prefer()

    def change_min_insync(self) -> None:
        if not any(broker.lost for broker in self._simulation.brokers.values()):
            self._simulation.controller.set_min_insync_replicas(self._rng.choice([1, 2, 3]))

    def delete_records(self) -> None:
        for broker, role in self._simulation.leading():
            if role.high_watermark > broker.log.start:
                offset = self._rng.randint(broker.log.start, role.high_watermark)
                cells = broker.log.cells
                at_end = offset >= broker.log.end
                broker.delete_before(offset if at_end else cells[offset - broker.log.start].base_offset)
                return
