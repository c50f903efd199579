"""The leading replica of one partition in one leader epoch: the high watermark, the ISR, and what followers are sent.

Kafka's protocol (KIP-101, 279, 497, 903, 966), with the leader pushing. A `Leader` is made when the controller has
named this broker the leader in this life, and thrown away when the epoch ends, and everything in it with it: what a
follower held in an earlier epoch is not known to agree. Time is an argument; what is to be done is returned.

Guarantees. The high watermark never moves back. All below it is on the disk of every member of the *maximal* ISR, which
holds whoever the controller may have in the ISR by now, so whoever it elects next has it. It stands while the ISR is
smaller than `min_insync_replicas`.
"""

from __future__ import annotations

import math

from raystream.core.metadata import PartitionRecord
from raystream.core.replication import (
    UNKNOWN,
    Answer,
    EpochStarts,
    IsrChange,
    Probe,
    ProbeAnswer,
    Progress,
    ReplicationSettings,
    Send,
    Truncate,
    truncation_point,
)
from raystream.errors import NotEnoughReplicas, NotLeader


class Leader:
    """One thread calls it. `epochs` are those of the log as it stands, before the first batch of this epoch."""

    def __init__(
        self,
        broker_id: int,
        incarnation: int,
        state: PartitionRecord,
        *,
        end_offset: int,
        flushed_end_offset: int,
        high_watermark: int,
        epochs: EpochStarts,
        min_insync_replicas: int,
        settings: ReplicationSettings,
        now_ms: float,
        log_start_offset: int = 0,
    ) -> None:
        self.broker_id = broker_id
        self.leader_epoch = state.leader_epoch
        self.epoch_start_offset = end_offset
        self.end_offset = end_offset
        self.flushed_end_offset = flushed_end_offset
        self.high_watermark = high_watermark
        self.log_start_offset = log_start_offset
        """Where its first batch begins; to be moved up when records are deleted."""
        self.deposed = False
        """A higher leader epoch is known: nothing is done any more."""
        self._incarnation = incarnation
        self._state = state
        self._epochs = epochs
        self._held_from = end_offset
        self._min_insync_replicas = min_insync_replicas
        self._settings = settings
        self._proposed: IsrChange | None = None
        self._claimed: frozenset[int] = frozenset()
        self._next_proposal_ms = -math.inf
        self._followers = {
            broker: Progress(broker, now_ms if broker in state.isr else -math.inf)
            for broker in state.replicas
            if broker != broker_id
        }

    # What holds -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> PartitionRecord:
        """The partition as the controller last said it is."""
        return self._state

    @property
    def maximal_isr(self) -> frozenset[int]:
        """Everybody who may be in the ISR by now: as committed, and as proposed since in whatever outcome is unknown.

        A proposal that was refused counts as well, for a copy of it may still be under way and be taken: until the
        partition epoch has grown, which makes every copy stale.
        """
        return self._claimed.union(self._state.isr)

    @property
    def min_insync_replicas(self) -> int:
        """What the topic asks for, as far as there are so many replicas."""
        return min(self._min_insync_replicas, len(self._state.replicas))

    @property
    def serves_reads(self) -> bool:
        """Whether all that any earlier leader may have shown to readers is below the high watermark."""
        return not self.deposed and self.high_watermark >= self.epoch_start_offset

    @property
    def followers(self) -> tuple[int, ...]:
        """Everybody whom the log is sent to."""
        return tuple(self._followers)

    def progress(self, follower: int) -> Progress | None:
        """How far a follower is; for reading."""
        return self._followers.get(follower)

    def check_append(self) -> None:
        """Raises NotLeader, and NotEnoughReplicas where acks="all" could not be had; before anything is written."""
        if self.deposed:
            raise NotLeader(f"broker {self.broker_id} led in epoch {self.leader_epoch}, which is over")
        if self._too_few:
            raise NotEnoughReplicas(
                f"{len(self._state.isr)} replicas are in sync, and min_insync_replicas is {self.min_insync_replicas}"
            )

    def check_read(self, now_ms: float, lease_until_ms: float) -> None:
        """Raises NotLeader where a read could show less than an earlier leader has shown, or than a later one has.

        The latter holds while the broker's lease does, see `liveness.lease_until_ms`. Who holds the partition alone
        needs none.
        """
        if not self._followers:
            return
        if not self.serves_reads:
            raise NotLeader("the new leader does not know yet what is committed: try again")
        if now_ms >= lease_until_ms:
            raise NotLeader("the broker has not heard from the controller for too long: another may lead by now")

    # The log --------------------------------------------------------------------------------------------------------

    def appended(self, end_offset: int, *, held_from: int | None = None) -> None:
        """The log goes up to `end_offset`. The shell holds what stands from `held_from` on in memory; None: this append
        alone. What is sent from below is read from segments."""
        if not self._epochs or self._epochs[-1][0] < self.leader_epoch:
            self._epochs = (*self._epochs, (self.leader_epoch, self.end_offset))
        self._held_from = self.end_offset if held_from is None else held_from
        self.end_offset = end_offset

    def flushed(self, end_offset: int) -> bool:
        """The leader's own disk holds all below `end_offset`. Says whether the high watermark moved."""
        self.flushed_end_offset = max(self.flushed_end_offset, end_offset)
        return self._advance()

    def _advance(self) -> bool:
        if self.deposed or self._too_few:
            return False
        reached = min(self._holds(member) for member in self.maximal_isr)
        if reached <= self.high_watermark:
            return False
        self.high_watermark = reached
        return True

    @property
    def _too_few(self) -> bool:
        # With somebody in the ELR the controller counts the ISR as too small, whatever is configured by now.
        return len(self._state.isr) < self.min_insync_replicas or bool(self._state.elr)

    def _holds(self, member: int) -> int:
        if member == self.broker_id:
            return self.flushed_end_offset
        known = self._followers.get(member)
        return UNKNOWN if known is None else known.matched_end

    # The ISR --------------------------------------------------------------------------------------------------------

    def set_min_insync_replicas(self, count: int) -> bool:
        """The topic's setting has changed. Says whether the high watermark moved."""
        self._min_insync_replicas = count
        return self._advance()

    def committed(self, state: PartitionRecord) -> bool:
        """The controller's answer or news, in any order. Says whether the high watermark moved."""
        if state.leader_epoch > self.leader_epoch:
            self.deposed = True
        if state.leader_epoch != self.leader_epoch or state.partition_epoch <= self._state.partition_epoch:
            return False
        self._state = state
        self._proposed = None
        self._claimed = frozenset()
        self._next_proposal_ms = -math.inf
        others = [broker for broker in state.replicas if broker != self.broker_id]
        self._followers = {broker: self._followers.get(broker) or Progress(broker, -math.inf) for broker in others}
        return self._advance()

    def refused(self, change: IsrChange, now_ms: float) -> None:
        """The controller did not take a change. Whoever it was to bring in is left alone for a while."""
        if change != self._proposed:
            return
        self._proposed = None
        self._next_proposal_ms = now_ms + self._settings.retry_ms
        for broker, _ in change.isr:
            known = self._followers.get(broker)
            if known is not None and broker not in self._state.isr:
                known.held_until_ms = now_ms + self._settings.refused_join_ms

    def proposal(self, now_ms: float) -> IsrChange | None:
        """What to ask of the controller now. One change at a time: until its outcome is known it is said again.

        After a refusal that leaves somebody in the maximal ISR the ISR is proposed as it is: that settles it.
        """
        if self.deposed or now_ms < self._next_proposal_ms:
            return None
        if self._proposed is None:
            wanted = self._wanted_isr(now_ms)
            if wanted == self._state.isr and self._claimed <= set(wanted):
                return None
            members = tuple((broker, self._incarnation_of(broker)) for broker in wanted)
            self._proposed = IsrChange(self.broker_id, self.leader_epoch, self._state.partition_epoch, members)
            self._claimed = self._claimed.union(wanted)
        self._next_proposal_ms = now_ms + self._settings.retry_ms
        return self._proposed

    def _incarnation_of(self, broker: int) -> int:
        return self._incarnation if broker == self.broker_id else self._followers[broker].incarnation

    def _wanted_isr(self, now_ms: float) -> tuple[int, ...]:
        isr = self._state.isr
        stay = [b for b in isr if b == self.broker_id or not self._lags(self._followers[b], now_ms)]
        join = [f.broker_id for f in self._followers.values() if f.broker_id not in isr and self._may_join(f, now_ms)]
        return (*stay, *join)

    def _lags(self, follower: Progress, now_ms: float) -> bool:
        return now_ms - follower.caught_up_ms > self._settings.max_lag_ms

    def _may_join(self, follower: Progress, now_ms: float) -> bool:
        # Past the epoch's start too: until then the high watermark may be lower than an earlier leader's was (KIP-497).
        complete = follower.matched_end >= max(self.high_watermark, self.epoch_start_offset)
        return complete and not self._lags(follower, now_ms) and now_ms >= follower.held_until_ms

    def answered(
        self, follower: int, incarnation: int, flushed_end: int, sent_ms: float, leader_end_when_sent: int
    ) -> bool:
        """An aligned follower's disk holds the leader's log up to `flushed_end`, as it said in answer to what was sent
        at `sent_ms`, when the leader's log ended there. Says whether the high watermark moved."""
        known = self._followers.get(follower)
        if known is None or self.deposed or not known.live(incarnation):
            return False
        known.matched_end = max(known.matched_end, flushed_end)
        if flushed_end >= leader_end_when_sent:
            known.caught_up_ms = max(known.caught_up_ms, sent_ms)
        return self._advance()

    # Pipelines ------------------------------------------------------------------------------------------------------

    def next_request(self, follower: int, now_ms: float) -> Probe | Truncate | Send | None:
        """What to send a follower now; to be asked for until it is None, and again after every event and with time.

        After a Send the shell calls `sent`, or `failed` where it could not read; until then nothing more is sent.
        """
        known = self._followers.get(follower)
        if known is None or self.deposed:
            return None
        known.give_up(now_ms - self._settings.request_timeout_ms)
        if known.mode == "stream":
            return self._next_send(known, now_ms)
        return self._next_question(known, now_ms)

    def _next_question(self, known: Progress, now_ms: float) -> Probe | Truncate | None:
        retry_ms = self._settings.retry_ms
        if known.mode == "truncate":
            if now_ms - known.asked_ms < retry_ms:
                return None
            known.asked_ms = now_ms
            return Truncate(
                leader=self.broker_id,
                leader_epoch=self.leader_epoch,
                round=known.round,
                incarnation=known.incarnation,
                sent_ms=now_ms,
                leader_end_offset=self.end_offset,
                offset=known.next_offset,
                anew=known.anew,
            )
        # Also where another round begins: a follower that refuses all that it is sent is not asked without a pause.
        if now_ms - known.probed_ms < retry_ms:
            return None
        known.probed_ms = now_ms
        return Probe(
            leader=self.broker_id,
            leader_epoch=self.leader_epoch,
            round=known.round,
            incarnation=UNKNOWN,
            sent_ms=now_ms,
            leader_end_offset=self.end_offset,
        )

    @property
    def has_news(self) -> bool:
        """Whether a follower with nothing under way does not know the high watermark yet."""
        return any(
            known.mode == "stream" and not known.in_flight and known.high_watermark_sent < self.high_watermark
            for known in self._followers.values()
        )

    def _next_send(self, known: Progress, now_ms: float) -> Send | None:
        if known.reading:
            return None
        room = min(self._settings.max_send_bytes, self._settings.max_in_flight_bytes - known.in_flight_bytes)
        has_more = known.next_offset < self.end_offset
        behind = known.next_offset < self._held_from
        at_most = self._settings.max_in_flight_catch_ups if behind else self._settings.max_in_flight_batches
        if not (has_more and room > 0 and len(known.in_flight) < at_most):
            news = not has_more and not known.in_flight and known.high_watermark_sent < self.high_watermark
            delay_ms = self._settings.watermark_delay_ms if news else self._settings.heartbeat_interval_ms
            if now_ms - known.asked_ms < delay_ms:
                return None
            room = 0
        known.reading = True
        known.asked_ms = now_ms
        known.high_watermark_sent = self.high_watermark
        return Send(
            leader=self.broker_id,
            leader_epoch=self.leader_epoch,
            round=known.round,
            incarnation=known.incarnation,
            sent_ms=now_ms,
            leader_end_offset=self.end_offset,
            offset=known.next_offset,
            max_bytes=room,
            catch_up=room > 0 and behind,
            high_watermark=self.high_watermark,
        )

    def sent(self, follower: int, request: Send, end_offset: int, size_bytes: int) -> None:
        """The batches of a Send, which end at `end_offset`, are under way; an empty one ends where it begins."""
        known = self._followers.get(follower)
        if known is not None and request.round == known.round:
            known.sent(end_offset, size_bytes, request.sent_ms)

    def probed(self, answer: ProbeAnswer) -> None:
        """A follower has said how its log stands."""
        known = self._followers.get(answer.follower)
        if known is None or answer.leader_epoch != self.leader_epoch:
            return
        if answer.round != known.round or known.mode != "probe":
            return
        if answer.incarnation > known.incarnation:
            known.incarnation, known.matched_end = answer.incarnation, UNKNOWN
        if answer.incarnation != known.incarnation:
            return
        point = truncation_point(self._epochs, self.end_offset, answer.epochs, answer.end_offset)
        known.truncate(max(point, self.log_start_offset), anew=point < self.log_start_offset)

    def on_answer(self, answer: Answer) -> bool:
        """A follower's answer to Truncate or Send, also one that came before its flush: as `answered`, and its pipeline
        goes on. Says whether the high watermark moved."""
        known = self._followers.get(answer.follower)
        if known is None or answer.leader_epoch != self.leader_epoch:
            return False
        if answer.gap:
            if answer.round == known.round:
                known.probed_ms = -math.inf  # one that answers need not be spared
            self.failed(answer.follower, answer.round)
            return False
        moved = self.answered(
            answer.follower, answer.incarnation, answer.flushed_end_offset, answer.sent_ms, answer.leader_end_offset
        )
        if answer.round == known.round and answer.incarnation == known.incarnation:
            if known.mode == "truncate":
                known.stream(answer.end_offset)
            known.holds(answer.end_offset)
        return moved

    def failed(self, follower: int, round_: int) -> None:
        """A request came to nothing: a gap, a refusal, a follower out of reach. Its log is asked for again."""
        known = self._followers.get(follower)
        if known is not None and round_ == known.round and known.mode != "probe":
            known.probe()
