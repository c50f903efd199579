"""A simulated replicated partition: everything that happens follows from a seed. Simulated time is in milliseconds.

Brokers run the real Leader and Follower, a controller the real Elections over its image, under clocks of their own,
over disks that forget and a network that loses, repeats, delays and overtakes. Faults come for a while; then everything
heals, and within `HEAL_MS` all replicas must be in sync and have what was appended since.

    python -m tests.sim.replication --seed 17 [--verbose]      repeats one run
    python -m tests.sim.replication --seeds 10000              many, from --seed on
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from raystream.core.elections import MIN_INSYNC_REPLICAS, Elections, Records
from raystream.core.leader import Leader
from raystream.core.metadata import MetadataImage, PartitionRecord, TopicRecord
from raystream.core.replication import IsrChange, ReplicationSettings
from tests.sim.replication_broker import CONTROLLER, SESSION_MS, Broker, News
from tests.sim.replication_checks import Checks
from tests.sim.replication_faults import Faults
from tests.sim.world import Outcome, World, main, require

FAULTS_MS: Final = 5_000.0
HEAL_MS: Final = 5_000.0
TOPIC: Final = "t"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """How those around the core behave; the defaults are right, anything else is a planted bug."""

    acknowledges_what_is_flushed: bool = False
    registers_lost_disks_as_clean: bool = False

    def acknowledged_end(self, role: Leader) -> int:
        """Below it acks=all is answered."""
        return role.flushed_end_offset if self.acknowledges_what_is_flushed else role.high_watermark


class SimulatedController:
    """The elected controller, whichever broker that is: Raft sees to it that there is one history of decisions."""

    def __init__(self, world: Simulation, replicas: tuple[int, ...], brokers: int, min_insync_replicas: int) -> None:
        self._world = world
        self._heard_ms: dict[int, float] = {}
        self.image = MetadataImage()
        self.elections = Elections(self.image)
        for broker_id in range(1, brokers + 1):
            self._replay(self.elections.broker_registered(broker_id, clean=True))
            self._replay(self.elections.broker_unfenced(broker_id, 1))
        self.topic = TopicRecord(TOPIC, TOPIC, False, (), None, None, {}, len(replicas))
        self.set_min_insync_replicas(min_insync_replicas)
        self.decide([PartitionRecord(TOPIC, 0, replicas, replicas, replicas[0], 0, 0)])
        world.at(SESSION_MS / 10, self._tick)

    @property
    def record(self) -> PartitionRecord:
        return self.image.partition(TOPIC, 0)

    @property
    def min_insync_replicas(self) -> int:
        return int(self.image.topics_by_id[TOPIC].config[MIN_INSYNC_REPLICAS])

    def news(self) -> News:
        return News(self.image.version, self.record, self.min_insync_replicas)

    def _replay(self, records: Records) -> None:
        for record in records:
            self.image.replay(record)

    def decide(self, records: Records) -> None:
        """What Elections says becomes so, is checked, and is told."""
        if not records:
            return
        self._replay(records)
        for record in records:
            if isinstance(record, PartitionRecord):
                self._world.note(f"{record}")
                self._world.checks.decided(record)
        news = self.news()
        for broker in self._world.brokers.values():
            self._world.send(CONTROLLER, broker.id, lambda broker=broker: broker.learn(news))  # type: ignore[misc]

    def set_min_insync_replicas(self, count: int) -> None:
        """The topic's setting."""
        self._replay([dataclasses.replace(self.topic, config={MIN_INSYNC_REPLICAS: count})])
        self.decide(self.elections.min_insync_changed(TOPIC))

    def register(self, broker_id: int, *, clean: bool) -> tuple[int, News]:
        """A broker that has started."""
        broker = self._world.brokers[broker_id]
        # A loss is heard of once: what was lost before the last registration has been made up for since.
        clean = clean or not broker.lost or self._world.shell.registers_lost_disks_as_clean
        self.decide(self.elections.broker_registered(broker_id, clean=clean))
        broker.lost = broker.lost and clean and not self._world.shell.registers_lost_disks_as_clean
        self._heard_ms[broker_id] = self._world.now_ms
        return self.image.brokers[broker_id].incarnation, self.news()

    def heartbeat(self, broker_id: int, incarnation: int) -> News:
        """Raises Fenced for an earlier life."""
        self.decide(self.elections.broker_unfenced(broker_id, incarnation))
        self._heard_ms[broker_id] = self._world.now_ms
        return self.news()

    def replica_lost(self, broker_id: int) -> News:
        """A replica's actor has died; its successor waits until that is known."""
        if broker_id in self.record.replicas:
            self.decide(self.elections.replica_lost(TOPIC, 0, broker_id, fit=True))
        return self.news()

    def prefer(self) -> None:
        """The lead goes to the preferred replica, where that can have it."""
        self.decide(self.elections.elect(TOPIC, 0, preferred=True))

    def alter_isr(self, change: IsrChange) -> None:
        """Raises what Elections raises."""
        self.decide(self.elections.alter_isr(TOPIC, 0, change))

    def forget(self) -> None:
        """Another controller: it gives everybody time to be heard."""
        self._heard_ms = dict.fromkeys(self.image.brokers, self._world.now_ms)

    def _tick(self) -> None:
        world = self._world
        world.at(world.now_ms + SESSION_MS / 10, self._tick)
        for known in list(self.image.brokers.values()):
            heard_ms = self._heard_ms.setdefault(known.broker_id, world.now_ms)
            if not known.fenced and world.now_ms - heard_ms >= SESSION_MS:
                broker = world.brokers[known.broker_id]
                sure = broker.now_ms() < broker.lease_until_ms or broker.serves_reads()
                mine = broker.incarnation == known.incarnation
                require(not (sure and mine), f"lease: broker {broker.id} is fenced while it holds one, or serves reads")
                self.decide(self.elections.broker_fenced(known.broker_id, known.incarnation))
        if world.calm:
            self.prefer()


class Simulation(World):
    """One run; in its links, 0 is the controller. `shell` plants bugs around the core."""

    slowest_ms = 800.0

    def __init__(
        self, seed: int, *, shell: Shell | None = None, focus: tuple[str, ...] = (), verbose: bool = False
    ) -> None:
        super().__init__(seed, focus=focus, verbose=verbose)
        rng = self.rng
        self.shell = shell or Shell()
        self._values = 0
        self.settings = ReplicationSettings(
            max_lag_ms=rng.choice([300.0, 800.0]),
            heartbeat_interval_ms=80,
            request_timeout_ms=200,
            retry_ms=60,
            refused_join_ms=200,
            max_in_flight_batches=rng.choice([1, 4, 32]),
            max_in_flight_bytes=rng.choice([3, 1 << 20]),
            max_send_bytes=rng.choice([1, 3, 20]),
        )
        self.loss = rng.choice([0.0, 0.02, 0.1])
        self.repeats = rng.choice([0.0, 0.05])
        self.slow = rng.choice([0.0, 0.02, 0.1])
        self.slow_news = rng.choice([0.0, 0.2, 0.6])
        self.slow_sync = rng.choice([0.0, 0.05, 0.3])
        self.flush_os = rng.random() < 0.2
        """Written counts as flushed, so that a power cut may lose it."""
        self.keeps_early = rng.random() < 0.7
        self.held_offsets = rng.choice([0, 5, 1 << 20])
        brokers = rng.choice([3, 3, 4, 5])
        self.brokers = {broker_id: Broker(broker_id, self) for broker_id in range(1, brokers + 1)}
        self.checks = Checks(self.brokers)
        replicas = tuple(rng.sample(sorted(self.brokers), rng.choice([2, 3, 3, 3])))
        self.controller = SimulatedController(self, replicas, brokers, rng.choice([1, 2, 2, 2]))

    def on(self, broker: Broker, event: Callable[[], None]) -> Callable[[], None]:
        """An event at a broker in its present life: nothing once that has ended, and late where it is paused."""
        life = broker.life
        return lambda: self._happen(broker, life, event)

    def _happen(self, broker: Broker, life: int, event: Callable[[], None]) -> None:
        if broker.running and broker.life == life:
            if broker.paused:
                broker.later.append(lambda: self._happen(broker, life, event))
            else:
                event()
                broker.after()

    # Network --------------------------------------------------------------------------------------------------------

    def send(self, source: int, to: int, arrive: Callable[[], None], *, repeats: bool = True) -> None:
        """A message, between brokers, or from or to the controller."""

        def deliver() -> None:
            if to == CONTROLLER:
                arrive()
            else:
                broker = self.brokers[to]
                self._happen(broker, broker.life, arrive)

        slow = self.slow_news if source == CONTROLLER else None
        self.carry((source, to), deliver, slow=slow, repeats=repeats)

    # Users ----------------------------------------------------------------------------------------------------------

    def leading(self) -> list[tuple[Broker, Leader]]:
        """Those who believe they lead and can be asked."""
        running = (broker for broker in self.brokers.values() if not broker.paused)
        return [(broker, broker.role) for broker in running if isinstance(broker.role, Leader)]

    def append(self) -> None:
        """Producers ask whoever believes it leads."""
        for broker, _ in self.leading():
            self._values += 1
            broker.append(self._values, self.rng.choice([1, 1, 3]), acks_all=self.rng.random() < 0.8)
            broker.after()

    def has_healed(self, wanted: int) -> bool:
        """Nothing is under way any more, and every replica knows that it has all."""
        record = self.controller.record
        if record.elr or record.adding or record.removing or set(record.isr) != set(record.replicas):
            return False
        roles = [self.brokers[broker_id].role for broker_id in record.replicas]
        return record.leader == record.replicas[0] and all(
            role is not None and role.leader_epoch == record.leader_epoch and role.high_watermark >= wanted
            for role in roles
        )

    def heal(self) -> float:
        """Ends all faults; the time until everything is in sync again. Violation if never."""
        self.calm = True
        self.cut.clear()
        for broker in self.brokers.values():
            if not broker.running:
                broker.start()
            elif broker.paused:
                self.resume(broker)
        healed_ms = self.now_ms
        ends = [broker.log.end for broker in self.brokers.values()]
        wanted = max([len(self.checks.committed), *(end for end in ends if end <= len(self.checks.committed))]) + 1
        healed = self.run_until(healed_ms + HEAL_MS, until=lambda: self.has_healed(wanted))
        require(healed, f"liveness: {self.controller.record} is not in sync {HEAL_MS:.0f} ms after all faults ended")
        return self.now_ms - healed_ms

    def resume(self, broker: Broker) -> None:
        """What came during the pause is dealt with now."""
        broker.paused = False
        later, broker.later = broker.later, []
        for event in later:
            event()


def run(seed: int, *, shell: Shell | None = None, focus: tuple[str, ...] = (), verbose: bool = False) -> Outcome:
    """One run. Raises Violation where something is wrong."""
    simulation = Simulation(seed, shell=shell, focus=focus, verbose=verbose)
    for broker in simulation.brokers.values():
        broker.start()
    users = random.Random(simulation.rng.getrandbits(32))
    busy = users.choice([(4, 40), (4, 40), (30, 200)])

    def append() -> None:
        simulation.append()
        simulation.at(simulation.now_ms + (60 if simulation.calm else users.uniform(*busy)), append)

    simulation.at(users.uniform(0, 300), append)
    simulation.at(users.uniform(0, 500), Faults(simulation).happen)
    simulation.run_until(FAULTS_MS)
    healed_after_ms = simulation.heal()
    return Outcome(
        events=simulation.events,
        simulated_ms=simulation.now_ms,
        done=len(simulation.checks.acknowledged),
        happened=simulation.checks.happened,
        healed_after_ms=healed_after_ms,
    )


if __name__ == "__main__":
    sys.exit(main("tests.sim.replication", run, "batches acknowledged", __doc__))
