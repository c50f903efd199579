"""The partition actor: one Ray actor that serves one partition's replica, or several packed together.

Guarantees. An append that answers is on the disk (under `flush="os"`: in the page cache), once, at the offset it
states, in its producer's order. An append that raises RequestTimeout, or whose actor died, may have happened; sending
the same batch again is safe. A disk that fails a write or a sync ends the process: its broker starts a successor,
which recovers from what is on the disk.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

import ray

from raystream import messages as m
from raystream.actors import logs
from raystream.actors.compaction import Compactor
from raystream.actors.endpoint import Endpoint, machine
from raystream.actors.following import Replicated
from raystream.actors.launch import MAX_PARKED_FETCHES
from raystream.actors.leading import Append
from raystream.actors.lease import Lease
from raystream.actors.metrics import PartitionMetrics
from raystream.actors.outbox import RayOutbox
from raystream.actors.quotas import Quotas
from raystream.actors.replica import Replica
from raystream.actors.scrubber import RayElsewhere, Scrubber
from raystream.actors.writer import Ticket, Writer
from raystream.clock import SystemClock
from raystream.errors import CorruptLog, DataDirectoryInUse, LogLost, NotLeader, RaystreamError
from raystream.storage.files import DiskFiles

APPEND_WAIT_MS: Final = 30_000.0
REPLICATE_WAIT_MS: Final = 5_000.0
CONTROL_WAIT_MS: Final = 60_000.0
CHECKPOINT_MS: Final = 1_000.0
SWITCH_INTERVAL_S: Final = 0.001
"""So long a thread may keep the interpreter from those that wait for it: an append changes threads several times, and
would wait behind compaction and scrubbing for Python's 5 ms each time."""
LOCK_WAIT_MS: Final = 10_000.0
"""How long a successor waits for the holder of a directory's lock to be dead."""

Key = tuple[str, int]


class PartitionActor:
    """Holds replicas and the one writer thread that owns their logs."""

    def __init__(self, name: str, namespace: str) -> None:
        logs.begin()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._name = name
        self._clock = SystemClock()
        self._files = DiskFiles()
        self._replicas: dict[Key, Replica] = {}
        self._metrics = PartitionMetrics()
        self._quotas = Quotas(self._clock)
        self._writer: Writer[Append | Replicated | Callable[[], Any]] = Writer(
            "raystream-writer", self._write, idle_ms=self._idle_ms, broken=self._fail_stop
        )
        self._outbox = RayOutbox(namespace, self._later)
        self._leases: dict[str, Lease] = {}
        self._scrubber = Scrubber(
            lambda: list(self._replicas.values()), self._files, self._clock, self._on_writer, RayElsewhere(namespace)
        )
        self._compactor = Compactor(lambda: list(self._replicas.values()), self._clock, self._on_writer)
        self._writer.start()
        self._scrubber.start()
        self._compactor.start()
        methods: dict[str, Callable[..., Any]] = {
            "append": self.append,
            "fetch": self.fetch,
            "replicate": self.replicate,
            "write_marker": self.write_marker,
            "list_offsets": self.list_offsets,
            "status": lambda _nothing: self.status(),
        }
        self._endpoint = Endpoint(name, methods)

    # Asked by the broker ---------------------------------------------------------------------------------------------

    def pid(self) -> int:
        """The process id, by which the broker watches this actor."""
        return os.getpid()

    def open(self, specs: tuple[m.ReplicaSpec, ...]) -> tuple[m.ReplicaStatus, ...]:
        """Opens replicas, or takes over changes of open ones. A replica that cannot open says why in its status."""
        for spec in specs:
            m.check_protocol(spec.protocol)
        statuses: tuple[m.ReplicaStatus, ...] = self._on_writer(lambda: tuple(self._open(spec) for spec in specs))
        return statuses

    def close(self, keys: tuple[Key, ...]) -> None:
        """Closes replicas cleanly."""
        self._on_writer(lambda: self._close(keys))

    def stop(self) -> None:
        """Closes every replica cleanly; the actor answers nothing afterwards."""
        self._scrubber.stop()
        self._compactor.stop()
        self._on_writer(lambda: self._close(tuple(self._replicas)))
        self._writer.stop()
        self._outbox.stop()
        self._endpoint.stop()

    # Asked by clients ------------------------------------------------------------------------------------------------

    def endpoint(self) -> m.EndpointReply:
        """Where callers on this machine may make the frequent calls as well, by the methods' names."""
        return m.EndpointReply(
            node_id=ray.get_runtime_context().get_node_id(),
            address=self._endpoint.address,
            machine=machine(),
            methods=self._endpoint.methods,
        )

    def append(self, request: m.AppendRequest, payload: Any) -> m.AppendReply:
        m.check_protocol(request.protocol)
        started = self._clock.monotonic_ms()
        replica = self._replica(request.topic_id, request.partition)
        if replica.spec.quotas:
            self._quotas.before_append(replica.spec, request.client_id)
        work = replica.check(request, payload)
        reply: m.AppendReply = self._writer.submit(work, here=True).wait(APPEND_WAIT_MS)
        self._metrics.appended(work.header, self._clock.monotonic_ms() - started)
        if replica.spec.quotas:
            reply = self._quotas.appended(replica.spec, request.client_id, reply, work.header.message_bytes)
        return reply

    def write_marker(self, request: m.WriteMarkerRequest) -> m.AppendReply:
        """A coordinator ends a transaction here; repeated, it changes nothing."""
        m.check_protocol(request.protocol)
        work = self._replica(request.topic_id, request.partition).marker(request)
        reply: m.AppendReply = self._writer.submit(work, here=True).wait(APPEND_WAIT_MS)
        return reply

    def fetch(self, request: m.FetchRequest) -> m.FetchReply:
        m.check_protocol(request.protocol)
        replica = self._replica(request.topic_id, request.partition)
        if replica.spec.quotas:
            self._quotas.before_fetch(replica.spec, request.client_id)
        try:
            reply = replica.fetch(request, MAX_PARKED_FETCHES)
        except CorruptLog as error:
            raise self._scrubber.noticed(replica, error) from None
        self._metrics.fetched(reply)
        if replica.spec.quotas:
            reply = self._quotas.fetched(replica.spec, request.client_id, reply)
        return reply

    def list_offsets(self, request: m.ListOffsetsRequest) -> m.OffsetReply:
        m.check_protocol(request.protocol)
        return self._replica(request.topic_id, request.partition).list_offset(request)

    def delete_records(self, request: m.DeleteRecordsRequest) -> m.OffsetReply:
        m.check_protocol(request.protocol)
        replica = self._replica(request.topic_id, request.partition)
        reply: m.OffsetReply = self._on_writer(lambda: replica.delete_before(request.before_offset))
        return reply

    # Asked by leaders ------------------------------------------------------------------------------------------------

    def replicate(self, request: m.ReplicateRequest, payload: Any) -> Any:
        """Takes over what a leader sends. Raises FencedLeaderEpoch, UnknownLeaderEpoch and Fenced where it should not
        have been sent here, or not now."""
        m.check_protocol(request.protocol)
        work = self._replica(request.topic_id, request.partition).check_replicated(request, payload)
        return self._writer.submit(work, here=True).wait(REPLICATE_WAIT_MS)

    # Asked by all ----------------------------------------------------------------------------------------------------

    def status(self) -> tuple[m.ReplicaStatus, ...]:
        statuses = tuple(replica.status() for replica in list(self._replicas.values()))
        self._metrics.publish(self._replicas, statuses)
        return statuses

    # On the writer thread --------------------------------------------------------------------------------------------

    def _write(self, tickets: list[Ticket[Append | Replicated | Callable[[], Any]]]) -> None:
        touched: dict[int, Replica] = {}
        for ticket in tickets:
            work = ticket.work
            if isinstance(work, (Append, Replicated)):
                touched[id(work.replica)] = work.replica
                work.replica.offer(ticket)
                continue
            try:
                ticket.answer(work())
            except Exception as error:
                ticket.fail(error)
        for replica in touched.values() if touched else list(self._replicas.values()):
            replica.commit()

    def _later(self, work: Callable[[], None]) -> None:
        """Work for a coming turn that nobody waits for. A failure in it ends the process: it was the log's."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._fail_stop(error)

        self._writer.submit(run, here=True)

    def _idle_ms(self) -> float | None:
        deadlines = [d for replica in self._replicas.values() if (d := replica.next_deadline_ms()) is not None]
        if not deadlines:
            return CHECKPOINT_MS
        return min(CHECKPOINT_MS, min(deadlines) - self._clock.monotonic_ms())

    def _open(self, spec: m.ReplicaSpec) -> m.ReplicaStatus:
        key = (spec.topic_id, spec.partition)
        known = self._replicas.get(key)
        try:
            if known is not None:
                known.reconfigure(spec)
                return known.status()
            replica = Replica(spec, self._files, self._clock, self._outbox, self._lease(spec.lease_path))
            self._open_when_unlocked(replica)
        except CorruptLog as error:
            return _offline(spec, f"{m.LOST_LOG if isinstance(error, LogLost) else m.CORRUPT_LOG}{error}")
        except RaystreamError as error:
            return _offline(spec, str(error))
        self._replicas[key] = replica
        return replica.status()

    def _lease(self, path: str) -> Callable[[], float]:
        if not path:
            return lambda: float("inf")
        if path not in self._leases:
            self._leases[path] = Lease(path)
        return self._leases[path].until_ms

    def _open_when_unlocked(self, replica: Replica) -> None:
        deadline = self._clock.monotonic_ms() + LOCK_WAIT_MS
        while True:
            try:
                return replica.open()
            except DataDirectoryInUse:
                if self._clock.monotonic_ms() > deadline:
                    raise
            self._clock.sleep_ms(20)

    def _close(self, keys: tuple[Key, ...]) -> None:
        for key in keys:
            replica = self._replicas.pop(key, None)
            if replica is not None:
                replica.close()

    def _on_writer(self, work: Callable[[], Any]) -> Any:
        return self._writer.submit(work).wait(CONTROL_WAIT_MS)

    def _replica(self, topic_id: str, partition: int) -> Replica:
        replica = self._replicas.get((topic_id, partition))
        if replica is None:
            raise NotLeader(f"{self._name} serves no partition {partition} of topic id {topic_id}")
        return replica

    def _fail_stop(self, error: BaseException) -> None:
        sys.stderr.write(f"{self._name} stops: {error}\n")
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)


def _offline(spec: m.ReplicaSpec, error: str) -> m.ReplicaStatus:
    return m.ReplicaStatus(
        topic_id=spec.topic_id,
        partition=spec.partition,
        leader_epoch=spec.leader_epoch,
        start_offset=0,
        end_offset=0,
        high_watermark=0,
        size_bytes=0,
        segments=0,
        error=error,
    )
