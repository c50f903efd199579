"""One partition as a producer sees it: what waits, what is in flight, and in which sequence. Pure state; the sender
moves it.

The rules that keep retries from doubling or reordering (KIP-98, KIP-360):
- A batch keeps its bytes, and so its sequence, over all its tries.
- When a batch is given up, the numbers after it can never be accepted: the pipeline *drains*. Nothing new is sent until
  all that is in flight is settled or known not to be in the log; the latter is taken back. Then the epoch is raised,
  which also bars late arrivals of earlier tries, and sequences begin at 0.
- A batch whose outcome is unknown is never encoded again.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import pyarrow as pa

from raystream import batch as b
from raystream import messages as m
from raystream.client.accumulator import Sink
from raystream.client.sent import Piece
from raystream.client.sent_frame import Frame
from raystream.config import INLINE_LIMIT_BYTES, MIB

_FULL_BYTES: Final = MIB
"""From here on a batch moves through the object store at memory speed."""
_MAX_EPOCH: Final = 2**15 - 1


class TakenBack(Exception):
    """The batch leaves the flight and waits again."""


class Batch:
    """Pieces that travel as one encoded batch."""

    __slots__ = (
        "base_sequence",
        "deadline_ms",
        "epoch",
        "first_sent_ms",
        "message",
        "nbytes",
        "number",
        "pieces",
        "producer_id",
        "rows",
        "taken_back",
        "unknown",
    )

    def __init__(self, number: int, pieces: list[Piece], producer_id: int, epoch: int, base_sequence: int) -> None:
        self.number = number
        self.pieces = pieces
        self.rows = sum(piece.count for piece in pieces)
        self.nbytes = sum(piece.nbytes for piece in pieces)
        self.producer_id = producer_id
        self.epoch = epoch
        self.base_sequence = base_sequence
        self.deadline_ms = min(piece.deadline_ms for piece in pieces)
        self.message: memoryview | None = None
        self.first_sent_ms: float | None = None
        self.unknown = False
        """Whether a try ended without an answer: it may be in the log, or get there yet."""
        self.taken_back = False

    def encode(self, topic_id: str, partition: int, schema_id: int, attributes: int, compression: str | None) -> None:
        """Makes the message and lets the rows go. The only work on the rows; may run on any thread."""
        batches = [piece.rows for piece in self.pieces]
        rows = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
        fields = b.ProducerFields(
            topic_id=topic_id,
            partition=partition,
            schema_id=schema_id,
            producer_id=self.producer_id,
            producer_epoch=self.epoch,
            base_sequence=self.base_sequence,
            last_offset_delta=self.rows - 1,
            first_timestamp_ms=self.pieces[0].first_timestamp_ms,
            max_timestamp_ms=max(piece.max_timestamp_ms for piece in self.pieces),
            attributes=attributes,
        )
        self.message = b.encode(rows, fields, compression=compression)
        for piece in self.pieces:
            piece.rows = None  # the message holds them; two copies would double what the buffer's bound allows

    def decode(self, schema: pa.Schema) -> None:
        """Gives the pieces their rows back from the message, for another batch."""
        assert self.message is not None
        rows = b.decode(self.message, schema)
        first = 0
        for piece in self.pieces:
            piece.rows = rows.slice(first, piece.count)
            first += piece.count


class Pipeline:
    """What waits for one partition and what is in flight to it."""

    __slots__ = (
        "_next_number",
        "acknowledged_epoch",
        "draining",
        "epoch",
        "fenced",
        "gap_unknown",
        "in_flight",
        "max_in_flight",
        "partition",
        "pending",
        "pending_bytes",
        "producer_id",
        "sequence",
        "sink",
        "taken_back",
        "throttled",
        "through",
        "trouble",
    )

    def __init__(self, sink: Sink, partition: int, max_in_flight: int) -> None:
        self.sink = sink
        self.partition = partition
        self.max_in_flight = max_in_flight
        self.pending: deque[Piece] = deque()
        self.pending_bytes = 0
        self.in_flight: list[Batch] = []
        self._next_number = 0
        self.producer_id: int | None = None
        self.fenced = False
        """The producer id is of no use any more: after the draining comes a new one."""
        self.epoch = 0
        self.sequence = 0
        self.draining = False
        self.gap_unknown = False
        """Draining because of a batch that may yet arrive."""
        self.taken_back: list[Batch] = []
        self.through = 0
        """Records of later transactions wait."""
        self.throttled = False
        """The client has used up its quota there: nothing new is sent for a while."""
        self.acknowledged_epoch = -1
        """The latest leader epoch in which the partition acknowledged a batch."""
        self.trouble: BaseException | None = None
        """Why the last batch that was settled failed."""

    @property
    def waiting_bytes(self) -> int:
        """How much is on its way to the partition."""
        return self.pending_bytes + sum(batch.nbytes for batch in self.in_flight)

    @property
    def idle(self) -> bool:
        return not self.in_flight and not self.pending

    def add(self, piece: Piece) -> None:
        self.pending.append(piece)
        self.pending_bytes += piece.nbytes

    def may_send(self) -> bool:
        """Whether another batch should leave now.

        While one is in flight, what waits grows until it is worth a large message: depth in flight costs latency, and
        sizes between the inline limit and a megabyte cost the most per byte.
        """
        if not self.pending or self.draining or self.throttled or self.pending[0].transaction > self.through:
            return False
        if not self.in_flight:
            return True
        # Counted from the oldest unsettled batch, not by how many are unsettled: a partition remembers the last five
        # batches of a producer, and must still know the oldest when it is sent again.
        window = self._next_number - self.in_flight[0].number
        return window < self.max_in_flight and self.pending_bytes >= min(_FULL_BYTES, self.sink.chunk_bytes)

    def request(self, leader_epoch: int, acks: int | str, client_id: str, age_ms: float = 0) -> m.AppendRequest:
        """What goes with a batch to the partition's leader."""
        return m.AppendRequest(
            topic_id=self.sink.topic_id,
            partition=self.partition,
            leader_epoch=leader_epoch,
            acks=-1 if acks == "all" else int(acks),
            age_ms=int(age_ms),
            client_id=client_id,
        )

    def next_pieces(self) -> list[Piece]:
        """Takes as many waiting pieces as one batch may hold."""
        frames = isinstance(self.pending[0].delivery, Frame)
        limit = self.sink.frame_bytes if frames else self.sink.chunk_bytes
        pieces = [self.pending.popleft()]
        nbytes = pieces[0].nbytes
        while self.pending and nbytes + self.pending[0].nbytes <= limit and self.pending[0].transaction <= self.through:
            piece = self.pending.popleft()
            nbytes += piece.nbytes
            pieces.append(piece)
        self.pending_bytes -= nbytes
        return pieces

    def next_batch(self, pieces: list[Piece]) -> Batch:
        """A batch with the next sequence, in flight from now on."""
        assert self.producer_id is not None
        batch = Batch(self._next_number, pieces, self.producer_id, self.epoch, self.sequence)
        self._next_number += 1
        if self.producer_id != b.NO_PRODUCER_ID:
            self.sequence = b.advance_sequence(self.sequence, batch.rows)
        self.in_flight.append(batch)
        return batch

    def is_head(self, batch: Batch) -> bool:
        """Whether everything before the batch is settled."""
        return bool(self.in_flight) and self.in_flight[0] is batch

    def may_take_back(self, batch: Batch, *, sent_as_head: bool) -> bool:
        """Whether a batch that was refused as out of order is known not to be in the log, now and for good.

        It is, if every try was answered. It also is if everything before it was in the log when this try was sent, for
        then the partition lost something that it had acknowledged: the gap never closes, and no earlier try of the
        batch is ever accepted. A verdict on a try that was sent earlier proves nothing: another try of the same batch
        may have taken its place in the partition's reorder buffer. Nor does that of a leader whose epoch is over, and
        who has not heard of it: the sender does not ask on such a one's word.
        """
        return not batch.unknown or (sent_as_head and not self.gap_unknown)

    def settled(self, batch: Batch) -> None:
        """The batch left the flight. Ends the draining when it was the last."""
        self.in_flight.remove(batch)
        if batch.taken_back:
            batch.decode(self.sink.schema)
            self.taken_back.append(batch)
        batch.message = None
        if self.draining and not self.in_flight:
            self._restart()

    def _restart(self) -> None:
        for batch in sorted(self.taken_back, key=lambda batch: -batch.number):
            self.pending.extendleft(reversed(batch.pieces))
            self.pending_bytes += batch.nbytes
        self.taken_back = []
        self.draining = self.gap_unknown = False
        self.sequence = 0
        self.epoch += 1
        if self.fenced or self.epoch > _MAX_EPOCH:
            self.fenced = False
            self.epoch = 0
            if self.producer_id != b.NO_PRODUCER_ID:
                self.producer_id = None

    @property
    def place(self) -> tuple[str, int]:
        """Topic id and partition."""
        return self.sink.topic_id, self.partition

    def begin(self, producer_id: int, epoch: int) -> None:
        """Numbers what comes anew; nothing is in flight."""
        assert not self.in_flight
        self.producer_id, self.epoch, self.sequence = producer_id, epoch, 0
        self.draining = self.gap_unknown = self.fenced = False
        self.taken_back = []

    def take(self, transaction: int) -> list[Piece]:
        """What waits of one transaction, for failing it."""
        pieces = [piece for piece in self.pending if piece.transaction == transaction]
        self.pending = deque(piece for piece in self.pending if piece.transaction != transaction)
        self.pending_bytes -= sum(piece.nbytes for piece in pieces)
        return pieces

    def take_all(self) -> list[Piece]:
        """Everything that waits, for failing it."""
        pieces = list(self.pending)
        self.pending.clear()
        self.pending_bytes = 0
        return pieces


def encodes_long(nbytes: int) -> bool:
    """Whether encoding so much is worth a thread of its own."""
    return nbytes > 4 * INLINE_LIMIT_BYTES
