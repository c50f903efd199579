"""Known ways to break exactly once, each planted alone in the product: a world must notice every one.

python -m tests.sim.cluster.transaction_bugs        prints by which seed each is caught, from 0 on
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from raystream.actors import replica
from raystream.actors.leading import Leading
from raystream.actors.offsets_log import OffsetsLog
from raystream.client.session import Session
from raystream.client.transactional import TransactionalSender
from raystream.client.transactional_producer import TransactionalProducer
from raystream.core import transactions
from raystream.core.transaction_records import TransactionRecord
from raystream.core.transactions import Transactions
from raystream.storage.producer_state import ProducerState
from tests.sim.cluster.bugs import _not_written
from tests.sim.cluster.transactions import run
from tests.sim.planted import Bug, caught, replaced, tell
from tests.sim.transactions_bugs import (
    _any_epoch_writes,
    _everything_is_stable,
    _left_open,
    _not_resumed,
    _noted,
    _same_epoch,
)

AT_MOST: Final = 15
DEATHS: Final = ("kill_partition_actor", "kill_client", "pause_process")
COORDINATORS: Final = ("kill_coordinator", "kill_partition_actor", "kill_machine")


def _committed_at_once(self: TransactionalProducer, consumer: Any, batch: Any = None) -> None:
    self._check_transaction()
    consumer.commit(batch)


def _open_ones_forgotten(self: Leading, *arguments: Any) -> None:
    _lead(self, *arguments)
    self._log.producers._open.clear()


def _nothing_was_aborted(*_: Any) -> tuple[()]:
    return ()


async def _not_rewound(self: Session) -> None:
    pass


def _all_are_let_go(self: TransactionalSender, number: int) -> None:
    _let_go(self, number)
    for pipeline in self._all_pipelines():
        pipeline.through = 1 << 60
        self._pump(pipeline)


_lead = Leading.__init__
_let_go = TransactionalSender._let_go

BUGS: Final[Mapping[str, Bug]] = {
    "what is open is shown": replaced(ProducerState, "last_stable_offset", _everything_is_stable),
    "readers are not told what was aborted": replaced(replica, "overlapping", _nothing_was_aborted, at=2),
    "an abort is marked as a commit": replaced(TransactionRecord, "commits", property(lambda _: True), at=2),
    "an end keeps the epoch": replaced(transactions, "_ended", _same_epoch),
    "writes of an ended epoch are taken": replaced(ProducerState, "check", _any_epoch_writes, at=2),
    "positions move outside the transaction": replaced(
        TransactionalProducer, "commit_offsets", _committed_at_once, at=3
    ),
    "what was aborted is not read again": replaced(Session, "rewind", _not_rewound, at=6),
    "what waits for its turn goes with the one before": replaced(TransactionalSender, "_let_go", _all_are_let_go, at=1),
    "a successor leaves open what it finds": replaced(Transactions, "init", _left_open, at=2),
    "a new leader forgets open transactions": replaced(Leading, "__init__", _open_ones_forgotten, focus=DEATHS, at=6),
    "a new coordinator forgets what is decided": replaced(
        Transactions, "prepared", _not_resumed, (Transactions, "end", _noted), focus=COORDINATORS, at=1
    ),
    "a decision is carried out and not written": replaced(
        OffsetsLog, "append", _not_written, focus=("kill_coordinator",)
    ),
}
"""By what is wrong."""


def line(name: str) -> str:
    """How many seeds it takes, and what is said then."""
    return caught(run, BUGS, name, at_most=AT_MOST)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.cluster.transaction_bugs", *sys.argv[1:]])
    tell(line, sys.argv[1:] or BUGS)
