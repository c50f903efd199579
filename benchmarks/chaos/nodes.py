"""A Ray cluster of several nodes on one machine, each with a broker, and the ways in which parts of it die.

Only processes of this cluster are ever signalled, by their process ids.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import ray
from ray.cluster_utils import Cluster as RayCluster

import raystream as rs
from benchmarks.chaos.namespaces import Network
from benchmarks.chaos.processes import children, wait_until_gone
from raystream import messages as m
from raystream.actors.finding import find_brokers

NAMESPACE: Final = "raystream"
ALIVE_TIMEOUT_S: Final = 60.0
ANSWER_TIMEOUT_S: Final = 10.0
WORKERS_END_S: Final = 60.0
"""How long workers may outlive their raylet."""


class Nodes:
    """`count` Ray nodes, the driver on the first one, which is Ray's head. A context manager.

    With a network each is in a namespace of its own, numbered as the nodes are; the calling thread must be in the
    head's, which is number 0.
    """

    def __init__(
        self, data_dir: Path, count: int = 3, racks: tuple[str, ...] = (), network: Network | None = None
    ) -> None:
        os.environ.setdefault("RAY_worker_niceness", "0")
        self._data_dir = data_dir
        self._killed = self._closed = False
        self._racks = racks
        self.network = network
        self._ray = RayCluster(
            initialize_head=True,
            shutdown_at_exit=False,  # its signal handlers would keep nodes from being added on other threads
            head_node_args={"include_dashboard": False, **self._settings(0)},
        )
        self._added: dict[int, Any] = {}
        for number in range(1, count):
            self._start(number)
        ray.init(address=self._ray.address, namespace=NAMESPACE, log_to_driver=False)
        self._ray.wait_for_nodes()
        atexit.register(self.close)
        self.cluster = rs.connect(data_dir=data_dir)

    def _settings(self, number: int) -> dict[str, Any]:
        settings: dict[str, Any] = {"num_cpus": 2}
        if number < len(self._racks):
            settings["labels"] = {"raystream.io/rack": self._racks[number]}
        if self.network is not None:
            settings["node_ip_address"] = self.network.address(number)
        return settings

    def _start(self, number: int) -> None:
        """What a thread starts is in the namespace that the thread is in."""
        with self.network.inside(number) if self.network is not None else contextlib.nullcontext():
            self._added[number] = self._ray.add_node(**self._settings(number))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops raystream, then Ray."""
        from raystream.actors.session import stop_raystream

        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        if not self._killed:
            with contextlib.suppress(Exception):
                stop_raystream(NAMESPACE)
        with contextlib.suppress(Exception):
            self.cluster.close()
        ray.shutdown()
        self._ray.shutdown()

    def stop_hard(self) -> None:
        """SIGKILL to every process of raystream, and to Ray."""
        actors = [name for name in ray.util.list_named_actors() if name.startswith("raystream-")]
        pids = [broker.pid for broker in self.brokers()]
        for name in actors:
            if not name.startswith("raystream-broker"):
                with contextlib.suppress(Exception):
                    pids.append(self.pid_of(name))
        for node in self._added.values():
            self._ray.remove_node(node, allow_graceful=False)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                self.kill(pid)
        self._killed = True
        self.close()

    # Looking --------------------------------------------------------------------------------------------------------

    def wait_for_brokers(self, count: int) -> None:
        """Until so many brokers are alive."""
        deadline = time.monotonic() + ALIVE_TIMEOUT_S
        while sum(not broker.fenced for broker in self._metadata().brokers) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"there are not {count} brokers: {self._metadata().brokers}")
            time.sleep(0.1)

    def wait_for_isr(self, topic: str, size: int, timeout_s: float = ALIVE_TIMEOUT_S) -> None:
        """Until every partition of the topic has so many replicas in sync."""
        deadline = time.monotonic() + timeout_s
        while any(len(found.isr) < size or not found.actor for found in self._partitions(topic)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic} does not get {size} replicas in sync: {self._partitions(topic)}")
            time.sleep(0.05)

    def leader(self, topic: str, partition: int = 0) -> int:
        """The broker that leads."""
        return self._partitions(topic)[partition].leader

    def brokers(self) -> tuple[m.BrokerMetadata, ...]:
        """All brokers, dead ones too."""
        return self._metadata().brokers

    def broker(self, broker_id: int) -> m.BrokerMetadata:
        """That broker as the metadata has it."""
        return next(broker for broker in self.brokers() if broker.broker_id == broker_id)

    def controller(self) -> int:
        """The broker that is the controller."""
        return next((broker.broker_id for broker in self.brokers() if broker.controller), -1)

    def leader_actor(self, topic: str, partition: int = 0) -> str:
        """The name of the actor that serves the leading replica."""
        return self._partitions(topic)[partition].actor

    def follower_actors(self, topic: str, partition: int = 0) -> list[str]:
        """The names of the actors that serve the other replicas in sync."""
        return [actor for actor, _ in self._partitions(topic)[partition].followers]

    def topic_id(self, topic: str) -> str:
        """Its id, which its directories are named by."""
        topics = self._metadata((topic,)).topics
        assert topics, topic
        return topics[0].topic_id

    def actors_on(self, broker_id: int) -> set[str]:
        """The names of the partition actors that are known to follow on a broker's node."""
        node_id = self.broker(broker_id).node_id
        topics = self._metadata(None).topics or ()
        followers = [pair for topic in topics for partition in topic.partitions for pair in partition.followers]
        return {actor for actor, where in followers if where == node_id}

    def _partitions(self, topic: str) -> tuple[m.PartitionMetadata, ...]:
        topics = self._metadata((topic,)).topics
        assert topics, topic
        return topics[0].partitions

    def _metadata(self, topics: tuple[str, ...] | None = ()) -> m.MetadataReply:
        """As the first broker that answers has it."""
        request = m.MetadataRequest(topics=topics)
        deadline = time.monotonic() + ALIVE_TIMEOUT_S
        while True:
            for handle in find_brokers(NAMESPACE, ray.get_runtime_context().get_node_id()):
                with contextlib.suppress(ray.exceptions.RayError):
                    reply: m.MetadataReply = ray.get(handle.metadata.remote(request), timeout=5)
                    return reply
            if time.monotonic() > deadline:
                raise TimeoutError("no broker answers")
            time.sleep(0.1)

    def pid_of(self, actor: str) -> int:
        """The process id of a named actor."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            try:
                return int(ray.get(ray.get_actor(actor, namespace=NAMESPACE).pid.remote(), timeout=ANSWER_TIMEOUT_S))
            except ray.exceptions.ActorUnavailableError:  # the call was lost
                if time.monotonic() > deadline:
                    raise

    # Breaking -------------------------------------------------------------------------------------------------------

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        os.kill(pid, signal.SIGKILL)

    def pause(self, pid: int, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill_node(self, node_id: str) -> None:
        """The raylet and all its workers, at once. Never the driver's own node."""
        self._ray.remove_node(self._taken(node_id), allow_graceful=False)

    def kill_raylet(self, node_id: str) -> float:
        """The raylet alone: its workers find out by themselves. Answers how many seconds the last one outlived it."""
        raylet = self._taken(node_id)
        process = raylet.all_processes["raylet"][0].process
        workers = children(process.pid)
        self.kill(process.pid)
        killed = time.monotonic()
        process.wait()
        left = wait_until_gone(workers, WORKERS_END_S)
        self._ray.remove_node(raylet, allow_graceful=False)
        if left:
            raise TimeoutError(f"{len(left)} workers live {WORKERS_END_S:.0f} s after their raylet: {sorted(left)}")
        return time.monotonic() - killed

    def _taken(self, node_id: str) -> Any:
        number = next(number for number, node in self._added.items() if node.node_id == node_id)
        return self._added.pop(number)

    def add_node(self) -> str:
        """One more node; it gets the first free data directory, and the first free namespace."""
        number = next(number for number in itertools.count(1) if number not in self._added)
        self._start(number)
        return str(self._added[number].node_id)

    def replace_the_dead(self) -> int:
        """Nodes that Ray has given up, and whose raylets have ended of themselves therefore, are started anew. Answers
        how many there were."""
        ended = [n for n, node in self._added.items() if node.all_processes["raylet"][0].process.poll() is not None]
        for number in ended:
            self._ray.remove_node(self._added.pop(number), allow_graceful=False)
            self._start(number)
        return len(ended)

    @property
    def removable(self) -> list[str]:
        """Node ids of the nodes that may be killed."""
        return [str(node.node_id) for node in self._added.values()]
