"""A simulated broker: a disk that stays, and while it runs, one replica with its role, driven as a shell would."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from raystream.core.follower import Follower
from raystream.core.leader import Leader
from raystream.core.liveness import lease_until_ms
from raystream.core.metadata import PartitionRecord
from raystream.core.replication import Answer, Probe, ProbeAnswer, Send, Truncate
from raystream.errors import Fenced, NotEnoughReplicas, NotLeader, RaystreamError
from tests.sim.replication_log import Batch, ModelLog

if TYPE_CHECKING:
    from tests.sim.replication import Simulation

CONTROLLER = 0
TICK_MS = 40.0
HEARTBEAT_MS = 120.0
SESSION_MS = 500.0
LEASE_MS = 400.0
EARLY_WAIT_MS = 30.0


class News(NamedTuple):
    """What the metadata says of the partition, as of a version of the metadata."""

    version: int
    record: PartitionRecord
    min_insync_replicas: int


class Broker:
    """`role` is None while the broker is down, has not registered yet, or has no replica."""

    def __init__(self, broker_id: int, world: Simulation) -> None:
        self.id = broker_id
        self.log = ModelLog()
        self.lost = False
        self.running = False
        self.paused = False
        self.life = 0
        self.incarnation = 0
        """As the controller has said in this life; 0 before, and when it has to be asked again."""
        self._greatest_incarnation = 0
        self.role: Leader | Follower | None = None
        self.checked: tuple[Leader | Follower | None, int] = (None, 0)
        self.news: News | None = None
        self.later: list[Callable[[], None]] = []
        """What came while it was paused."""
        self.clock_offset_ms = 0.0
        self.lease_until_ms = -math.inf
        """By its own clock."""
        self._world = world
        self._flushing = False
        self._unanswered: list[Send] = []
        self._early: dict[int, tuple[Send, list[Batch]]] = {}
        self._waiting: list[Batch] = []
        self._actor_lost = False
        """The controller is to hear of it before another takes its place."""

    def now_ms(self) -> float:
        """Its own clock, which never goes back."""
        return self._world.now_ms + self.clock_offset_ms

    # Lives ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """From its disk."""
        world = self._world
        self.running, self.paused = True, False
        self.life += 1
        self.incarnation, self._greatest_incarnation, self.news = 0, 0, None
        self.clock_offset_ms = world.rng.uniform(0, 1e6) - world.now_ms
        self.lease_until_ms = -math.inf
        self._flushing = self._actor_lost = False
        self._end_role()
        world.at(world.now_ms + world.rng.uniform(0, TICK_MS), world.on(self, self._tick))
        world.at(world.now_ms, world.on(self, self._beat))

    def stop(self) -> None:
        """Its process ends; what it has written stays."""
        self.running, self.paused = False, False
        self._end_role()
        self.later.clear()

    def lose_actor(self) -> None:
        """The replica's process ends, and the broker's does not: the same incarnation goes on with another."""
        self._flushing, self._actor_lost = False, True
        self.life += 1
        self._world.at(self._world.now_ms, self._world.on(self, self._tick))
        self._world.at(self._world.now_ms, self._world.on(self, self._beat))
        self._end_role()

    def _end_role(self) -> None:
        self.role = None
        self._unanswered, self._early, self._waiting = [], {}, []

    def _tick(self) -> None:
        self._world.at(self._world.now_ms + TICK_MS, self._world.on(self, self._tick))

    def _beat(self) -> None:
        world, life, sent_ms = self._world, self.life, self.now_ms()
        world.at(world.now_ms + HEARTBEAT_MS, world.on(self, self._beat))
        controller, incarnation = world.controller, self.incarnation

        def answer(then: Callable[[], None]) -> None:
            world.send(CONTROLLER, self.id, lambda: then() if self.life == life else None)

        def ask() -> None:
            if incarnation == 0:
                registered, news = controller.register(self.id, clean=not lost)
                answer(lambda: self._registered(registered, news))
                return
            try:
                news = controller.heartbeat(self.id, incarnation)
                if actor_lost:
                    news = controller.replica_lost(self.id)
            except Fenced:
                answer(lambda: self._fenced(incarnation))
            else:
                answer(lambda: self._heard(sent_ms, news, reported=actor_lost))

        lost, actor_lost = self.lost, self._actor_lost
        world.send(self.id, CONTROLLER, ask, repeats=incarnation > 0)

    def _registered(self, incarnation: int, news: News) -> None:
        if incarnation > self._greatest_incarnation:
            self.incarnation = self._greatest_incarnation = incarnation
            self._end_role()
            self._actor_lost = False
            if self.news is None or news.version > self.news.version:
                self.news = news
            self._take_role()

    def _fenced(self, incarnation: int) -> None:
        if incarnation == self.incarnation:
            self.incarnation = 0  # to register again, in the same process
            self._end_role()

    def _heard(self, sent_ms: float, news: News, *, reported: bool = False) -> None:
        self.lease_until_ms = max(self.lease_until_ms, lease_until_ms(sent_ms, LEASE_MS))
        self.learn(news)
        if reported and self._actor_lost and self.incarnation > 0:
            self._actor_lost = False
            self._take_role()

    # Roles ----------------------------------------------------------------------------------------------------------

    def learn(self, news: News) -> None:
        """News of the controller, which may come late and more than once."""
        if self.news is not None and news.version <= self.news.version:
            return
        self.news = news
        if self.incarnation > 0:
            self._take_role()

    def _take_role(self) -> None:
        assert self.news is not None
        if self._actor_lost:
            return
        _, record, min_insync_replicas = self.news
        if self.id not in record.replicas:
            self._end_role()
            self.log = ModelLog()
        elif record.leader == self.id:
            if isinstance(self.role, Leader) and self.role.leader_epoch == record.leader_epoch:
                self.role.committed(record)
                self.role.set_min_insync_replicas(min_insync_replicas)
            else:
                self._lead(record, min_insync_replicas)
        elif isinstance(self.role, Follower):
            self.role.led(record.leader_epoch)
        else:
            self._flush_now()
            self._end_role()
            self.role = Follower(
                self.id,
                self.incarnation,
                record.leader_epoch,
                end_offset=self.log.end,
                flushed_end_offset=self.log.flushed,
                high_watermark=self.log.high_watermark,
                epochs=self.log.epochs.starts,
            )

    def _flush_now(self) -> None:
        self.log.flushed = self.log.end
        if not self._world.flush_os:
            self.log.synced = self.log.end

    def _lead(self, record: PartitionRecord, min_insync_replicas: int) -> None:
        self._flush_now()
        self._end_role()
        role = Leader(
            self.id,
            self.incarnation,
            record,
            end_offset=self.log.end,
            flushed_end_offset=self.log.flushed,
            high_watermark=self.log.high_watermark,
            epochs=self.log.epochs.starts,
            min_insync_replicas=min_insync_replicas,
            settings=self._world.settings,
            now_ms=self.now_ms(),
            log_start_offset=self.log.start,
        )
        self.role = role
        self._world.checks.led(self, role, self.incarnation)
        role.flushed(self.log.end)

    def after(self) -> None:
        """The shell's loop, after anything happened here."""
        role = self.role
        if role is None:
            return
        self.log.high_watermark = max(self.log.high_watermark, role.high_watermark)
        self._world.checks.stepped(self)
        if isinstance(role, Leader):
            self._acknowledge(role)
            self._pump(role)

    # Flushing -------------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        world = self._world
        if world.flush_os:
            self._flushed(self.log.end, self.log.cuts)
        elif not self._flushing:
            self._flushing = True
            end, cuts = self.log.end, self.log.cuts
            world.at(world.now_ms + world.sync_ms(), world.on(self, lambda: self._flushed(end, cuts)))

    def _flushed(self, end: int, cuts: int) -> None:
        self._flushing = False
        if cuts == self.log.cuts:
            self.log.flushed = max(self.log.flushed, end)
            if not self._world.flush_os:
                self.log.synced = self.log.flushed
        if self.role is not None:
            self.role.flushed(self.log.flushed)
        if isinstance(self.role, Follower):
            unanswered, self._unanswered = self._unanswered, []
            for request in unanswered:
                self._answer(self.role.answer(request), request.leader)
        if self.log.flushed < self.log.end:
            self._flush_soon()

    # Leading --------------------------------------------------------------------------------------------------------

    def append(self, value: int, offsets: int, *, acks_all: bool) -> None:
        """A producer asks."""
        role = self.role
        assert isinstance(role, Leader)
        if role.deposed:
            return
        if acks_all:
            try:
                role.check_append()
            except NotEnoughReplicas:
                self._world.checks.happened["not enough replicas"] += 1
                return
        batch = Batch(self.log.end, self.log.end + offsets, role.leader_epoch, value)
        self.log.append([batch])
        self._world.checks.wrote(batch)
        role.appended(self.log.end, held_from=max(self.log.start, self.log.end - self._world.held_offsets))
        if acks_all:
            self._waiting.append(batch)
        self._flush_soon()

    def _acknowledge(self, role: Leader) -> None:
        reached = self._world.shell.acknowledged_end(role)
        while self._waiting and self._waiting[0].end_offset <= reached:
            batch = self._waiting.pop(0)
            self._world.checks.acknowledged[batch.base_offset] = batch, role.leader_epoch

    def serves_reads(self) -> bool:
        """Whether a reader who asks now is answered."""
        if not isinstance(self.role, Leader):
            return False
        try:
            self.role.check_read(self.now_ms(), self.lease_until_ms)
        except NotLeader:
            return False
        return True

    def delete_before(self, offset: int) -> None:
        """A user or retention asks; at a batch's base, below the high watermark."""
        role = self.role
        assert isinstance(role, Leader)
        self.log.delete_before(offset)
        role.log_start_offset = self.log.start
        self._world.checks.deleted_before = max(self._world.checks.deleted_before, offset)
        self._world.checks.happened["records deleted"] += 1

    def _pump(self, role: Leader) -> None:
        world = self._world
        for follower in role.followers:
            while (request := role.next_request(follower, self.now_ms())) is not None:
                if isinstance(request, Send) and request.max_bytes > 0:
                    self._read(role, follower, request)
                    continue
                if isinstance(request, Send):
                    role.sent(follower, request, request.offset, 0)
                self._dispatch(role, follower, request, [])
        change = role.proposal(self.now_ms())
        if change is not None:

            def refused() -> None:
                if self.role is role:
                    role.refused(change, self.now_ms())

            def ask() -> None:
                try:
                    world.controller.alter_isr(change)
                except RaystreamError:
                    world.checks.happened["isr refused"] += 1
                    world.send(CONTROLLER, self.id, refused)

            world.send(self.id, CONTROLLER, ask)

    def _read(self, role: Leader, follower: int, request: Send) -> None:
        def read() -> None:
            if self.role is not role:
                return
            batches = self.log.read(request.offset, request.max_bytes)
            if batches:
                role.sent(follower, request, batches[-1].end_offset, len(batches))
                self._dispatch(role, follower, request, batches)
            else:
                role.failed(follower, request.round)

        if request.catch_up:
            self._world.at(
                self._world.now_ms + self._world.rng.uniform(0, 5), self._world.on(self, read)
            )  # beside other work
        else:
            read()

    def _dispatch(self, role: Leader, follower: int, request: Probe | Truncate | Send, batches: list[Batch]) -> None:
        world, start = self._world, self.log.start

        def failed() -> None:
            if self.role is role:
                role.failed(follower, request.round)

        def arrive() -> None:
            try:
                world.brokers[follower].receive(request, batches, start)
            except RaystreamError:
                world.send(follower, self.id, failed)

        world.send(self.id, follower, arrive)

    def answered(self, answer: Answer | ProbeAnswer) -> None:
        """Whoever leads here now gets it, also where it is meant for an earlier life or lead."""
        if isinstance(self.role, Leader):
            if isinstance(answer, ProbeAnswer):
                self.role.probed(answer)
            else:
                self.role.on_answer(answer)

    # Following ------------------------------------------------------------------------------------------------------

    def receive(self, request: Probe | Truncate | Send, batches: list[Batch], leader_start: int) -> None:
        """Whatever a leader sends."""
        role = self.role
        if not isinstance(role, Follower):
            raise Fenced("does not follow")
        if isinstance(request, Probe):
            self._answer(role.probed(request), request.leader)
        elif isinstance(request, Truncate):
            offset = role.truncation(request)
            if offset is not None and request.anew:
                self.log.begin_at(offset)
                self._world.checks.happened["log begun anew"] += 1
            elif offset is not None:
                self.log.truncate(offset)
                self._world.checks.cut(self)
            self._answer(role.truncated(request), request.leader)
        else:
            self._take(role, request, batches, leader_start)

    def _take(self, role: Follower, request: Send, batches: list[Batch], leader_start: int) -> None:
        skip = role.accept(request, [batch.place for batch in batches])
        if skip is None:
            if role.aligned and request.offset > role.end_offset and self._world.keeps_early:
                self._keep_early(request, batches)
            else:
                self._answer(role.answer(request, gap=True), request.leader)
            return
        fresh = batches[skip:]
        if fresh:
            for batch in fresh:
                self._world.checks.wrote(batch)
            self.log.append(fresh)
            role.appended([batch.place for batch in fresh])
        start = min(leader_start, role.high_watermark)
        if start > self.log.start:
            self.log.delete_before(start)
        if fresh and self._world.rng.random() < 0.2:
            self._answer(role.answer(request), request.leader)  # before its flush
        self._unanswered.append(request)
        self._flush_soon()
        early = self._early.pop(role.end_offset, None) if fresh else None
        if early is not None:
            self._take(role, *early, leader_start)

    def _keep_early(self, request: Send, batches: list[Batch]) -> None:
        kept = (request, batches)
        self._early[request.offset] = kept

        def expired() -> None:
            if self._early.get(request.offset) is kept and isinstance(self.role, Follower):
                del self._early[request.offset]
                self._answer(self.role.answer(request, gap=True), request.leader)

        self._world.at(self._world.now_ms + EARLY_WAIT_MS, self._world.on(self, expired))

    def _answer(self, answer: Answer | ProbeAnswer, leader: int) -> None:
        self._world.send(self.id, leader, lambda: self._world.brokers[leader].answered(answer))
