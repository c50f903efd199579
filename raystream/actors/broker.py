"""The broker actor: owns its node's data directory, decides topics and leaders, keeps every replica served.

It is its own only voter here, so it is the controller. Every change is decided, appended to the metadata log with a
sync, and only then replayed into the image that answers come from; a restart replays the same log.

Guarantees. A change that answers is on the disk and served. After a kill -9 of this actor Ray starts it again; it
finds its partition actors alive and adopts them, and whatever died meanwhile it starts anew.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray

from raystream import messages as m
from raystream.actors.handles import BROKER
from raystream.actors.hosts import Hosts, Key, ask_all
from raystream.actors.keeper import CoordinatorKeeper
from raystream.actors.metadata_store import MetadataStore
from raystream.actors.writer import Ticket, Writer
from raystream.clock import SystemClock
from raystream.errors import RaystreamError, RequestTimeout, StorageError
from raystream.storage import root as data_roots
from raystream.storage.files import DiskFiles

logger = logging.getLogger("raystream.broker")

START_TIMEOUT_S: Final = 60.0
CHANGE_TIMEOUT_MS: Final = 60_000.0
POLL_S: Final = 2.0
RETRY_S: Final = 0.5
MAX_METADATA_WAIT_MS: Final = 30_000


@dataclass(frozen=True, slots=True)
class BrokerSpec:
    """What a broker is started with. `root` None: $RAYSTREAM_DATA or ~/.raystream of the broker's node.
    `cluster` names this life of the Ray cluster; it is the head's node id. `embedded`: its starter owns the root."""

    namespace: str
    root: str | None
    cluster: str
    address: str
    embedded: bool
    protocol: int = m.PROTOCOL


@dataclass(frozen=True, slots=True)
class BrokerReady:
    """What a broker says once it serves."""

    root: str
    cluster_id: str
    broker_id: int
    pid: int
    protocol: int = m.PROTOCOL


class BrokerActor:
    """See the module. Methods block their own thread only; all changes run on the supervising thread, in order."""

    def __init__(self, spec: BrokerSpec) -> None:
        self._spec = spec
        self._clock = SystemClock()
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._version = self._clock.now_ms()
        self._served: dict[Key, tuple[str, str]] = {}
        self._free_bytes = 0
        self._root: Path
        self._slot: data_roots.Slot
        self._claim: data_roots.RootClaim | None = None
        self._store: MetadataStore
        self._hosts: Hosts
        self._coordinator: CoordinatorKeeper
        self._supervisor: Writer[Callable[[], Any]] = Writer(
            "raystream-supervisor", self._supervise, broken=self._give_up
        )
        threading.Thread(target=self._start, name="raystream-start", daemon=True).start()

    # Starting and stopping ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            m.check_protocol(self._spec.protocol)
            self._open_root()
            self._supervisor.start()
            self._supervisor.submit(self._recover).wait(START_TIMEOUT_S * 1000)
            threading.Thread(target=self._poll, name="raystream-poll", daemon=True).start()
        except Exception as error:
            if not isinstance(error, RaystreamError):
                traceback.print_exc()
            self._failure = error
        finally:
            self._started.set()

    def _open_root(self) -> None:
        spec = self._spec
        root = Path(spec.root or os.environ.get("RAYSTREAM_DATA") or Path.home() / ".raystream").absolute()
        data_roots.prepare(root, hide_from_git=False)
        if not spec.embedded:
            self._claim = data_roots.join(root, cluster=spec.cluster, address=spec.address)
        if (kind := data_roots.network_file_system(root)) is not None:
            logger.warning("%s lies on a network file system (%s): syncs and locks may not hold there", root, kind)
        self._root = root
        self._slot = data_roots.take_slot(root, spec.cluster)
        self._store = MetadataStore(DiskFiles(), self._slot.path, self._slot.number, self._clock)
        node_id = ray.get_runtime_context().get_node_id()
        self._hosts = Hosts(
            namespace=spec.namespace,
            node_id=node_id,
            directory=self._slot.path,
            cluster=spec.cluster,
            lost=self._actor_lost,
        )
        self._coordinator = CoordinatorKeeper(spec.namespace, node_id, self._slot.path, spec.cluster, self._actor_lost)

    def _recover(self) -> None:
        """Replays the metadata, takes in what lives on, starts what does not."""
        self._store.open()
        self._hosts.adopt()
        adopted = {key for host in self._hosts.hosts() for key in host.keys}
        for host in self._hosts.hosts():
            self._served.update(dict.fromkeys(host.keys, (host.name, "")))
        self._hosts.keep_spare()  # starts beside the coordinator; the first to need an actor takes it
        self._coordinator.start_or_adopt()
        self._store.ensure_internal_topics()
        self._serve([key for key in self._store.partitions() if key not in adopted])
        self._hosts.keep_spare()

    def ready(self) -> BrokerReady:
        """Waits until the broker serves. Raises why it cannot start."""
        self._await_start()
        return BrokerReady(str(self._root), self._store.cluster_id, self._slot.number, os.getpid())

    def _await_start(self) -> None:
        if not self._started.wait(START_TIMEOUT_S):
            raise RequestTimeout(f"the broker did not start within {START_TIMEOUT_S:.0f} s")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Closes every log cleanly, ends every actor of this broker and gives the data directory back."""
        self._await_start()
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._submit(self._shut_down)
        self._supervisor.stop()

    def _shut_down(self) -> None:
        self._coordinator.stop()
        self._hosts.stop()
        self._store.close()
        if self._claim is not None:
            self._claim.release()
        self._changed_now()

    # Topics ---------------------------------------------------------------------------------------------------------

    def metadata(self, request: m.MetadataRequest) -> m.MetadataReply:
        """Topics, leaders, brokers; waits for a change where the request asks for it."""
        self._await_start()
        m.check_protocol(request.protocol)
        if request.max_wait_ms > 0:
            wait_s = min(request.max_wait_ms, MAX_METADATA_WAIT_MS) / 1000
            with self._changed:
                self._changed.wait_for(lambda: self._version != request.known_version, timeout=wait_s)
        version = self._version
        if version == request.known_version:
            return self._reply(version, None, ())
        names = request.topics if request.topics is not None else self._store.topic_names(internal=request.internal)
        found = [topic for name in names if (topic := self._topic_metadata(name)) is not None]
        known = {topic.name for topic in found}
        return self._reply(version, tuple(found), tuple(name for name in names if name not in known))

    def create_topic(self, request: m.CreateTopicRequest) -> m.TopicMetadata:
        m.check_protocol(request.protocol)
        return self._change(lambda: self._store.create_topic(request), request.name)

    def alter_topic(self, request: m.AlterTopicRequest) -> m.TopicMetadata:
        m.check_protocol(request.protocol)
        return self._change(lambda: self._store.alter_topic(request), request.name)

    def delete_topic(self, request: m.DeleteTopicRequest) -> m.Done:
        m.check_protocol(request.protocol)

        def delete() -> None:
            keys = self._store.delete_topic(request)
            self._changed_now()
            self._hosts.close(keys)
            for topic_id, partition in keys:
                self._served.pop((topic_id, partition), None)
                shutil.rmtree(self._directory(topic_id, partition), ignore_errors=True)

        self._submit(delete)
        return m.Done()

    def _change(self, change: Callable[[], None], topic: str) -> m.TopicMetadata:
        def work() -> m.TopicMetadata:
            change()
            self._serve(self._store.partitions(topic))
            self._hosts.keep_spare()
            metadata = self._topic_metadata(topic)
            assert metadata is not None
            return metadata

        metadata: m.TopicMetadata = self._submit(work)
        return metadata

    def _submit(self, work: Callable[[], Any]) -> Any:
        self._await_start()
        return self._supervisor.submit(work).wait(CHANGE_TIMEOUT_MS)

    # On the supervising thread --------------------------------------------------------------------------------------

    def _supervise(self, tickets: list[Ticket[Callable[[], Any]]]) -> None:
        for ticket in tickets:
            try:
                ticket.answer(ticket.work())
            except Exception as error:
                if not isinstance(error, RaystreamError):
                    traceback.print_exc()
                ticket.fail(error)
                if isinstance(error, StorageError) and not error.retriable:
                    self._give_up(error)  # the metadata log takes no more writes until it is recovered

    def _serve(self, keys: list[Key]) -> None:
        """Opens replicas in actors. One that was not open gets a new incarnation first, which fences its past."""
        keys = [key for key in keys if self._store.exists(key)]  # its topic may have been deleted meanwhile
        self._store.new_incarnations([key for key in keys if self._hosts.home(key) is None])
        for internal in (True, False):
            specs = [
                self._store.spec(key, str(self._directory(*key)))
                for key in keys
                if self._store.is_internal(key) == internal
            ]
            if specs:
                self._served.update(self._hosts.open(specs, internal=internal))
        self._changed_now()
        again = [key for key in keys if self._served.get(key) == ("", "")]
        if again and not self._stopping.is_set():
            threading.Timer(RETRY_S, self._submit_quietly, (lambda: self._serve(again),)).start()

    def _submit_quietly(self, work: Callable[[], None]) -> None:
        if not self._stopping.is_set():
            self._supervisor.submit(work)

    def _actor_lost(self, name: str) -> None:
        """An actor's process is gone; called on a watcher's thread."""
        self._submit_quietly(lambda: self._replace(name))

    def _replace(self, name: str) -> None:
        if self._coordinator.lost(name):
            self._changed_now()
            return self._persistently(self._coordinator.start_or_adopt)
        host = self._hosts.drop(name)
        if host is None:
            return None
        logger.warning("partition actor %s (pid %d) is gone: starting its successor", name, host.pid)
        self._served.update(dict.fromkeys(host.keys, ("", "")))
        self._changed_now()
        self._persistently(lambda: self._serve(sorted(host.keys)))
        self._hosts.keep_spare()
        return None

    def _persistently(self, work: Callable[[], None]) -> None:
        """Until it works or the broker stops: Ray may need a moment to give us a process."""
        while not self._stopping.is_set():
            try:
                work()
                self._changed_now()
                return
            except RaystreamError as error:
                logger.warning("will try again: %s", error)
                self._stopping.wait(RETRY_S)

    def _give_up(self, error: BaseException) -> None:
        traceback.print_exception(error)
        os._exit(1)  # Ray starts this actor again, which recovers from the disk

    # Answers --------------------------------------------------------------------------------------------------------

    def _changed_now(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def _directory(self, topic_id: str, partition: int) -> Path:
        return self._slot.path / f"{topic_id}-{partition}"

    def _topic_metadata(self, name: str) -> m.TopicMetadata | None:
        return self._store.describe(name, self._served, ray.get_runtime_context().get_node_id())

    def _reply(
        self, version: int, topics: tuple[m.TopicMetadata, ...] | None, missing: tuple[str, ...]
    ) -> m.MetadataReply:
        broker = m.BrokerMetadata(
            broker_id=self._slot.number,
            actor=BROKER,
            coordinator=self._coordinator.name,
            node_id=ray.get_runtime_context().get_node_id(),
            node=socket.gethostname(),
            data_dir=str(self._root),
            free_bytes=self._free_bytes,
            pid=os.getpid(),
            controller=True,
            replicas=len(self._served),
        )
        return m.MetadataReply(
            version=version, cluster_id=self._store.cluster_id, brokers=(broker,), topics=topics, missing=missing
        )

    def _poll(self) -> None:
        """Asks every actor how it is, which also makes it publish its metrics."""
        while not self._stopping.wait(POLL_S if self._free_bytes else 0):
            self._free_bytes = shutil.disk_usage(self._root).free
            ask_all(self._hosts.hosts(), "status", 5_000.0)
