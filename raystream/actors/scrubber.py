"""Watches over the logs of a partition actor's replicas: reads them through, slowly, and repairs from other replicas.

A replica's log is read through at most once a day, and all actors of one disk together read at one bounded rate: they
take turns by a lock. What is found is reported, written down in the log's directory, not served, and repaired from the
first replica that has it whole. A leader that cannot be repaired asks the controller to let another lead. A follower
whose log was compacted otherwise than the others' cannot be repaired in part: it is put aside and filled anew.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from raystream import messages as m
from raystream.actors.background import let_others_go_first
from raystream.actors.handles import wait_for
from raystream.actors.launch import CONTROL, FETCH, find_actor
from raystream.actors.replica import Replica
from raystream.clock import Clock
from raystream.config import MIB, SCRUB_BYTES_PER_S, SCRUB_INTERVAL_MS
from raystream.errors import CorruptLog, DataDirectoryInUse, RaystreamError, StorageError
from raystream.storage import repair
from raystream.storage.files import Files
from raystream.storage.scrubbing import Damage, Pace, remember, scrub
from raystream.storage.segment import Segment

logger = logging.getLogger("raystream.partition")

LOCK_NAME: Final = "scrub.lock"
SLICE_BYTES: Final = 256 * MIB
"""An actor's turn at the disk is over after so much."""
BREATH_MS: Final = 1_500.0
"""Between two turns of one actor: longer than others wait before they ask for theirs."""
LOOK_MS: Final = 1_000.0
RETRY_MS: Final = 30_000.0
FIRST_PASS_WITHIN_MS: Final = 3_600_000
FETCH_BYTES: Final = 4 * MIB
FETCH_TIMEOUT_MS: Final = 10_000.0


class Elsewhere(Protocol):
    """The other replicas and the controller. Both calls wait, and raise RaystreamError."""

    def fetch(self, actor: str, request: m.FetchRequest) -> m.FetchReply: ...

    def step_down(self, spec: m.ReplicaSpec) -> None:
        """Asks for another leader."""


@dataclass(slots=True)
class _Watch:
    """How far one replica's pass is, and what is to be looked at before its turn."""

    due_ms: float
    began_ms: float = 0.0
    next_offset: int = 0
    repair_ms: float = 0.0
    suspected: set[str] = field(default_factory=set)


class Scrubber:
    """One thread. `on_writer` has work done on the writer's turn and waits for it; `wait(ms)` says whether to stop."""

    def __init__(
        self,
        replicas: Callable[[], Sequence[Replica]],
        files: Files,
        clock: Clock,
        on_writer: Callable[[Callable[[], Any]], Any],
        elsewhere: Elsewhere,
        *,
        bytes_per_s: float = SCRUB_BYTES_PER_S,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._replicas = replicas
        self._files = files
        self._clock = clock
        self._on_writer = on_writer
        self._elsewhere = elsewhere
        self._pace = Pace(clock, bytes_per_s)
        self._watches: dict[Replica, _Watch] = {}
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._wait = wait or (lambda ms: self._stopping.wait(ms / 1000))
        self._thread = threading.Thread(target=self._run, name="raystream-scrubber", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def noticed(self, replica: Replica, error: CorruptLog) -> RaystreamError:
        """A look-up has met bad bytes: they are looked at soon. The error for whoever asked. On any thread."""
        watch = self._watches.get(replica)
        if watch is not None and (path := getattr(error, "path", "")):
            watch.suspected.add(path)
            self._wake.set()
        return replica.damaged(error)

    def _run(self) -> None:
        let_others_go_first()
        while not self._stopping.is_set():
            try:
                pause_ms = BREATH_MS if self.round() else LOOK_MS
            except Exception:
                logger.exception("the logs could not be read through")
                pause_ms = RETRY_MS
            self._wake.wait(pause_ms / 1000)
            self._wake.clear()

    def round(self) -> bool:
        """Tries repairs that are due, and goes on with the passes that are: one turn each. Whether one is under way."""
        self._watches = {replica: self._watches.get(replica) or self._watch(replica) for replica in self._replicas()}
        under_way = False
        for replica, watch in list(self._watches.items()):
            if self._stopping.is_set():
                return False
            try:
                if (replica.damage or watch.suspected) and self._clock.monotonic_ms() >= watch.repair_ms:
                    self._look_again(replica, watch)
                if self._clock.monotonic_ms() >= watch.due_ms:
                    with self._turn(replica) as mine:
                        under_way = (mine and self._go_on(replica, watch)) or under_way
            except RaystreamError as error:
                logger.info("the log of %s could not be read through: %s", replica.name, error)
                watch.due_ms = max(watch.due_ms, self._clock.monotonic_ms() + RETRY_MS)
        return under_way

    def _watch(self, replica: Replica) -> _Watch:
        spread = zlib.crc32(f"{replica.spec.directory}".encode()) % FIRST_PASS_WITHIN_MS
        return _Watch(due_ms=self._clock.monotonic_ms() + spread)

    @contextmanager
    def _turn(self, replica: Replica) -> Iterator[bool]:
        try:
            lock = self._files.lock(f"{replica.spec.directory.rpartition('/')[0]}/{LOCK_NAME}")
        except DataDirectoryInUse:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    # Reading --------------------------------------------------------------------------------------------------------

    def _go_on(self, replica: Replica, watch: _Watch) -> bool:
        """One turn of a pass. Whether it is not over yet."""
        if watch.next_offset == 0:
            watch.began_ms = self._clock.monotonic_ms()
        read_bytes = 0
        for segment in replica.log.segments:
            if segment.base_offset >= watch.next_offset:
                if read_bytes >= SLICE_BYTES:
                    return True
                if not self._check(replica, watch, segment):
                    return False
                watch.next_offset = segment.base_offset + 1
                read_bytes += segment.tail.size
        watch.next_offset = 0
        watch.due_ms = watch.began_ms + SCRUB_INTERVAL_MS
        return False

    def _look_again(self, replica: Replica, watch: _Watch) -> None:
        """At what is bad, or is said to be, without waiting for its turn."""
        watch.repair_ms = self._clock.monotonic_ms() + RETRY_MS
        suspected, watch.suspected = watch.suspected, set()
        for path in sorted(suspected.union(damage.path for damage in replica.damage)):
            segment = repair.find_segment(replica.log, path)
            if segment is None:
                self._note(replica, path, [])  # deleted meanwhile
            elif replica.spec.actors or path in suspected:
                self._check(replica, watch, segment, urgent=True)

    def _check(self, replica: Replica, watch: _Watch, segment: Segment, *, urgent: bool = False) -> bool:
        """Reads a segment, and repairs it where it must be. False where the actor is stopping."""
        log = replica.log
        damages = []
        steps = scrub((segment,), end_offset=min(log.high_watermark, log.flushed_end_offset))
        for step, wait_ms in self._pace.over(steps):
            if step.damage is not None:
                damages.append(step.damage)
            if (not urgent and self._wait(wait_ms)) or self._stopping.is_set():
                return False
        self._note(replica, segment.path, damages)
        if damages and not self._repair(replica, segment, damages):
            watch.repair_ms = self._clock.monotonic_ms() + RETRY_MS
            self._let_another_lead(replica)
        return True

    def _note(self, replica: Replica, path: str, damages: Sequence[Damage]) -> None:
        """What is known of one segment from now on."""
        known = replica.damage
        replica.damage = (*(damage for damage in known if damage.path != path), *damages)
        if replica.damage == known:
            return
        for damage in damages:
            if damage not in known:
                logger.error("%s: %s", replica.name, damage)
        try:
            remember(self._files, replica.spec.directory, replica.damage)
            if damages:
                self._on_writer(replica.log.checkpoint)  # what it covers is never taken for a torn tail
        except StorageError as error:
            logger.warning("the damage of %s could not be written down: %s", replica.name, error)

    # Repairing ------------------------------------------------------------------------------------------------------

    def _repair(self, replica: Replica, segment: Segment, damages: Sequence[Damage]) -> bool:
        spec = replica.spec
        otherwise: repair.DifferentlyCompacted | None = None
        for actor in _in_order(spec):
            fetch = partial(self._fetch, spec, actor)
            try:
                patches = [repair.patch_for(replica.log, segment, damage, fetch) for damage in damages]
                work = partial(repair.replace, self._files, replica.log, segment, patches)
                if repair.may_be_replaced_beside(replica.log, segment):
                    work()
                else:
                    self._on_writer(work)
            except RaystreamError as error:
                logger.warning("%s could not be repaired from %s: %s", segment.path, actor, error)
                if isinstance(error, repair.DifferentlyCompacted):
                    otherwise = error
                continue
            logger.warning("%s was repaired from %s", segment.path, actor)
            self._note(replica, segment.path, [])
            return True
        if otherwise is not None and spec.leader != spec.broker_id:
            replica.beyond_repair = f"{m.CORRUPT_LOG}{segment.path}: {otherwise}"
        return False

    def _fetch(self, spec: m.ReplicaSpec, actor: str, offset: int, end_offset: int) -> bytes:
        request = m.FetchRequest(
            topic_id=spec.topic_id,
            partition=spec.partition,
            offset=offset,
            end_offset=end_offset,
            max_bytes=FETCH_BYTES,
            follower=True,
        )
        return b"".join(self._elsewhere.fetch(actor, request).chunks)

    def _let_another_lead(self, replica: Replica) -> None:
        spec = replica.spec
        if spec.leader != spec.broker_id or not set(spec.isr) - {spec.broker_id}:
            return
        try:
            self._elsewhere.step_down(spec)
        except RaystreamError as error:
            logger.warning("%s is damaged and leads on: %s", replica.name, error)


def _in_order(spec: m.ReplicaSpec) -> list[str]:
    """The actors of the other replicas: the leader's, those in sync, the rest."""
    return [actor for _, actor in sorted(spec.actors, key=lambda at: (at[0] != spec.leader, at[0] not in spec.isr))]


class RayElsewhere:
    """`Elsewhere` over Ray, for a thread of its own."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def fetch(self, actor: str, request: m.FetchRequest) -> m.FetchReply:
        handle = find_actor(actor, self._namespace)
        reply: m.FetchReply = wait_for(handle.fetch.options(concurrency_group=FETCH).remote(request), FETCH_TIMEOUT_MS)
        return reply

    def step_down(self, spec: m.ReplicaSpec) -> None:
        # As if this actor had died: the lead goes to another, and the broker reports at once that this one serves.
        request = m.ReplicasChangedRequest(
            broker_id=spec.broker_id, incarnation=spec.broker_incarnation, lost=((spec.topic_id, spec.partition),)
        )
        broker = find_actor(spec.broker, self._namespace)
        wait_for(
            broker.hand_on.options(concurrency_group=CONTROL).remote("replicas_changed", request), FETCH_TIMEOUT_MS
        )
