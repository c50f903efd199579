"""The following side of a replica: takes over its leader's log, byte for byte, and says how far its disk is.

Everything here runs on the partition actor's writer turn. Requests in flight may overtake each other on their way: one
that comes early waits, bounded, for the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from raystream import batch as b
from raystream import messages as m
from raystream.actors.writer import Ticket
from raystream.core.follower import Follower
from raystream.core.replication import BatchAt, Probe, Send, Truncate
from raystream.errors import ProtocolMismatch, StorageError
from raystream.storage.producer_state import ProducerState

if TYPE_CHECKING:
    from raystream.actors.replica import Replica

EARLY_WAIT_MS: Final = 300.0
MAX_EARLY: Final = 64


@dataclass(frozen=True, slots=True)
class Replicated:
    """A leader's request as it waits for the writer, with its batches checked."""

    replica: Replica
    request: m.ReplicateRequest
    batches: Sequence[tuple[memoryview, b.BatchHeader]]
    producers: ProducerState | None = None
    """What the leader remembers of producers whose batches it does not have any more as they were."""


class Following:
    """One replica as a follower, in one life of its broker."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._log = replica.log
        self._clock = replica.clock
        end = self._log.flush()
        spec = replica.spec
        self.core = Follower(
            spec.broker_id,
            spec.broker_incarnation,
            spec.leader_epoch,
            end_offset=end,
            flushed_end_offset=end,
            high_watermark=replica.high_watermark,
            epochs=tuple(self._log.epochs.starts),
        )
        self._written: list[Ticket[Replicated]] = []
        self._early: dict[int, tuple[float, Ticket[Replicated]]] = {}
        self._log_start_offset = 0
        self._catching_up = False

    @property
    def trouble(self) -> str | None:
        """Why the replica is of no use: its log parts from what is committed."""
        return f"{m.CORRUPT_LOG}it parts from what is committed" if self.core.quarantined else None

    def take_over(self, spec: m.ReplicaSpec) -> None:
        """News of the controller."""
        self.core.led(spec.leader_epoch)

    def end(self, error: Exception) -> None:
        """This replica follows no more."""
        for ticket in [*self._written, *(ticket for _, ticket in self._early.values())]:
            ticket.fail(error)
        self._written, self._early = [], {}

    def offer(self, ticket: Ticket[Replicated]) -> None:
        """Does what the leader asks; the answer comes with `commit`, or the refusal at once."""
        try:
            self._offer(ticket)
        except Exception as error:
            ticket.fail(error)
            if isinstance(error, StorageError) and not error.retriable and not self.core.quarantined:
                raise

    def _offer(self, ticket: Ticket[Replicated]) -> None:
        request = ticket.work.request.request
        match request:
            case Probe():
                ticket.answer(self.core.probed(request))
            case Truncate():
                self._truncate(request, ticket.work.producers)
                ticket.answer(self.core.truncated(request))
            case Send():
                self._take(ticket, request)
            case _:
                raise ProtocolMismatch(f"a leader sent a {type(request).__name__}, which this raystream does not know")

    def _truncate(self, request: Truncate, producers: ProducerState | None) -> None:
        offset = self.core.truncation(request)
        if offset is not None and request.anew:
            self._log.begin_at(offset, producers)
            return
        if offset is not None and self._log.truncate(offset) != offset:
            raise StorageError(f"offset {offset} stands inside a batch of this replica: its log cannot be cut there")
        if producers is not None:
            self._log.learn(producers)

    def _take(self, ticket: Ticket[Replicated], request: Send) -> None:
        batches = ticket.work.batches
        places = [BatchAt(h.base_offset, h.next_offset, h.leader_epoch, h.is_explicit) for _, h in batches]
        skip = self.core.accept(request, places)
        if skip is None:
            if self.core.aligned and request.offset > self.core.end_offset and len(self._early) < MAX_EARLY:
                self._keep_early(ticket, request.offset)
            else:
                ticket.answer(self.core.answer(request, gap=True))
            return
        if places[skip:]:
            self._log.append_as_follower(batches[skip:])
            self.core.appended(places[skip:])
        self._catching_up = request.catch_up
        self._log_start_offset = max(self._log_start_offset, ticket.work.request.log_start_offset)
        self._written.append(ticket)
        early = self._early.pop(self.core.end_offset, None) if places[skip:] else None
        if early is not None:
            self.offer(early[1])

    def _keep_early(self, ticket: Ticket[Replicated], offset: int) -> None:
        before = self._early.pop(offset, None)
        if before is not None:
            before[1].answer(self.core.answer(before[1].work.request.request, gap=True))
        self._early[offset] = (self._clock.monotonic_ms() + EARLY_WAIT_MS, ticket)

    def commit(self) -> None:
        """Syncs what was taken over since the last commit, and answers the leader."""
        if self._written:
            end = self._log.flush() if self._replica.config.flush == "fsync" else self._log.end_offset
            self.core.flushed(end)
            if self._catching_up:
                self._log.drop_cached()
            self._replica.publish(self.core.high_watermark)
            written, self._written = self._written, []
            for ticket in written:
                ticket.answer(self.core.answer(ticket.work.request.request))
            self._follow_start()
        now_ms = self._clock.monotonic_ms()
        for offset in [offset for offset, (until_ms, _) in self._early.items() if until_ms <= now_ms]:
            _, ticket = self._early.pop(offset)
            ticket.answer(self.core.answer(ticket.work.request.request, gap=True))

    def _follow_start(self) -> None:
        """What the leader has deleted goes here too."""
        start = min(self._log_start_offset, self._replica.high_watermark)
        if start > self._log.start_offset:
            self._log.delete_before(start, active_too=True)

    def next_deadline_ms(self) -> float | None:
        """When an early request has waited long enough, on the monotonic clock."""
        return min((until_ms for until_ms, _ in self._early.values()), default=None)
