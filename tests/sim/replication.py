"""A simulated replicated partition: everything that happens follows from a seed. Simulated time is in milliseconds.

Brokers run the real Leader and Follower, a controller the real Elections over its image, under clocks of their own,
over disks that forget and a network that loses, repeats, delays and overtakes. Faults come for a while; then everything
heals, and within `HEAL_MS` all replicas must be in sync and have what was appended since.

    python -m tests.sim.replication --seed 17 [--verbose]      repeats one run
    python -m tests.sim.replication --seeds 10000              many, from --seed on
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import heapq
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from raystream.core.elections import MIN_INSYNC_REPLICAS, Elections, Records
from raystream.core.leader import Leader
from raystream.core.metadata import MetadataImage, PartitionRecord, TopicRecord
from raystream.core.replication import IsrChange, ReplicationSettings
from raystream.errors import RaystreamError
from tests.sim.raft_checks import require
from tests.sim.replication_broker import CONTROLLER, Broker, News
from tests.sim.replication_checks import Checks
from tests.sim.replication_faults import Faults

FAULTS_MS: Final = 5_000.0
HEAL_MS: Final = 5_000.0
SESSION_MS: Final = 500.0
TOPIC: Final = "t"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """How those around the core behave; the defaults are right, anything else is a planted bug."""

    acknowledges_what_is_flushed: bool = False
    registers_lost_disks_as_clean: bool = False

    def acknowledged_end(self, role: Leader) -> int:
        """Below it acks=all is answered."""
        return role.flushed_end_offset if self.acknowledges_what_is_flushed else role.high_watermark


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    events: int
    simulated_ms: float
    acknowledged: int
    happened: Counter[str]
    healed_after_ms: float


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
                holds = isinstance(broker.role, Leader) and broker.role.lease_valid(broker.now_ms())
                mine = broker.incarnation == known.incarnation
                require(not (holds and mine), f"lease: broker {broker.id} is fenced while it holds one")
                self.decide(self.elections.broker_fenced(known.broker_id, known.incarnation))
        if world.calm:
            self.decide(self.elections.preferred_leaders())


class Simulation:
    """One run. `shell` plants bugs around the core; `focus` names the only kinds of faults that shall happen."""

    def __init__(
        self, seed: int, *, shell: Shell | None = None, focus: tuple[str, ...] = (), verbose: bool = False
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.shell = shell or Shell()
        self.focus = focus
        self.verbose = verbose
        self.now_ms = 0.0
        self.events = 0
        self.calm = False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._values = 0
        self.cut: set[tuple[int, int]] = set()
        """Links that are down, by direction; 0 is the controller."""
        self.settings = ReplicationSettings(
            max_lag_ms=rng.choice([300.0, 800.0]),
            lease_ms=SESSION_MS * 0.8,
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

    # Events ---------------------------------------------------------------------------------------------------------

    def at(self, time_ms: float, event: Callable[[], None]) -> None:
        """Has something happen."""
        self._serial += 1
        heapq.heappush(self._queue, (time_ms, self._serial, event))

    def run_until(self, end_ms: float, *, until: Callable[[], bool] = lambda: False) -> bool:
        """Runs events up to a time, or until something holds; says whether it came to hold."""
        while self._queue and self._queue[0][0] <= end_ms:
            self.now_ms, _, event = heapq.heappop(self._queue)
            event()
            self.events += 1
            if until():
                return True
        self.now_ms = end_ms
        return until()

    def note(self, text: str) -> None:
        """For whoever reads the run."""
        if self.verbose:
            print(f"{self.now_ms:10.2f}  {text}")

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

    def sync_ms(self) -> float:
        """How long a disk takes now."""
        slow = not self.calm and self.rng.random() < self.slow_sync
        return self.rng.uniform(10, 150) if slow else self.rng.uniform(0.2, 3)

    # Network --------------------------------------------------------------------------------------------------------

    def send(self, source: int, to: int, arrive: Callable[[], None], *, repeats: bool = True) -> None:
        """A message: it may be lost, come twice, late, and before those that were sent earlier."""
        rng = self.rng
        if not self.calm:
            if (source, to) in self.cut or rng.random() < self.loss:
                return
            if repeats and rng.random() < self.repeats:
                self._deliver(to, arrive, rng.uniform(0.2, 1_000))
            slow = self.slow_news if source == CONTROLLER else self.slow
            if rng.random() < slow:
                self._deliver(to, arrive, rng.uniform(5, 800))
                return
        self._deliver(to, arrive, rng.uniform(0.2, 3))

    def _deliver(self, to: int, arrive: Callable[[], None], delay_ms: float) -> None:
        def deliver() -> None:
            if to == CONTROLLER:
                arrive()
            else:
                broker = self.brokers[to]
                self._happen(broker, broker.life, arrive)

        self.at(self.now_ms + delay_ms, deliver)

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
        acknowledged=len(simulation.checks.acknowledged),
        happened=simulation.checks.happened,
        healed_after_ms=healed_after_ms,
    )


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.replication", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    outcomes = []
    for seed in range(options.seed, options.seed + options.seeds):
        try:
            outcomes.append(run(seed, verbose=options.verbose))
        except (AssertionError, RaystreamError) as error:
            print(f"seed {seed}: {error}\nrepeat it with: python -m tests.sim.replication --seed {seed} --verbose")
            return 1
    took_s = time.perf_counter() - started
    happened = sum((outcome.happened for outcome in outcomes), Counter[str]())
    simulated_s = sum(outcome.simulated_ms for outcome in outcomes) / 1e3
    print(
        f"{len(outcomes)} seeds, {sum(outcome.events for outcome in outcomes):,} events,"
        f" {sum(outcome.acknowledged for outcome in outcomes):,} batches acknowledged; {dict(happened)};"
        f" healed after at most {max(outcome.healed_after_ms for outcome in outcomes):.0f} ms;"
        f" {simulated_s:.0f} s simulated in {took_s:.1f} s: {simulated_s / took_s:.0f} per second"
    )
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
