"""The Raft node's thread over disks in memory: one voter, and three with a network between them."""

from __future__ import annotations

import errno
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest

from raystream.actors import raft_node
from raystream.actors.raft_disk import RaftDisk
from raystream.actors.raft_node import RaftNode
from raystream.clock import Clock, ManualClock, SystemClock
from raystream.core import raft_messages as r
from raystream.errors import ActorLost, InvalidArgument, NotLeader, RequestTimeout, StorageError
from raystream.storage.memory_files import MemoryFiles

DIRECTORY = "root/broker-0/metadata"
SETTINGS = r.RaftSettings(election_timeout_ms=250, heartbeat_interval_ms=50)
WAIT_MS = 10_000.0
VOTERS = tuple(r.Voter(node_id, f"disk {node_id}") for node_id in (1, 2, 3))
FOUR = r.Voter(4, "disk 4")


class StoppableClock(SystemClock):
    """The machine's, but for when it is stopped: nobody can lose the lead then, however slow the machine is."""

    _stopped_ms: float | None = None

    def monotonic_ms(self) -> float:
        return super().monotonic_ms() if self._stopped_ms is None else self._stopped_ms

    def stop(self) -> None:
        self._stopped_ms = self.monotonic_ms()

    def go_on(self) -> None:
        self._stopped_ms = None


class Broker:
    """A disk that stays, and while it runs, a node and the list of all that was applied."""

    def __init__(self, identity: r.Voter, network: Network | None = None, clock: Clock | None = None) -> None:
        self.identity = identity
        self.network = network or Network()
        self.clock = clock or SystemClock()
        self.files = MemoryFiles()
        self.applied: list[str] = []
        self.restored: list[int] = []
        self.statuses: list[r.Status] = []
        self.failures: list[BaseException] = []
        self.threads: set[str] = set()
        self.every = 1_000_000
        self.disk: RaftDisk
        self.node: RaftNode

    def format(self, snapshot: r.Snapshot) -> None:
        RaftDisk.format(self.files, DIRECTORY, identity=self.identity, cluster_id="c", snapshot=snapshot)

    def make(self) -> RaftNode:
        self.applied, self.restored = [], []
        self.disk = RaftDisk.open(self.files, DIRECTORY)
        self.node = RaftNode(
            self.disk,
            clock=self.clock,
            rng=random.Random(self.identity.id),
            settings=SETTINGS,
            send=self.network.send,
            apply=self.apply,
            restore=self.restore,
            take_snapshot=lambda: json.dumps(self.applied).encode(),
            changed=self.statuses.append,
            failed=self.failures.append,
            snapshot_every_entries=self.every,
            keep_entries=0,
        )
        return self.node

    def start(self) -> RaftNode:
        node = self.make()
        self.network.nodes[self.identity] = node
        node.start()
        return node

    def stop(self) -> None:
        self.network.nodes.pop(self.identity, None)
        self.node.stop()

    def apply(self, data: Sequence[bytes]) -> None:
        self.threads.add(threading.current_thread().name)
        self.applied += [entry.decode() for entry in data]

    def restore(self, data: bytes) -> None:
        self.restored.append(len(data))
        self.applied = json.loads(data)


class Network:
    """Hands messages over at once, on the sender's thread, but for those to or from whom is cut off."""

    def __init__(self) -> None:
        self.nodes: dict[r.Voter, RaftNode] = {}
        self.cut: set[r.Voter] = set()
        self.sent: list[r.Message] = []

    def send(self, message: r.Message) -> None:
        self.sent.append(message)
        node = self.nodes.get(message.to)
        if node is not None and not self.cut & {message.source, message.to}:
            node.step((message,))


class Cluster:
    """Three voters, and whoever joins."""

    def __init__(self) -> None:
        self.network = Network()
        self.clock = StoppableClock()
        self.brokers = {voter: Broker(voter, self.network, self.clock) for voter in VOTERS}

    def start(self) -> None:
        for broker in self.brokers.values():
            if not RaftDisk.exists(broker.files, DIRECTORY):
                broker.format(r.first_snapshot(VOTERS))
            broker.start()

    def stop(self) -> None:
        for broker in self.brokers.values():
            broker.stop()

    def restart(self, *, every: int) -> None:
        """With snapshots every so many entries."""
        self.stop()
        for broker in self.brokers.values():
            broker.every = every
        self.start()

    def join(self, voter: r.Voter) -> Broker:
        broker = self.brokers[voter] = Broker(voter, self.network, self.clock)
        broker.format(r.NOTHING)
        broker.start()
        return broker

    def leader(self) -> Broker:
        found: list[Broker] = []

        def leads() -> bool:
            running = [b for b in self.brokers.values() if b.identity in self.network.nodes]
            reachable = [b for b in running if b.identity not in self.network.cut]
            found[:] = [broker for broker in reachable if broker.node.status.ready_to_lead]
            return len(found) == 1 and all(b.node.status.leader == found[0].identity for b in reachable)

        until(leads)
        return found[0]

    def steady_leader(self) -> Broker:
        """The leader, for as long as time stands still."""
        leader = self.leader()
        self.clock.stop()
        return leader

    def others(self, than: Broker) -> list[Broker]:
        return [broker for broker in self.brokers.values() if broker is not than]

    def await_applied(self, *values: str) -> None:
        """On all that run, exactly these in this order."""
        running = [broker for broker in self.brokers.values() if broker.identity in self.network.nodes]
        until(lambda: all(broker.applied == list(values) for broker in running))

    def propose(self, *values: str) -> None:
        """Wherever the leader is; until it is certain."""
        for value in values:
            while True:
                with suppress(NotLeader):
                    self.leader().node.propose(value.encode(), WAIT_MS)
                    break


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def propose(node: RaftNode, *values: str) -> None:
    for value in values:
        node.propose(value.encode(), WAIT_MS)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_MS / 1000
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.001)


def in_background(node: RaftNode, data: bytes) -> Future[int]:
    """Proposes at a leader, on another thread; returns when the entry is in its log."""
    end = node.last_index
    with_one = ThreadPoolExecutor(1)
    outcome = with_one.submit(node.propose, data, WAIT_MS)
    with_one.shutdown(wait=False)
    until(lambda: node.last_index > end)
    return outcome


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    made.start()
    yield made
    made.clock.go_on()
    made.stop()
    assert [broker.failures for broker in made.brokers.values() if broker.failures] == []


@pytest.fixture
def alone() -> Iterator[Broker]:
    """A sole voter, not started, whose time stands still."""
    broker = Broker(VOTERS[0], clock=ManualClock())
    broker.format(r.first_snapshot(VOTERS[:1]))
    yield broker
    broker.stop()


# One voter ----------------------------------------------------------------------------------------------------------


def test_a_sole_voter_leads_when_it_has_started_and_commits_without_time_passing(alone: Broker) -> None:
    node = alone.start()
    assert node.status == r.Status("leader", 1, alone.identity, True)
    assert alone.statuses[-1] == node.status
    before = alone.files.operations
    assert node.propose(b"a", WAIT_MS) == node.last_index == node.applied_index
    assert alone.files.operations - before == 2, "one write and one sync"
    assert alone.applied == ["a"]
    assert (node.identity, node.cluster_id, node.voters) == (VOTERS[0], "c", VOTERS[:1])
    assert node.lease_until_ms is not None
    assert (node.followers(), node.match_index(VOTERS[1])) == ((), None)


def test_what_is_proposed_while_the_disk_is_at_work_is_one_write(alone: Broker) -> None:
    node = alone.start()
    writes: list[int] = []
    begun, go_on = threading.Event(), threading.Event()
    write = alone.disk.write

    def slow(ready: r.Ready) -> None:
        writes.append(len(ready.entries))
        begun.set()
        go_on.wait(WAIT_MS / 1000)
        write(ready)

    alone.disk.write = slow  # type: ignore[method-assign]
    start = node.last_index
    with ThreadPoolExecutor(20) as callers:
        callers.submit(propose, node, "0")
        begun.wait(WAIT_MS / 1000)
        for number in numbers(20)[1:]:
            callers.submit(propose, node, number)
        until(lambda: node.last_index == start + 20)
        go_on.set()
    assert writes == [1, 19]
    assert sorted(alone.applied, key=int) == numbers(20)


@pytest.mark.parametrize("every", [1_000, 4])
def test_after_a_restart_everything_is_applied_again_before_it_leads(alone: Broker, every: int) -> None:
    """With snapshots, which are restored first, and without."""
    alone.every = every
    propose(alone.start(), *numbers(30))
    alone.stop()
    assert (alone.files.size(f"{DIRECTORY}/entries") < 300) == (every == 4)
    alone.files.crash(random.Random(1))
    assert alone.start().status.ready_to_lead
    assert alone.applied == numbers(30)
    assert alone.threads == {"raystream-raft", threading.current_thread().name}, "it was done when it had started"
    assert len(alone.restored) == (every == 4)


def test_a_disk_without_room_for_a_snapshot_is_no_failure(alone: Broker, caplog: pytest.LogCaptureFixture) -> None:
    alone.every = 4
    node = alone.start()
    alone.files.fail_at(7, errno.ENOSPC)  # a write and a sync for each of three entries, then the snapshot's
    propose(node, *numbers(16))
    assert "cannot be compacted" in caplog.text
    alone.stop()
    alone.start()
    assert (alone.applied, len(alone.restored), alone.failures) == (numbers(16), 1, [])


@pytest.mark.parametrize("operation", [1, 2])
def test_a_write_or_sync_that_fails_stops_the_node_and_tells_once(alone: Broker, operation: int) -> None:
    node = alone.start()
    node.propose(b"kept", WAIT_MS)
    alone.files.fail_at(operation, errno.EIO)
    with pytest.raises(ActorLost):
        node.propose(b"unknown", WAIT_MS)
    until(lambda: bool(alone.failures))
    assert alone.applied == ["kept"]
    with pytest.raises(ActorLost):
        node.propose(b"refused", WAIT_MS)
    alone.stop()
    assert [type(failure) for failure in alone.failures] == [StorageError]
    alone.files.crash(random.Random(1))
    alone.start()
    assert alone.applied in (["kept"], ["kept", "unknown"])


def test_a_vote_that_cannot_be_written_is_not_sent(alone: Broker) -> None:
    node = alone.start()
    alone.files.fail_at(1, errno.EIO)
    vote = r.RequestVote(source=VOTERS[1], to=VOTERS[0], term=5, last_log_index=9, last_log_term=4, transfer=True)
    node.step((vote,))
    until(lambda: bool(alone.failures))
    assert alone.network.sent == []


def test_a_state_machine_that_fails_stops_the_node(alone: Broker) -> None:
    node = alone.start()
    alone.applied = None  # type: ignore[assignment]
    with pytest.raises(ActorLost, match="NoneType"):
        node.propose(b"a", WAIT_MS)
    until(lambda: bool(alone.failures))
    assert isinstance(alone.failures[0], TypeError)


def test_a_node_that_has_ended_gives_its_directory_back(alone: Broker) -> None:
    alone.start().stop()
    with pytest.raises(ActorLost):
        alone.node.propose(b"a", WAIT_MS)
    RaftDisk.open(alone.files, DIRECTORY).close()
    alone.make().stop()
    RaftDisk.open(alone.files, DIRECTORY).close()


def test_messages_beyond_the_bound_are_dropped(alone: Broker) -> None:
    node = alone.make()
    message = r.RequestVote(source=VOTERS[1], to=VOTERS[0], term=1, last_log_index=1, last_log_term=0)
    for _ in range(3):
        node.step((message,) * (raft_node.MAX_INBOX // 2 + 1))
    assert len(node._inbox) == raft_node.MAX_INBOX
    node.start()
    node.propose(b"a", WAIT_MS)


# Three voters -------------------------------------------------------------------------------------------------------


def test_one_leads_and_all_apply_the_same_without_waiting_for_heartbeats(cluster: Cluster) -> None:
    """Each follower gets an entry and then its commit, and answers both."""
    leader = cluster.steady_leader()
    before = len(cluster.network.sent)
    for count in range(1, 51):
        propose(leader.node, str(count - 1))
        cluster.await_applied(*numbers(count))
    assert len(cluster.network.sent) - before <= 8 * 50 + 12  # some were on their way
    assert all(broker.threads == {"raystream-raft"} for broker in cluster.brokers.values())
    assert leader.node.followers() == tuple(broker.identity for broker in cluster.others(leader))
    until(lambda: all(leader.node.match_index(of) == leader.node.last_index for of in leader.node.followers()))


def test_a_follower_refuses_what_only_the_leader_can_do(cluster: Cluster) -> None:
    leader = cluster.steady_leader()
    follower = cluster.others(leader)[0].node
    for call in (
        lambda: follower.propose(b"a", WAIT_MS),
        lambda: follower.propose_voters(VOTERS[:2], WAIT_MS),
        lambda: follower.observe(FOUR),
        lambda: follower.forget(FOUR),
        lambda: follower.transfer_leadership(1),
    ):
        with pytest.raises(NotLeader, match=f"broker {leader.identity.id}"):
            call()
    assert follower.lease_until_ms is None
    with pytest.raises(InvalidArgument):
        leader.node.propose_voters((), WAIT_MS)


def test_when_the_leader_stops_another_leads_and_when_all_do_everything_is_there(cluster: Cluster) -> None:
    cluster.propose("a", "b")
    old = cluster.leader()
    old.stop()
    cluster.propose("c")
    assert cluster.leader() is not old
    old.files.crash(random.Random(1))
    old.start()
    cluster.propose("d")
    cluster.await_applied("a", "b", "c", "d")
    cluster.stop()
    for broker in cluster.brokers.values():
        broker.files.crash(random.Random(broker.identity.id))
    cluster.start()
    cluster.await_applied("a", "b", "c", "d")


def test_a_leader_that_is_cut_off_says_what_it_knows_of_a_proposal(cluster: Cluster) -> None:
    """Unknown while it is; lost for certain once another entry is committed in its place."""
    cluster.propose("a")
    old = cluster.steady_leader()
    cluster.network.cut.add(old.identity)
    with pytest.raises(RequestTimeout, match="not known"):
        old.node.propose(b"b", 30)
    assert old.node._waiting == {}
    outcome = in_background(old.node, b"c")
    cluster.clock.go_on()
    cluster.propose("d", "e", "f")
    until(lambda: old.node.status.role != "leader")
    assert not outcome.done()
    cluster.network.cut.clear()
    assert isinstance(outcome.exception(WAIT_MS / 1_000), NotLeader)
    cluster.await_applied("a", "d", "e", "f")


def test_a_snapshot_over_a_proposal_leaves_its_outcome_unknown(cluster: Cluster) -> None:
    cluster.restart(every=4)
    old = cluster.steady_leader()
    cluster.network.cut.add(old.identity)
    outcome = in_background(old.node, b"c")
    cluster.clock.go_on()
    cluster.propose(*numbers(20))
    cluster.network.cut.clear()
    assert isinstance(outcome.exception(WAIT_MS / 2_000), RequestTimeout)
    cluster.await_applied(*numbers(20))


def test_who_waits_when_the_node_stops_is_told(cluster: Cluster) -> None:
    leader = cluster.steady_leader()
    cluster.network.cut.add(leader.identity)
    outcome = in_background(leader.node, b"a")
    leader.stop()
    assert isinstance(outcome.exception(WAIT_MS / 1_000), ActorLost)


def test_the_lead_is_handed_over(cluster: Cluster) -> None:
    leader = cluster.steady_leader()
    heir = cluster.others(leader)[0]
    leader.node.transfer_leadership(heir.identity.id)
    until(lambda: heir.node.status.ready_to_lead)
    assert heir.node.propose(b"a", WAIT_MS) == heir.node.last_index


def test_an_empty_disk_joins_as_an_observer_and_becomes_a_voter(cluster: Cluster) -> None:
    cluster.propose("a", "b")
    leader = cluster.steady_leader()
    joiner = cluster.join(FOUR)
    leader.node.observe(FOUR)
    until(lambda: joiner.applied == ["a", "b"])
    assert FOUR not in leader.node.voters
    leader.node.propose_voters((*VOTERS, FOUR), WAIT_MS)
    until(lambda: joiner.node.voters == (*VOTERS, FOUR))
    gone = next(broker for broker in cluster.others(leader) if broker is not joiner)
    leader.node.propose_voters(tuple(v for v in leader.node.voters if v != gone.identity), WAIT_MS)
    leader.node.forget(gone.identity)
    assert gone.identity not in leader.node.followers()
    leader.node.propose(b"c", WAIT_MS)
    until(lambda: joiner.applied == ["a", "b", "c"])
    cluster.clock.go_on()  # who has restarted hears of commits with the next heartbeat
    joiner.stop()
    joiner.start()
    until(lambda: joiner.applied == ["a", "b", "c"])


def test_a_joiner_that_needs_what_was_compacted_gets_the_snapshot(cluster: Cluster) -> None:
    cluster.restart(every=5)
    cluster.propose(*numbers(30))
    leader = cluster.steady_leader()
    joiner = cluster.join(FOUR)
    leader.node.observe(FOUR)
    cluster.await_applied(*numbers(30))
    assert len(joiner.restored) == 1
    assert [m for m in cluster.network.sent if isinstance(m, r.InstallSnapshot)]
    leader.node.propose(b"more", WAIT_MS)
    until(lambda: joiner.applied == [*numbers(30), "more"])
    cluster.clock.go_on()  # who has restarted hears of commits with the next heartbeat
    joiner.stop()
    joiner.files.crash(random.Random(1))
    joiner.start()
    until(lambda: joiner.applied == [*numbers(30), "more"])


def test_a_network_that_raises_is_one_that_loses(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    leader = cluster.leader()
    lost = cluster.others(leader)[0]
    send = cluster.network.send

    def failing(message: r.Message) -> None:
        if message.to == lost.identity:
            raise OSError("unreachable")
        send(message)

    leader.node._send = failing
    leader.node.propose(b"a", WAIT_MS)
    leader.node._send = send
    until(lambda: lost.applied == ["a"])
    assert "was not sent" in caplog.text
