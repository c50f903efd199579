"""What goes wrong in a simulated Raft cluster, and what its operator does meanwhile."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from raystream.core.raft import Raft
from raystream.core.raft_messages import Status, Voter, Voters
from tests.sim.world import Fault, Mixture

if TYPE_CHECKING:
    from tests.sim.raft import SimulatedNode, Simulation


class Faults:
    """One after the other, some kinds more often than others, as the run's seed says."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._rng = random.Random(simulation.rng.getrandbits(32))
        self._simulation.on_status = self._on_status
        self._harassment = self._rng.choice([0.0, 0.3, 0.9])
        pause_ms = self._rng.choice([30.0, 150.0, 400.0])
        kinds: list[tuple[Fault, float]] = [
            (self.crash, 4),
            (self.restart, 4),
            (self.crash_and_restart, 4),
            (self.crash_all, 1),
            (self.pause, 3),
            (self.resume, 3),
            (self.split, 3),
            (self.cut_one_way, 3),
            (self.isolate_leader, 3),
            (self.cut_pair, 3),
            (self.mend, 4),
            (self.wipe, 2),
            (self.transfer, 3),
            (self.change_voters, 8),
        ]
        repairs = (self.restart, self.resume, self.mend)
        self.happen = Mixture(simulation, self._rng, kinds, repairs=repairs, pause_ms=pause_ms).happen
        if simulation.focus:
            self._harassment = 0.0

    def _on_status(self, node: SimulatedNode, status: Status) -> None:
        """New leaders have it hardest: what goes wrong in Raft goes wrong around elections."""
        simulation = self._simulation
        if status.role != "leader" or simulation.calm or self._rng.random() > self._harassment:
            return
        kind = self._rng.choice(
            [
                simulation.crash,
                self._crash_and_restart,
                self._pause,
                self._cut_off,
                self._cut_off,
                self._leave_one,
                self._cut_pair,
                self._hand_over,
                self._change_voters_and_leave_one,
            ]
        )
        life = node.life

        def harass() -> None:
            if node.life == life and node.raft is not None and not node.paused and not simulation.calm:
                kind(node)
                simulation.at(simulation.now_ms + self._rng.uniform(100, 1_300), self._repair)

        links = (self._cut_off, self._leave_one, self._cut_pair)
        if kind in links and self._rng.random() < 0.5:
            harass()  # before anybody has heard of the new leader
        else:
            simulation.at(simulation.now_ms + self._rng.uniform(0, 60), harass)

    def _repair(self) -> None:
        if not self._simulation.calm:
            self.mend()
            self.resume()
            self.restart()

    def _any(self, nodes: list[SimulatedNode]) -> SimulatedNode | None:
        """One of them, more often one that leads."""
        leaders = [node for node in nodes if node.raft is not None and node.raft.role == "leader"]
        if leaders and self._rng.random() < 0.5:
            return self._rng.choice(leaders)
        return self._rng.choice(nodes) if nodes else None

    def _running(self) -> list[SimulatedNode]:
        return [node for node in self._simulation.nodes.values() if node.raft is not None]

    # Processes ------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        node = self._any(self._running())
        if node is not None:
            self._simulation.crash(node)

    def restart(self) -> None:
        down = [node for node in self._simulation.nodes.values() if node.raft is None]
        if down:
            self._simulation.start(self._rng.choice(down))

    def crash_and_restart(self) -> None:
        node = self._any(self._running())
        if node is not None:
            self._crash_and_restart(node)

    def _crash_and_restart(self, node: SimulatedNode) -> None:
        self._simulation.crash(node)
        self._simulation.start(node)

    def crash_all(self) -> None:
        for node in self._running():
            self._simulation.crash(node)
        for node in self._simulation.nodes.values():
            self._simulation.start(node)

    def pause(self) -> None:
        node = self._any([node for node in self._running() if not node.paused])
        if node is not None:
            self._pause(node)

    def _pause(self, node: SimulatedNode) -> None:
        self._simulation.note(f"pause {node.identity}")
        node.paused = True

    def resume(self) -> None:
        paused = [node for node in self._running() if node.paused]
        if paused:
            node = self._rng.choice(paused)
            self._simulation.note(f"resume {node.identity}")
            self._simulation.resume(node)

    # Network --------------------------------------------------------------------------------------------------------

    def split(self) -> None:
        ids = list(self._simulation.nodes)
        side = set(self._rng.sample(ids, self._rng.randint(1, len(ids) - 1)))
        self._simulation.cut |= {(a, b) for a in ids for b in ids if (a in side) != (b in side)}
        self._simulation.note(f"split off {side}")

    def cut_one_way(self) -> None:
        node = self._any(list(self._simulation.nodes.values()))
        assert node is not None
        others = self._rng.sample(list(self._simulation.nodes), self._rng.randint(1, len(self._simulation.nodes)))
        outwards = self._rng.random() < 0.5
        self._simulation.cut |= {(node.id, other) if outwards else (other, node.id) for other in others}
        self._simulation.note(f"cut {node.id} {'to' if outwards else 'from'} {others}")

    def isolate_leader(self) -> None:
        for node in self._simulation.leaders():
            self._cut_off(node)

    def _cut_off(self, node: SimulatedNode, but: int = 0) -> None:
        others = [other for other in self._simulation.nodes if other != but]
        self._simulation.cut |= {link for other in others for link in ((node.id, other), (other, node.id))}
        self._simulation.note(f"cut off {node.identity} from {others}")

    def cut_pair(self) -> None:
        for node in self._simulation.leaders():
            self._cut_pair(node)

    def _cut_pair(self, node: SimulatedNode) -> None:
        """One other loses sight of a leader whom the rest still follow."""
        assert node.raft is not None
        other = self._rng.choice(node.raft.voters).id
        self._simulation.cut |= {(node.id, other), (other, node.id)}
        self._simulation.note(f"cut between {node.id} and {other}")

    def _leave_one(self, node: SimulatedNode) -> None:
        self._cut_off(node, but=self._rng.choice(list(self._simulation.nodes)))

    def mend(self) -> None:
        self._simulation.cut.clear()
        self._simulation.note("mend")

    # Operators ------------------------------------------------------------------------------------------------------

    def transfer(self) -> None:
        for node in self._simulation.leaders():
            self._hand_over(node)

    def _hand_over(self, node: SimulatedNode) -> None:
        assert node.raft is not None
        others = [voter.id for voter in node.raft.voters if voter != node.identity]
        if node.raft.role == "leader" and others:
            to = self._rng.choice(others)
            self._simulation.note(f"{node.identity} hands over to {to}")
            self._simulation.ask(node, partial(Raft.transfer_leadership, to=to))
            if self._rng.random() < 0.5:
                self._simulation.at(self._simulation.now_ms + self._rng.uniform(0, 8), partial(self._cut_off, node))

    def change_voters(self) -> None:
        for node in self._simulation.leaders():
            self._simulation.ask(node, self._change_voters)

    def _change_voters_and_leave_one(self, node: SimulatedNode) -> None:
        if node.raft is not None and node.raft.role == "leader":
            self._simulation.ask(node, self._change_voters)
            self._leave_one(node)

    def _change_voters(self, raft: Raft) -> None:
        """Voters whose disk is gone leave first; else one leaves or comes, of whom many are watched meanwhile."""
        present = [node.identity for node in self._simulation.nodes.values()]
        lost = [voter for voter in raft.voters if voter not in present]
        for voter in lost[:1]:
            self._propose(raft, tuple(other for other in raft.voters if other != voter))
            return
        count = self._rng.randint(1, self._simulation.shell.max_voters_changed)
        new = [voter for voter in present if voter not in raft.voters]
        for voter in new:
            raft.observe(voter)
        caught_up = [voter for voter in new if self._is_caught_up(raft, voter)]
        if len(caught_up) >= count and (len(raft.voters) <= count or self._rng.random() < 0.5):
            self._propose(raft, (*raft.voters, *self._rng.sample(caught_up, count)))
        elif len(raft.voters) > count:
            leaving = self._rng.sample(raft.voters, count)
            self._propose(raft, tuple(voter for voter in raft.voters if voter not in leaving))

    def _propose(self, raft: Raft, voters: Voters) -> None:
        raft.propose_voters(voters)
        self._simulation.note(f"{raft.identity} proposes voters {[str(voter) for voter in voters]}")

    def _is_caught_up(self, raft: Raft, voter: Voter) -> bool:
        progress = raft.progress(voter)
        return progress is not None and progress.match_index >= raft.log.last_index - 3

    def wipe(self) -> None:
        """Takes a disk, where that loses nothing: a minority of the voters that everybody agrees on."""
        nodes = self._simulation.nodes.values()
        views = {node.disk.voters() for node in nodes}
        views |= {node.raft.voters for node in nodes if node.raft is not None}
        views -= {()}
        if len(views) != 1:
            return
        (voters,) = views
        node = self._rng.choice(list(nodes))
        gone = self._simulation.checks.lost_disks
        present = {other.identity for other in nodes if other is not node and other.identity not in gone}
        lost = sum(voter not in present for voter in voters)
        if lost <= (len(voters) - 1) // 2:
            self._simulation.wipe(node)
            self._simulation.start(node)
