"""A simulated Raft cluster: everything that happens follows from a seed. Simulated time is in milliseconds.

Nodes run the real core under clocks of their own rate, over disks that forget and a network that loses, repeats, delays
and overtakes. Faults come for a while; then everything heals, and the cluster must commit again within `HEAL_MS`.

    python -m tests.sim.raft --seed 17 [--verbose]      repeats one run
    python -m tests.sim.raft --seeds 10000              many, from --seed on
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from raystream.core.raft import Raft
from raystream.core.raft_messages import NOTHING, Message, RaftSettings, Ready, Status, Voter, first_snapshot
from raystream.errors import Unavailable
from tests.sim.raft_checks import Checks, digest_after
from tests.sim.raft_disk import Disk, identity
from tests.sim.raft_faults import Faults
from tests.sim.world import Outcome, World, main, require

FAULTS_MS: Final = 8_000.0
HEAL_MS: Final = 4_000.0
CLOCK_DRIFT: Final = 0.1
NODES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """How a node's shell behaves; the defaults are right, anything else is a planted bug."""

    writes_votes: bool = True
    sends_after_sync: bool = True
    keeps_directory_id_when_wiped: bool = False
    max_voters_changed: int = 1


class ElectionTimeouts(random.Random):
    """Often the shortest: it is what a lease must stand against."""

    def __init__(self, seed: int, eager: float) -> None:
        super().__init__(seed)
        self._eager = eager

    def random(self) -> float:
        return 0.0 if super().random() < self._eager else super().random()


class SimulatedNode:
    """A broker: a disk that stays, and while it runs, a Raft node and a state machine."""

    def __init__(self, node_id: int, disk: Disk) -> None:
        self.id = node_id
        self.disk = disk
        self.identity = identity(node_id, disk)
        self.raft: Raft | None = None
        self.life = 0
        self.wipes = 0
        self.paused = False
        self.waiting: list[Callable[[], None]] = []
        """What came while it was paused."""
        self.syncing = False
        self.wake_at = float("inf")
        self.applied = (0, b"")
        self.clock_rate = 1.0
        self.clock_offset_ms = 0.0
        self.true_ms: Callable[[], float] = lambda: 0.0

    def now_ms(self) -> float:
        """Its own clock."""
        return self.clock_offset_ms + self.clock_rate * self.true_ms()

    @property
    def holds_lease(self) -> bool:
        lease_ms = None if self.raft is None else self.raft.lease_until_ms
        return lease_ms is not None and self.now_ms() < lease_ms


class Simulation(World):
    """One run. `shell` plants bugs in the nodes' shells."""

    def __init__(
        self, seed: int, *, shell: Shell | None = None, focus: tuple[str, ...] = (), verbose: bool = False
    ) -> None:
        super().__init__(seed, focus=focus, verbose=verbose)
        self.shell = shell or Shell()
        self.on_status: Callable[[SimulatedNode, Status], None] = lambda node, status: None
        self._proposals = 0
        self._wanted = 0
        rng = self.rng
        self.settings = RaftSettings(
            election_timeout_ms=300,
            heartbeat_interval_ms=60,
            clock_drift=CLOCK_DRIFT,
            max_append_bytes=rng.choice([1, 150, 1 << 20]),
            max_appends_in_flight=rng.choice([1, 4, 16]),
        )
        self.loss = rng.choice([0.0, 0.02, 0.1])
        self.repeats = rng.choice([0.0, 0.05])
        self.slow = rng.choice([0.0, 0.02, 0.1])
        self.slow_sync = rng.choice([0.0, 0.05, 0.3])
        self.compact_every = rng.choice([4, 12, 40])
        self.clock_rates = rng.choice([(1.0,), (1 - CLOCK_DRIFT, 1 + CLOCK_DRIFT)])
        self.eager = rng.choice([0.0, 0.5, 0.9])
        """How often an election timeout is about the shortest there is."""
        voters = tuple(Voter(node_id, "disk 0") for node_id in range(1, rng.choice([1, 2, 3, 3, 3, 3, 4, 5]) + 1))
        self.checks = Checks(voters)
        self.nodes = {
            node_id: SimulatedNode(
                node_id, Disk("disk 0", first_snapshot(voters) if node_id <= len(voters) else NOTHING)
            )
            for node_id in range(1, NODES + 1)
        }
        for node in self.nodes.values():
            node.true_ms = lambda: self.now_ms

    # Nodes ----------------------------------------------------------------------------------------------------------

    def start(self, node: SimulatedNode) -> None:
        """Starts a node from its disk, with a clock that starts anywhere."""
        node.identity = identity(node.id, node.disk)
        node.clock_rate = self.rng.choice(self.clock_rates)
        node.clock_offset_ms = self.rng.uniform(0, 1e6) - node.clock_rate * self.now_ms
        node.life += 1
        node.paused, node.syncing = False, False
        node.waiting.clear()
        node.wake_at = float("inf")
        snapshot = node.disk.snapshot
        node.applied = (snapshot.index, snapshot.data)
        node.raft = Raft(
            node.identity,
            hard_state=node.disk.hard_state,
            snapshot=snapshot,
            entries=tuple(node.disk.entries),
            rng=ElectionTimeouts(self.rng.getrandbits(32), self.eager),
            now_ms=node.now_ms(),
            settings=self.settings,
        )
        self.note(f"start {node.identity} {node.disk.hard_state} log end {node.disk.end()}")
        self.after(node)

    def crash(self, node: SimulatedNode) -> None:
        """Ends a node as a power cut would."""
        self.note(f"crash {node.identity}")
        node.raft = None
        node.disk.crash(self.rng)

    def wipe(self, node: SimulatedNode) -> None:
        """A crash that takes the disk with it."""
        self.note(f"wipe {node.identity}")
        node.raft = None
        self.checks.lost_disks[node.identity] = node.disk
        self.checks.happened["disk wiped"] += 1
        node.wipes += 1
        kept = self.shell.keeps_directory_id_when_wiped
        node.disk = Disk(node.disk.directory_id if kept else f"disk {node.wipes}")
        node.identity = identity(node.id, node.disk)

    def resume(self, node: SimulatedNode) -> None:
        """What came during the pause is dealt with now."""
        node.paused = False
        waiting, node.waiting = node.waiting, []
        for event in waiting:
            event()

    def on(self, node: SimulatedNode, event: Callable[[Raft], None]) -> Callable[[], None]:
        """An event at a node in its present life: nothing once that has ended, and late where it is paused."""
        life = node.life

        def happen() -> None:
            if node.raft is None or node.life != life:
                return
            if node.paused:
                node.waiting.append(happen)
                return
            event(node.raft)
            self.after(node)

        return happen

    def after(self, node: SimulatedNode) -> None:
        """The shell's loop, after anything happened at its node."""
        raft = node.raft
        assert raft is not None
        self.checks.stepped(node, self.nodes)
        while not node.syncing and raft.has_ready:
            ready = raft.ready()
            self.checks.ready(node, ready)
            node.disk.write(ready, with_votes=self.shell.writes_votes)
            if not self.shell.sends_after_sync:
                self._send(ready)
            if ready.must_sync:
                node.syncing = True

                def synced(_: Raft, ready: Ready = ready) -> None:
                    node.disk.sync()
                    node.syncing = False
                    self._finish(node, ready)

                self.at(self.now_ms + self.sync_ms(), self.on(node, synced))
            else:
                self._finish(node, ready)
        self._wake(node, raft)

    def _finish(self, node: SimulatedNode, ready: Ready) -> None:
        raft = node.raft
        assert raft is not None
        if ready.status is not None:
            self.on_status(node, ready.status)
        if self.shell.sends_after_sync:
            self._send(ready)
        if ready.snapshot is not None:
            self.checks.installed(node, ready.snapshot)
            node.applied = (ready.snapshot.index, ready.snapshot.data)
        for entry in ready.committed:
            index, digest = node.applied
            assert entry.index == index + 1
            node.applied = (entry.index, digest_after(digest, entry))
            self.checks.applied(node, entry, node.applied[1])
        if ready.status is not None:
            self.note(f"{node.identity} is {ready.status}")
        raft.advance()
        if node.applied[0] - raft.log.snapshot.index >= self.compact_every:
            node.disk.compact(raft.compact(*node.applied, keep_entries=self.rng.choice([0, 5])))
        self.checks.stepped(node, self.nodes)

    def _wake(self, node: SimulatedNode, raft: Raft) -> None:
        due_ms = max(self.now_ms, (raft.deadline_ms - node.clock_offset_ms) / node.clock_rate + 0.01)
        if due_ms < node.wake_at:
            node.wake_at = due_ms

            def tick(raft: Raft) -> None:
                if node.wake_at == due_ms:  # else an earlier one was asked for later
                    node.wake_at = float("inf")
                    raft.tick(node.now_ms())

            self.at(due_ms, self.on(node, tick))

    # Network --------------------------------------------------------------------------------------------------------

    def _send(self, ready: Ready) -> None:
        for message in ready.messages:
            self.checks.sent(message)
            self.carry((message.source.id, message.to.id), partial(self._arrive, message))

    def _arrive(self, message: Message) -> None:
        node = self.nodes[message.to.id]
        self.on(node, lambda raft: raft.step(message, node.now_ms()))()

    # Users ----------------------------------------------------------------------------------------------------------

    def leaders(self) -> list[SimulatedNode]:
        """Nodes that believe they lead and can be asked."""
        running = (node for node in self.nodes.values() if not node.paused)
        return [node for node in running if node.raft is not None and node.raft.role == "leader"]

    def propose(self) -> None:
        """A user asks whoever believes it leads."""
        for node in self.leaders():
            self._proposals += 1
            self.ask(node, lambda raft: raft.propose(b"%d" % self._proposals))

    def ask(self, node: SimulatedNode, question: Callable[[Raft], object]) -> None:
        """Something that a leader may refuse for now."""
        assert node.raft is not None
        with contextlib.suppress(Unavailable):
            question(node.raft)
        self.after(node)

    def has_healed(self) -> bool:
        """A leader may act, and every voter has applied all that was ever committed."""
        leading = [node for node in self.leaders() if node.raft is not None and node.raft.ready_to_lead]
        if not leading:
            return False
        raft = max((node.raft for node in leading if node.raft is not None), key=lambda raft: raft.term)
        end = len(self.checks.committed)
        voters = {node.identity: node for node in self.nodes.values()}
        return end >= self._wanted and all(voters[voter].applied[0] == end for voter in raft.voters if voter in voters)

    def heal(self) -> float:
        """Ends all faults; the time until the cluster has committed once more, everywhere. Violation if never."""
        self.calm = True
        self.cut.clear()
        for node in self.nodes.values():
            if node.raft is None:
                self.start(node)
            elif node.paused:
                self.resume(node)
        healed_ms = self.now_ms
        self._wanted = len(self.checks.committed) + 1
        healed = self.run_until(healed_ms + HEAL_MS, until=self.has_healed)
        require(healed, f"liveness: nothing was committed everywhere within {HEAL_MS:.0f} ms after all faults ended")
        return self.now_ms - healed_ms


def run(seed: int, *, shell: Shell | None = None, focus: tuple[str, ...] = (), verbose: bool = False) -> Outcome:
    """One run. Raises Violation, or AssertionError from the core itself, where something is wrong."""
    simulation = Simulation(seed, shell=shell, focus=focus, verbose=verbose)
    for node in simulation.nodes.values():
        simulation.start(node)
    users = random.Random(simulation.rng.getrandbits(32))
    busy = users.choice([(5, 60), (5, 60), (50, 400), (300, 3_000)])
    if focus:
        busy = (300, 3_000)

    def propose() -> None:
        simulation.propose()
        pause_ms = 100 if simulation.calm else users.uniform(*busy)
        simulation.at(simulation.now_ms + pause_ms, propose)

    faults = Faults(simulation)
    simulation.at(users.uniform(0, 600), propose)
    simulation.at(users.uniform(0, 1_500), faults.happen)
    simulation.run_until(FAULTS_MS)
    simulation.at(FAULTS_MS, propose)
    healed_after_ms = simulation.heal()
    return Outcome(
        events=simulation.events,
        simulated_ms=simulation.now_ms,
        done=len(simulation.checks.committed) - 1,
        happened=simulation.checks.happened,
        healed_after_ms=healed_after_ms,
    )


if __name__ == "__main__":
    sys.exit(main("tests.sim.raft", run, "commits", __doc__))
