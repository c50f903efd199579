"""The broker actor: one per node. Owns the node's data directory, serves its replicas, knows the metadata, and is the
controller where the others' brokers have elected it.

Guarantees. A change that answers is committed to the metadata log on a majority of the voters' disks, and served. After
a kill -9 of this actor Ray starts it again; it finds its partition actors alive and adopts them, and whatever died
meanwhile it starts anew. Any broker answers for all: changes are handed on to the controller.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray

from raystream import messages as m
from raystream.actors import logs
from raystream.actors.controlling import Controlling
from raystream.actors.decisions import CHANGES, DECISIONS, create_topic
from raystream.actors.finding import broker_name, nodes
from raystream.actors.founding import foreign, open_disk
from raystream.actors.hosts import Hosts, Key, ask_all
from raystream.actors.internal_topics import internal_topics
from raystream.actors.keeper import CoordinatorKeeper
from raystream.actors.launch import start_actor
from raystream.actors.lease import Lease
from raystream.actors.membership import Membership
from raystream.actors.metadata import Metadata
from raystream.actors.peers import Peers
from raystream.actors.processes import is_alive
from raystream.actors.raft_node import RaftNode
from raystream.actors.reconciling import Reconciler
from raystream.clock import SystemClock
from raystream.core.raft_messages import Message, Status
from raystream.errors import (
    ActorLost,
    DataDirectoryInUse,
    DataDirectoryUnusable,
    InvalidArgument,
    NewerFormat,
    NotLeader,
    ProtocolMismatch,
    RaystreamError,
    RequestTimeout,
    Unavailable,
)
from raystream.storage import root as data_roots
from raystream.storage.files import DiskFiles

logger = logging.getLogger("raystream.broker")

START_TIMEOUT_S: Final = 60.0
SERVED_TIMEOUT_S: Final = 30.0
OTHERS_TIMEOUT_S: Final = 20.0
APPLY_TIMEOUT_S: Final = 10.0
POLL_S: Final = 2.0
MEET_S: Final = 10.0  # brokers ask who is where so often, though nobody is missed: an address may be wrong silently
STATUS_TIMEOUT_MS: Final = 5_000.0
RETRY_S: Final = 0.05
MAX_METADATA_WAIT_MS: Final = 30_000
BEGIN_AGAIN_S: Final = 3.0
LEASE: Final = "lease"
HOPELESS: Final = (DataDirectoryInUse, DataDirectoryUnusable, NewerFormat, ProtocolMismatch, InvalidArgument)
"""What keeps a broker from starting however often it tries."""


class BrokerActor:
    """See the module. Methods block their own thread only."""

    def __init__(self, spec: m.BrokerSpec) -> None:
        logs.begin()
        self._spec = spec
        self._clock = SystemClock()
        self._node_id = ray.get_runtime_context().get_node_id()
        self._name = broker_name(self._node_id)
        self._peers = Peers(spec.namespace, self._name, self._node_id)
        self._metadata = Metadata()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._problems: tuple[str, ...] = ()
        self._met = 0.0
        self._stopping = threading.Event()
        self._enlisted: set[str] = {self._node_id}
        self._root: Path
        self._slot: data_roots.Slot
        self._claim: data_roots.RootClaim | None = None
        self._node: RaftNode | None = None
        self._member: Membership
        self._controlling: Controlling
        self._hosts: Hosts
        self._coordinator: CoordinatorKeeper
        self._reconciler: Reconciler
        self._losses = threading.Lock()
        self._lost_early: list[str] | None = []
        """Actors that died before the reconciler could be told."""
        threading.Thread(target=self._start, name="raystream-start", daemon=True).start()

    # Starting and stopping ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            m.check_protocol(self._spec.protocol)
            self._open_root()
            self._hosts.adopt()
            self._hosts.keep_spare()  # starts beside all else; the first to need an actor takes it
            threading.Thread(target=self._keep_coordinator, name="raystream-coordinator", daemon=True).start()
            self._open_node()
            assert self._node is not None
            self._member.start(self._node)
            self._reconciler.start()
            self._tell_early_losses()
            for work in (self._look_around, self._ask_around):
                threading.Thread(target=work, name=f"raystream{work.__name__}", daemon=True).start()
            self._await_service()
        except Exception as error:
            if not isinstance(error, RaystreamError):
                traceback.print_exc()
            self._failure = error
            if not isinstance(error, HOPELESS) and not self._spec.embedded:
                threading.Thread(target=self._begin_again, args=(error,), name="raystream-again", daemon=True).start()
        finally:
            self._started.set()

    def _begin_again(self, error: Exception) -> None:
        """Ray starts another after this one, a little later, so that whoever waits hears why."""
        self._stopping.wait(BEGIN_AGAIN_S)
        if not self._stopping.is_set():
            self._give_up(error)

    def _open_root(self) -> None:
        spec = self._spec
        root = Path(spec.root or os.environ.get("RAYSTREAM_DATA") or Path.home() / ".raystream").absolute()
        data_roots.prepare(root, hide_from_git=False)
        if not spec.embedded:
            self._claim = data_roots.join(root, cluster=spec.cluster, address=spec.address)
        if (kind := data_roots.network_file_system(root)) is not None:
            logger.warning("%s lies on a network file system (%s): syncs and locks may not hold there", root, kind)
        self._root = root
        node = data_roots.Node(self._node_id, os.getppid(), is_alive)
        self._slot = data_roots.take_slot(root, spec.cluster, node)
        self._hosts = Hosts(
            namespace=spec.namespace,
            node_id=self._node_id,
            directory=self._slot.path,
            cluster=spec.cluster,
            lost=self._actor_lost,
        )
        self._coordinator = CoordinatorKeeper(
            spec.namespace, self._node_id, self._slot.path, spec.cluster, self._coordinator_lost
        )
        self._member = Membership(
            self._metadata,
            self._peers,
            self._clock,
            node_id=self._node_id,
            root=root,
            lease=Lease(self._slot.path / LEASE, owner=True),
            coordinator=lambda: self._coordinator.name,
            here=lambda method, *arguments: getattr(self, method)(*arguments),
            look=self._look,
        )

    def _open_node(self) -> None:
        files = DiskFiles()
        disk = open_disk(
            files,
            self._slot.path,
            peers=self._peers,
            founder=self._node_id == self._spec.cluster,
            request=self._member.registration,
            enlist=self._enlist,
            timeout_s=START_TIMEOUT_S,
        )
        self._node = RaftNode(
            disk,
            clock=self._clock,
            rng=random.Random(secrets.randbits(64)),
            send=self._peers.send,
            apply=self._metadata.apply,
            restore=self._metadata.restore,
            take_snapshot=self._metadata.take_snapshot,
            changed=self._status_changed,
            failed=self._give_up,
        )
        self._controlling = Controlling(self._node, self._metadata, self._clock, self._tended)
        self._reconciler = Reconciler(
            self._metadata,
            self._hosts,
            disk.identity.id,
            files,
            self._slot.path,
            str(self._slot.path / LEASE),
            self._report,
            self._member.begin_new_life,
            self._member.told,
        )
        self._controlling.start()
        self._node.start()

    @property
    def _broker_id(self) -> int:
        assert self._node is not None
        return self._node.identity.id

    def ready(self) -> m.BrokerReady:
        """Waits until the broker serves. Raises why it cannot start."""
        with contextlib.suppress(ActorLost):
            self._await_start()
        if self._failure is not None:
            raise self._failure
        return m.BrokerReady(str(self._root), self._metadata.cluster_id, self._broker_id, os.getpid(), self._problems)

    def _await_start(self) -> None:
        if not self._started.wait(2 * START_TIMEOUT_S):
            raise RequestTimeout(f"the broker did not start within {2 * START_TIMEOUT_S:.0f} s")
        if self._failure is not None:
            raise ActorLost(f"the broker of this node could not start: {self._failure}")

    def _await_service(self) -> None:
        """Until the groups' log is served and all replicas here are open; and, where this broker brings the cluster up,
        until the other nodes' brokers have joined."""
        for name in internal_topics():
            deadline = time.monotonic() + START_TIMEOUT_S
            version = self._metadata.version
            while self._metadata.wait_until_served(name, 1.0) is None:
                if time.monotonic() > deadline:
                    raise RequestTimeout(f"nobody has made {name} within {START_TIMEOUT_S:.0f} s")
                self._metadata.wait_for_change(version, 1.0)
                version = self._metadata.version
        self._reconciler.wait_until_settled(START_TIMEOUT_S)
        if self._node_id == self._spec.cluster:
            deadline = time.monotonic() + OTHERS_TIMEOUT_S
            while time.monotonic() < deadline and not self._everybody_is_in():
                answers = self._peers.ask_all().values()
                self._problems = tuple(reply.error for reply in answers if reply is not None and reply.error)
                if self._problems:
                    return
                time.sleep(RETRY_S)

    def _everybody_is_in(self) -> bool:
        with self._metadata.image() as image:
            live = {broker.node_id for broker in image.brokers.values() if not broker.fenced}
        return all(node.node_id in live for node in self._peers.others())

    def stop(self) -> None:
        """Closes every log cleanly, ends every actor of this broker and gives the data directory back."""
        if not self._started.wait(START_TIMEOUT_S) or self._stopping.is_set():
            return
        self._stopping.set()
        self._member.stop()
        if self._node is not None:
            self._reconciler.stop()
            self._coordinator.stop()
            self._hosts.stop()
            self._controlling.stop()
            self._node.stop()
        if self._claim is not None:
            self._claim.release()

    def _give_up(self, error: BaseException) -> None:
        traceback.print_exception(error)
        os._exit(1)  # Ray starts this actor again, which recovers from the disk

    # The cluster ----------------------------------------------------------------------------------------------------

    @property
    def _controller(self) -> int | None:
        leader = self._node.status.leader if self._node is not None else None
        return None if leader is None else leader.id

    def _status_changed(self, status: Status) -> None:
        self._member.beat()
        self._controlling.wake()

    def _look_around(self) -> None:
        """Finds brokers whose address is not known, and starts those of nodes that have none: as the controller, or
        while there is none, which the majority's return may end. Ray may keep this thread waiting; nobody else waits
        for it."""
        while not self._stopping.is_set():
            self._peers.unknown.wait(POLL_S)
            try:
                self._meet()
                if self._controlling.leads or self._controller is None:
                    self._enlist()
            except Exception as error:
                logger.info("the other brokers cannot be found: %s", error)
            self._stopping.wait(RETRY_S)

    def _ask_around(self) -> None:
        """Asks every actor here how it is, which also makes it publish its metrics."""
        while not self._stopping.wait(POLL_S):
            for statuses in ask_all(self._hosts.hosts(), "status", STATUS_TIMEOUT_MS):
                for status in statuses or ():
                    if status.error is not None and status.error.startswith(m.CORRUPT_LOG):
                        self._reconciler.replica_failed((status.topic_id, status.partition), status.error)

    def _look(self) -> None:
        """Nobody is known to be the controller. A cluster that starts again needs a majority before it has one."""
        if self._node_id == self._spec.cluster:
            self._enlist()
        self._peers.unknown.set()
        self._meet()

    def _meet(self) -> None:
        with self._metadata.image() as image:
            for broker in image.brokers.values():
                self._peers.suppose(broker.broker_id, broker.actor)
        if self._peers.unknown.is_set() or time.monotonic() - self._met > MEET_S:
            self._met = time.monotonic()
            self._peers.unknown.clear()
            own = self.hello()
            if stranger := foreign(own, self._peers.ask_all(own).values(), self._spec.cluster, self._root):
                self._refuse(stranger)

    def _refuse(self, error: InvalidArgument) -> None:
        """This broker belongs to another cluster: it serves nobody, and says so to whoever asks."""
        if self._started.is_set() and self._failure is None:
            self._failure = error
            self.stop()
        raise error

    def _tended(self) -> None:
        """As the controller: what is missing is made."""
        for name, request in internal_topics().items():
            with self._metadata.image() as image:
                missing = name not in image.topics and any(not broker.fenced for broker in image.brokers.values())
            if missing:
                self._controlling.decide(partial(create_topic, request, secrets.token_hex(16), internal=True))

    def _enlist(self) -> None:
        spec = replace(self._spec, embedded=False) if not self._spec.embedded else self._spec
        for node in nodes():
            if node.node_id not in self._enlisted:
                name = broker_name(node.node_id)
                start_actor(
                    BrokerActor, spec, name=name, namespace=spec.namespace, node_id=node.node_id, max_restarts=-1
                )
                self._enlisted.add(node.node_id)

    # Asked by other brokers -----------------------------------------------------------------------------------------

    def hello(self, other: m.HelloReply | None = None) -> m.HelloReply:
        """Who this broker is, at once; `other` is who asks."""
        if other is not None and other.broker_id is not None:
            self._peers.learn(other.broker_id, other.actor)
        node = self._node
        return m.HelloReply(
            actor=self._name,
            node_id=self._node_id,
            broker_id=None if node is None else node.identity.id,
            directory_id="" if node is None else node.identity.directory_id,
            cluster_id=None if node is None else node.cluster_id,
            controller=self._controller,
            error="" if self._failure is None else str(self._failure),
        )

    def raft(self, sender: str, messages: Sequence[Message]) -> None:
        """Messages of the metadata log."""
        if self._node is not None and not self._stopping.is_set():
            for message in messages:
                self._peers.learn(message.source.id, sender)
            self._node.step(messages)

    def heartbeat(self, request: m.BrokerHeartbeatRequest) -> m.BrokerHeartbeatReply:
        """A broker's sign of life, to the controller. Raises NotLeader, Fenced."""
        m.check_protocol(request.protocol)
        if self._node is None:
            raise NotLeader("this broker is not the controller")
        return self._controlling.heartbeat(request)

    def decide(self, method: str, request: Any) -> m.Decided:
        """One decision, at the controller. Raises NotLeader elsewhere."""
        if self._node is None or self._stopping.is_set():
            raise NotLeader("this broker is not the controller")
        if method == "register":
            m.check_protocol(request.protocol)
            reply: Any = self._controlling.register(request)
            self._peers.learn(reply.broker_id, request.actor)
        else:
            reply = self._controlling.decide(lambda controller: DECISIONS[method](controller, request))
        return m.Decided(reply=reply, version=self._metadata.version)

    # Asking the controller ------------------------------------------------------------------------------------------

    def hand_on(self, method: str, request: Any) -> m.Decided:
        """One decision, wherever the controller is."""
        return self._member.ask_controller(method, request)

    def _report(self, served: tuple[m.ServedReplica, ...], lost: tuple[Key, ...]) -> int:
        request = m.ReplicasChangedRequest(
            broker_id=self._broker_id, incarnation=self._member.incarnation, served=served, lost=lost
        )
        return self._member.ask_controller("replicas_changed", request).version

    # Actors of this node --------------------------------------------------------------------------------------------

    def _actor_lost(self, name: str) -> None:
        with self._losses:
            if self._lost_early is not None:
                self._lost_early.append(name)
            elif not self._stopping.is_set():
                self._reconciler.actor_lost(name)

    def _tell_early_losses(self) -> None:
        with self._losses:
            lost, self._lost_early = self._lost_early or [], None
            for name in lost:
                self._reconciler.actor_lost(name)

    def _keep_coordinator(self) -> None:
        """Until it works or the broker stops: Ray may need a moment to give us a process."""
        while not self._stopping.is_set():
            try:
                self._coordinator.start_or_adopt()
                self._member.beat()
                return
            except RaystreamError as error:
                logger.warning("will try again: %s", error)
                self._stopping.wait(RETRY_S)

    def _coordinator_lost(self, name: str) -> None:
        if not self._stopping.is_set() and self._coordinator.lost(name):
            self._member.beat()
            self._keep_coordinator()

    def alter_isr(self, request: m.AlterIsrRequest) -> m.Done:
        """A leader on this node asks for another ISR."""
        m.check_protocol(request.protocol)
        self._member.ask_controller("alter_isr", request)
        return m.Done()

    # Asked by clients -----------------------------------------------------------------------------------------------

    def metadata(self, request: m.MetadataRequest) -> m.MetadataReply:
        """Topics, leaders, brokers; waits for a change where the request asks for it."""
        self._await_start()
        m.check_protocol(request.protocol)
        if request.max_wait_ms > 0:
            self._metadata.wait_for_change(request.known_version, min(request.max_wait_ms, MAX_METADATA_WAIT_MS) / 1000)
        version = self._metadata.version
        topics: tuple[m.TopicMetadata, ...] | None = None
        if version != request.known_version:
            topics = self._metadata.topics(request.topics, internal=request.internal)
        known = {topic.name for topic in topics or ()}
        controller = self._controller
        return m.MetadataReply(
            version=version,
            cluster_id=self._metadata.cluster_id,
            brokers=self._metadata.brokers(-1 if controller is None else controller, self._member.free_bytes),
            topics=topics,
            missing=tuple(name for name in request.topics or () if topics is not None and name not in known),
            quotas=self._metadata.quotas(),
        )

    def create_topic(self, request: m.CreateTopicRequest) -> m.TopicMetadata:
        m.check_protocol(request.protocol)
        self._change("create_topic", (request, secrets.token_hex(16)))
        return self._served_topic(request.name)

    def alter_topic(self, request: m.AlterTopicRequest) -> m.TopicMetadata:
        m.check_protocol(request.protocol)
        self._change("alter_topic", request)
        return self._served_topic(request.name)

    def reassign(self, request: m.ReassignRequest) -> m.TopicMetadata:
        """Begins to move replicas; they catch up while the topic is in use."""
        m.check_protocol(request.protocol)
        self._change("reassign", request)
        return self._served_topic(request.topic)

    def change(self, method: str, request: Any) -> m.Done:
        """One of CHANGES, whose answer is that it is made."""
        m.check_protocol(request.protocol)
        if method not in CHANGES:
            raise InvalidArgument(f"{method!r} is no change that a client may ask for")
        self._change(method, request)
        return m.Done()

    def _change(self, method: str, request: Any) -> None:
        self._await_start()
        decided = self._member.ask_controller(method, request)
        if not self._metadata.wait_for_version(decided.version, APPLY_TIMEOUT_S):
            raise RequestTimeout("the change is made, and this broker has not heard of it yet")

    def _served_topic(self, name: str) -> m.TopicMetadata:
        found = self._metadata.wait_until_served(name, SERVED_TIMEOUT_S)
        if found is None:
            raise Unavailable(f"topic {name!r} was deleted meanwhile")
        return found
