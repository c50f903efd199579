"""Known ways to get transactions wrong, each planted alone: a world must notice every one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from raystream.core import transactions
from raystream.core.coordinator import Coordinator
from raystream.core.transaction_records import TransactionRecord
from raystream.core.transactions import Transactions
from raystream.storage.producer_state import ProducerState
from tests.sim.planted import Bug, replaced

_ended, _speaks = transactions._ended, Transactions._speaks
_decided, _prepared = Transactions.end, Transactions.prepared
_check, _end, _init = ProducerState.check, Coordinator.end_transaction, Transactions.init


def _same_epoch(known: TransactionRecord, *, commit: bool) -> TransactionRecord:
    return dataclasses.replace(_ended(known, commit=commit), epoch=known.epoch)


def _ends_of_any_epoch(self: Transactions, request: Any) -> TransactionRecord:
    known = self._records[request.transactional_id]
    return _speaks(self, dataclasses.replace(request, producer_id=known.producer_id, producer_epoch=known.epoch))


def _noted(self: Transactions, request: Any) -> Any:
    self.__dict__.setdefault("decided_here", set()).add(request.transactional_id)
    return _decided(self, request)


def _not_resumed(self: Transactions) -> tuple[TransactionRecord, ...]:
    here = self.__dict__.get("decided_here", ())
    return tuple(record for record in _prepared(self) if record.transactional_id in here)


def _moved_by_aborts(self: Coordinator, request: Any) -> Any:
    decision = _end(self, request)
    if not decision.records or request.commit:
        return decision
    moved = [record for commit in request.offsets for record in self.groups.commit(commit).records]
    return dataclasses.replace(decision, records=(*decision.records, *moved))


def _any_epoch_writes(self: ProducerState, header: Any, *, age_ms: int = 0) -> Any:
    known = self._producers.get(header.producer_id)
    if known is not None and header.producer_epoch < known.epoch:
        header = dataclasses.replace(header, producer_epoch=known.epoch)
    return _check(self, header, age_ms=age_ms)


def _left_open(self: Transactions, request: Any) -> Any:
    known = self._records.get(request.transactional_id)
    if known is not None and known.state == "ongoing":
        raised = dataclasses.replace(known, state="empty", partitions=(), epoch=known.epoch + 1)
        self._records[request.transactional_id] = raised
    return _init(self, request)


def _everything_is_stable(self: ProducerState, high_watermark: int, start_offset: int) -> int:
    return high_watermark


BUGS: Final[Mapping[str, Bug]] = {
    "what is open is shown": replaced(ProducerState, "last_stable_offset", _everything_is_stable),
    "an abort is marked as a commit": replaced(TransactionRecord, "commits", property(lambda _: True)),
    "an end keeps the epoch": replaced(transactions, "_ended", _same_epoch),
    "an end of an earlier epoch decides": replaced(Transactions, "_speaks", _ends_of_any_epoch),
    "an abort moves the positions": replaced(Coordinator, "end_transaction", _moved_by_aborts),
    "writes of an ended epoch are taken": replaced(ProducerState, "check", _any_epoch_writes),
    "a successor leaves open what it finds": replaced(Transactions, "init", _left_open),
    "markers are not resumed by the next coordinator": replaced(
        Transactions, "prepared", _not_resumed, (Transactions, "end", _noted)
    ),
    "a marker that stands is written again": replaced(ProducerState, "marked", lambda *_: False),
}
"""By what is wrong."""


def seeds_to_catch(name: str, run: Callable[[int], Any], at_most: int) -> int | None:
    """How many seeds it takes until a world notices."""
    with BUGS[name].planted():
        for seed in range(at_most):
            try:
                run(seed)
            except Exception:
                return seed + 1
    return None
