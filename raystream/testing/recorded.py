"""A transactional producer that records everything it does: one process of a history, from its first `begin` on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from raystream.errors import (
    DeliveryFailed,
    FencedMember,
    FencedProducer,
    InvalidArgument,
    RaystreamError,
    RequestTimeout,
    TransactionTimedOut,
    UnknownMember,
)
from raystream.testing.clients import Place

if TYPE_CHECKING:
    from raystream.client.committing import Committing
    from raystream.client.consumer import Consumer
    from raystream.client.delivered import Batch
    from raystream.client.sent import Sent

ASKS: Final = 3
"""So often an end is asked for whose outcome is unknown."""
LOOK_S: Final = 0.01
SURELY_NOT: Final = (DeliveryFailed, TransactionTimedOut, FencedMember, UnknownMember)
"""A commit that raises one of these has decided nothing."""


class RecordedProducer:
    """Transactions are `process/number`, values `process-number` or what the caller makes of that."""

    def __init__(self, place: Place, process: str, transactional_id: str, settings: Mapping[str, Any]) -> None:
        self._place = place
        self._transactional_id = transactional_id
        self._transactions = 0
        self._values = 0
        self._sent: list[tuple[dict[str, Any], Sent]] = []
        self._later: list[tuple[dict[str, Any], list[tuple[dict[str, Any], Sent]], Committing]] = []
        self.process = process
        self.txn = f"{process}/0"
        """The transaction that is open, or the next."""
        self.fenced = False
        """Whether another producer has the transactional id."""
        self.took_over = False
        """Whether its first transaction has begun."""
        self.usable = True
        """Whether another transaction can begin."""
        self._producer = place.cluster.producer(transactional_id=transactional_id, client_id=process, **settings)

    def begin(self) -> bool:
        """Whether a transaction is open now."""
        fields = {"txn": self.txn, "transactional_id": self._transactional_id}
        self._record("invoke", "begin", fields)
        try:
            self._producer.begin_transaction()
        except RaystreamError as error:
            self._failed(error)
            self.usable = self.usable and isinstance(error, RequestTimeout)
            self._record("info", "begin", fields, error)
            return False
        self._record("ok", "begin", fields)
        self.took_over = True
        return True

    def next_value(self) -> str:
        """One that nobody else sends."""
        self._values += 1
        return f"{self.process}-{self._values}"

    def send(self, topic: str, **record: Any) -> None:
        """A record in the open transaction; `record` may also say of which value it was made, by which group."""
        fields = {"topic": topic, "txn": self.txn, **record}
        self._record("invoke", "send", fields)
        given = {name: record[name] for name in ("value", "key", "partition") if name in record}
        try:
            self._sent.append((fields, self._producer.send(topic, **given)))
        except RaystreamError as error:
            self._record("fail", "send", fields, error)

    def settle(self) -> None:
        """Waits for what was sent, and records what became of it."""
        sent, self._sent = self._sent, []
        self._settle(sent)

    def _settle(self, sent: list[tuple[dict[str, Any], Sent]]) -> None:
        for fields, one in sent:
            try:
                where = one.result(self._place.wait_s)
            except InvalidArgument as error:
                self._record("fail", "send", fields, error)
            except RaystreamError as error:
                self._record("info", "send", fields, error)
            else:
                self._record("ok", "send", {**fields, "partition": where.partition, "offset": where.offset})
                if fields["topic"] == self._place.topic:
                    self._place.saw(where.partition, where.offset)

    def commit_offsets(self, consumer: Consumer, batch: Batch, group: str) -> bool:
        """Whether the position behind the batch goes with the transaction."""
        offsets = [(batch.topic, batch.partition, batch.offsets.stop)]
        fields = {"group": group, "offsets": offsets, "txn": self.txn}
        self._record("invoke", "commit", fields)
        try:
            self._producer.commit_offsets(consumer, batch)
        except RaystreamError as error:
            self._record("fail", "commit", fields, error)
            return False
        self._record("ok", "commit", fields)
        return True

    def commit(self) -> bool:
        """Whether the transaction surely is committed; aborts it where it is not."""
        for _ in range(ASKS):
            error = self._end("commit")
            if error is None:
                return True
            if not isinstance(error, RequestTimeout):
                break
        self.abort()
        return False

    def commit_later(self) -> None:
        """Asks for the commit, and the next transaction may begin; `settle_later` waits for it."""
        fields = {"txn": self.txn, "outcome": "commit"}
        self._record("invoke", "end", fields)
        try:
            committing = self._producer.commit_transaction(wait=False)
        except RaystreamError as error:  # it is open as before: what failed was one before it
            self._failed(error)
            self._record("fail", "end", fields, error)
            self.abort()
            return
        self._later.append((fields, self._sent, committing))
        self._sent = []
        self._next()

    def settle_later(self) -> None:
        """Waits for what was sent and committed by `commit_later`, and records what became of it."""
        later, self._later = self._later, []
        for fields, sent, committing in later:
            self._settle(sent)
            while not committing.done():  # bounded: an end is given up after a minute
                time.sleep(LOOK_S)
            try:
                committing.result(0)
            except RaystreamError as error:
                self._failed(error)
                self._record("fail" if isinstance(error, SURELY_NOT) else "info", "end", fields, error)
            else:
                self._record("ok", "end", fields)
        with contextlib.suppress(RaystreamError):  # why one failed is told once more
            self._producer.flush()

    def abort(self) -> None:
        """Takes the transaction back, where that is still possible."""
        if not self.fenced and self._end("abort") is not None:
            self.usable = False

    def _end(self, outcome: str) -> RaystreamError | None:
        fields = {"txn": self.txn, "outcome": outcome}
        self._record("invoke", "end", fields)
        try:
            if outcome == "commit":
                self._producer.commit_transaction()
            else:
                self._producer.abort_transaction()
        except RaystreamError as error:
            self._failed(error)
            surely = outcome == "commit" and isinstance(error, SURELY_NOT)
            self._record("fail" if surely else "info", "end", fields, error)
            return error
        self._record("ok", "end", fields)
        self._next()
        return None

    def _next(self) -> None:
        self._transactions += 1
        self.txn = f"{self.process}/{self._transactions}"

    def close(self) -> None:
        """Ends it; what is open is aborted."""
        try:
            self._producer.close()
        except RaystreamError as error:
            self._failed(error)

    def _failed(self, error: RaystreamError) -> None:
        if isinstance(error, FencedProducer):
            self.fenced, self.usable = True, False

    def _record(self, type: Any, kind: Any, fields: Mapping[str, Any], error: RaystreamError | None = None) -> None:
        said = {} if error is None else {"error": repr(error)}
        self._place.recorder.record(self.process, type, kind, **fields, **said)
