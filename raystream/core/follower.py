"""A following replica's decisions: whom it hears, what it drops, what it takes over, and up to where it may be read.

A replica follows in one life (incarnation) and one leader epoch at a time. In each pairing of the two it is first
*aligned*: the leader asks how its log stands and says where to cut it, once. Only then does it take batches, and only
then does what it says count; so whatever an aligned replica holds, its leader holds at the same offsets. A request that
comes late, twice or to a later life than it was meant for cannot undo that.
"""

from __future__ import annotations

from collections.abc import Sequence

from raystream.core.replication import (
    UNKNOWN,
    Answer,
    BatchAt,
    EpochStarts,
    Probe,
    ProbeAnswer,
    Request,
    Send,
    Truncate,
)
from raystream.errors import Fenced, FencedLeaderEpoch, StorageError, UnknownLeaderEpoch


class Follower:
    """One life of a replica. One thread calls it; the shell changes the log and reports what it did.

    `high_watermark` is what the replica knew when it last stood; `leader_epoch` what the controller said.
    """

    def __init__(
        self,
        broker_id: int,
        incarnation: int,
        leader_epoch: int,
        *,
        end_offset: int,
        flushed_end_offset: int,
        high_watermark: int,
        epochs: EpochStarts,
    ) -> None:
        self.broker_id = broker_id
        self.incarnation = incarnation
        self.leader_epoch = leader_epoch
        self.end_offset = end_offset
        self.flushed_end_offset = flushed_end_offset
        self.high_watermark = high_watermark
        """All below may be read here: it is committed, and it is on this disk. Never moves back."""
        self.aligned = False
        """Whether all that the log holds is known to be in the leader's."""
        self.quarantined = False
        """The log lacks, or holds otherwise, what is committed: the replica is of no use until somebody has looked."""
        self._epochs = epochs
        self._leader_high_watermark = high_watermark
        self._took_rewritten = False
        self._probed: int | None = None
        """The round of the latest probe that was answered: the log is as that says, and to be cut by it alone."""

    @property
    def epochs(self) -> EpochStarts:
        """The log's leader epochs."""
        return self._epochs

    def led(self, leader_epoch: int) -> None:
        """The controller has said who leads since when. Older news than what is known changes nothing."""
        if leader_epoch > self.leader_epoch:
            self.leader_epoch = leader_epoch
            self.aligned = False
            self._probed = None

    def check(self, request: Request) -> None:
        """Raises FencedLeaderEpoch for a leader that was, UnknownLeaderEpoch for one that the controller has not told
        of yet, Fenced for what was meant for another life of this replica, StorageError in quarantine."""
        if self.quarantined:
            raise StorageError(
                f"the replica on broker {self.broker_id} is quarantined: it parts from what is committed"
            )
        asked = f"the request carries leader epoch {request.leader_epoch}, and broker {self.broker_id} knows of"
        if request.leader_epoch < self.leader_epoch:
            raise FencedLeaderEpoch(f"{asked} {self.leader_epoch}")
        if request.leader_epoch > self.leader_epoch:
            raise UnknownLeaderEpoch(f"{asked} {self.leader_epoch} only: try again")
        if not isinstance(request, Probe) and request.incarnation != self.incarnation:
            raise Fenced(
                f"broker {self.broker_id} is at incarnation {self.incarnation}, the request for {request.incarnation}"
            )

    # Aligning -------------------------------------------------------------------------------------------------------

    def probed(self, request: Probe) -> ProbeAnswer:
        """How the log stands. Raises as `check`."""
        self.check(request)
        self._probed = request.round
        return ProbeAnswer(
            follower=self.broker_id,
            incarnation=self.incarnation,
            leader_epoch=self.leader_epoch,
            round=request.round,
            end_offset=self.end_offset,
            epochs=self._epochs,
        )

    def truncation(self, request: Truncate) -> int | None:
        """From which offset the log is to be cut, durably; None: it stays as it is. Then the shell calls `truncated`.

        With `request.anew` the whole log goes, and another one begins at that offset. Raises as `check`, Fenced where
        the cut was found for a log that stood otherwise, and StorageError, from which on the replica is quarantined,
        where that would cut what is committed.
        """
        self.check(request)
        if self.aligned and not self._is_left_behind(request):
            return None  # all that is here came from this leader since, or agreed with it then
        if request.round != self._probed:
            raise Fenced(f"a truncation of round {request.round}, and broker {self.broker_id} answered {self._probed}")
        if request.offset < self.high_watermark:
            self.quarantined = True
            raise StorageError(
                f"the log of epoch {request.leader_epoch}'s leader parts from the one on broker {self.broker_id} at "
                f"offset {request.offset}, and all below {self.high_watermark} is committed"
            )
        return request.offset if request.anew or request.offset < self.end_offset else None

    def _is_left_behind(self, request: Truncate) -> bool:
        # The leader has deleted what would come next, which may happen to an aligned replica that is slow.
        return request.anew and request.offset > self.end_offset

    def truncated(self, request: Truncate) -> Answer:
        """The cut that `truncation` asked for is durable, or there was none. Raises as `check`."""
        self.check(request)
        if request.anew and (not self.aligned or self._is_left_behind(request)):
            self.end_offset = self.flushed_end_offset = request.offset
            self._epochs = ()
        elif not self.aligned:
            self.end_offset = min(self.end_offset, request.offset)
            self.flushed_end_offset = min(self.flushed_end_offset, self.end_offset)
            self._epochs = tuple(start for start in self._epochs if start[1] < self.end_offset)
        self.aligned = True
        return self.answer(request)

    # Batches --------------------------------------------------------------------------------------------------------

    def accept(self, request: Send, batches: Sequence[BatchAt]) -> int | None:
        """How many of the batches to skip, because they are here; the others go on from the log's end. None: there is a
        gap, and `answer` says so. Raises as `check`, and StorageError, from which on the replica is quarantined, where
        it holds something else: its leader counts it as what an aligned replica has.

        Notes the leader's high watermark, but for a gap.
        """
        self.check(request)
        if not self.aligned or not self._is_run(request, batches):
            return None
        skipped = 0
        for batch in batches:
            if batch.base_offset >= self.end_offset:
                break
            if (batch.rewritten or self._took_rewritten) and batch.end_offset > self.end_offset:
                return None  # sent before the follower's end was known
            if batch.end_offset > self.end_offset or self._epoch_at(batch.base_offset) not in (UNKNOWN, batch.epoch):
                self.quarantined = True
                raise StorageError(
                    f"the log on broker {self.broker_id} parts from its leader's at offset {batch.base_offset}, and "
                    "they were found to agree"
                )
            skipped += 1
        if request.offset > self.end_offset:
            return None
        self._leader_high_watermark = max(self._leader_high_watermark, request.high_watermark)
        self._advance()
        return skipped

    def _is_run(self, request: Send, batches: Sequence[BatchAt]) -> bool:
        expected, epoch = request.offset, -1
        for batch in batches:
            if batch.base_offset != expected or not epoch <= batch.epoch <= self.leader_epoch:
                return False
            expected, epoch = batch.end_offset, batch.epoch
        return True

    def _epoch_at(self, offset: int) -> int:
        return next((epoch for epoch, start in reversed(self._epochs) if start <= offset), UNKNOWN)

    def appended(self, batches: Sequence[BatchAt]) -> None:
        """The batches that were not to be skipped stand in the log."""
        for batch in batches:
            if not self._epochs or batch.epoch > self._epochs[-1][0]:
                self._epochs = (*self._epochs, (batch.epoch, batch.base_offset))
            self.end_offset = batch.end_offset
            self._took_rewritten = self._took_rewritten or batch.rewritten

    def flushed(self, end_offset: int) -> None:
        """All that was in the log below `end_offset` is on the disk."""
        self.flushed_end_offset = max(self.flushed_end_offset, min(end_offset, self.end_offset))
        self._advance()

    def _advance(self) -> None:
        if self.aligned:
            reached = min(self._leader_high_watermark, self.flushed_end_offset)
            self.high_watermark = max(self.high_watermark, reached)

    def answer(self, request: Truncate | Send, *, gap: bool = False) -> Answer:
        """How the log stands, in answer to a request; may be said again after a flush."""
        return Answer(
            follower=self.broker_id,
            incarnation=self.incarnation,
            leader_epoch=self.leader_epoch,
            round=request.round,
            sent_ms=request.sent_ms,
            leader_end_offset=request.leader_end_offset,
            end_offset=self.end_offset,
            flushed_end_offset=self.flushed_end_offset,
            gap=gap or not self.aligned,
        )
