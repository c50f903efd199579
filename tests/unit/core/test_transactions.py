"""Transactions as the coordinator decides them: every decision once, every epoch over when it is decided."""

from __future__ import annotations

from typing import Any

import pytest

from raystream import messages as m
from raystream.config import DAY_MS
from raystream.core.coordinator import Coordinator
from raystream.core.records import from_pair, to_pair
from raystream.core.transaction_records import PREPARE_ABORT, PREPARE_COMMIT, TransactionRecord
from raystream.core.transactions import MAX_EPOCH, MAX_TIMEOUT_MS
from raystream.errors import (
    ConcurrentTransactions,
    FencedMember,
    FencedProducer,
    InvalidArgument,
    InvalidTransactionState,
    TransactionTimedOut,
    UnknownMember,
)

TOPICS = {"in": 2, "out": 2}


class House:
    """A coordinator whose decisions are written down and replayed at once, as records that went through the log."""

    def __init__(self) -> None:
        self.state = Coordinator()
        self.now_ms = 1_000.0
        self.rows: list[Any] = []

    def do(self, decision: Any) -> Any:
        for record in decision.records:
            pair = to_pair(record)
            self.rows.append(pair)
            self.state.replay(from_pair(*pair), self.now_ms)
        if isinstance(decision.reply, Exception):
            raise decision.reply
        return decision.reply

    def init(self, instance: str = "a", timeout_ms: int = 60_000, name: str = "tx") -> tuple[int, int]:
        request = m.InitProducerRequest(transactional_id=name, instance=instance, transaction_timeout_ms=timeout_ms)
        reply = self.do(self.state.init_producer(request))
        return reply.producer_id, reply.producer_epoch

    def add(self, who: tuple[int, int], *partitions: int, name: str = "tx") -> None:
        self.do(
            self.state.transactions.add_partitions(
                m.AddPartitionsRequest(
                    transactional_id=name,
                    producer_id=who[0],
                    producer_epoch=who[1],
                    partitions=tuple(("out", "id", number) for number in partitions or (0,)),
                )
            )
        )

    def end(self, who: tuple[int, int], commit: bool = True, offsets: tuple[m.CommitRequest, ...] = ()) -> Any:
        request = m.EndTransactionRequest(
            transactional_id="tx", producer_id=who[0], producer_epoch=who[1], commit=commit, offsets=offsets
        )
        return self.do(self.state.end_transaction(request))

    def write_markers(self) -> list[TransactionRecord]:
        """As the coordinator's shell does; returns what was told to partitions."""
        told = list(self.state.transactions.prepared())
        for record in told:
            self.do(self.state.transactions.complete(record))
        return told

    def restart(self) -> None:
        """A new coordinator reads the log."""
        self.state = Coordinator()
        for pair in self.rows:
            self.state.replay(from_pair(*pair), self.now_ms)

    def at_epoch(self, epoch: int, instance: str = "a") -> tuple[int, int]:
        """The producer as if it had ended so many transactions."""
        producer_id, _ = self.init(instance)
        self.do(_Written(TransactionRecord("tx", producer_id, epoch, 60_000, instance)))
        return producer_id, epoch

    def join(self) -> m.HeartbeatReply:
        request = m.HeartbeatRequest(group="g", member_id="m", member_epoch=0, topics=("in",))
        reply: m.HeartbeatReply = self.do(self.state.heartbeat(request, TOPICS, self.now_ms))
        return reply

    def position(self) -> dict[tuple[str, int], int]:
        request = m.GroupRequest(group="g")
        return {(c.topic, c.partition): c.offset for c in self.state.fetch_offsets(request).reply}


class _Written:
    reply = None

    def __init__(self, *records: Any) -> None:
        self.records = records


def commit(offset: int, epoch: int, member: str = "m") -> tuple[m.CommitRequest, ...]:
    moved = m.CommitRequest(
        group="g", member_id=member, member_epoch=epoch, offsets=(m.CommittedOffset("in", 0, offset),)
    )
    return (moved,)


@pytest.fixture
def house() -> House:
    return House()


# The way of a transaction ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("commits", [True, False])
def test_a_transaction_is_decided_marked_and_complete_with_the_next_epoch(house: House, commits: bool) -> None:
    who = house.init()
    house.add(who, 0, 1)
    reply = house.end(who, commits)
    assert (reply.producer_epoch, reply.complete) == (1, False)
    (told,) = house.write_markers()
    assert told.partitions == (("out", "id", 0), ("out", "id", 1))
    assert (told.producer_id, told.epoch, told.state) == (who[0], 1, PREPARE_COMMIT if commits else PREPARE_ABORT)
    assert house.end(who, commits) == m.EndTransactionReply(producer_id=who[0], producer_epoch=1)
    assert house.state.transactions.prepared() == ()


def test_partitions_join_while_it_is_open_and_the_next_one_begins_with_none(house: House) -> None:
    who = house.init()
    house.add(who, 0)
    house.add(who, 1)
    rows = len(house.rows)
    house.add(who, 0, 1)
    assert len(house.rows) == rows, "what is known already is not written again"
    house.end(who)
    assert len(house.write_markers()[0].partitions) == 2
    house.add((who[0], 1), 1)
    house.end((who[0], 1))
    assert house.write_markers()[0].partitions == (("out", "id", 1),)


def test_one_without_partitions_is_complete_at_once_and_raises_the_epoch_too(house: House) -> None:
    who = house.init()
    assert house.end(who) == m.EndTransactionReply(producer_id=who[0], producer_epoch=1)
    assert house.end(who) == m.EndTransactionReply(producer_id=who[0], producer_epoch=1)
    with pytest.raises(InvalidTransactionState, match="was committed"):
        house.end(who, False)


def test_the_next_one_waits_for_the_markers(house: House) -> None:
    who = house.init()
    house.add(who)
    house.end(who)
    with pytest.raises(ConcurrentTransactions):
        house.add((who[0], 1))
    with pytest.raises(ConcurrentTransactions):
        house.end((who[0], 1))
    house.write_markers()
    house.add((who[0], 1))


# Late and repeated ----------------------------------------------------------------------------------------------------


def test_a_late_end_does_not_decide_a_later_transaction(house: House) -> None:
    who = house.init()
    house.add(who)
    house.end(who)
    house.write_markers()
    house.add((who[0], 1))
    for commits in (True, False):
        with pytest.raises(FencedProducer):
            house.end(who, commits)
    assert house.state.transactions.prepared() == ()
    house.end((who[0], 1), False)
    assert house.write_markers()[0].state == PREPARE_ABORT


def test_the_same_end_twice_is_one_decision(house: House) -> None:
    who = house.init()
    house.add(who)
    first = house.end(who)
    rows = len(house.rows)
    assert house.end(who) == first and len(house.rows) == rows
    with pytest.raises(InvalidTransactionState, match="was committed"):
        house.end(who, False)


def test_a_late_registration_does_not_open_anything(house: House) -> None:
    who = house.init()
    house.add(who)
    house.end(who)
    house.write_markers()
    with pytest.raises(FencedProducer):
        house.add(who, 1)


def test_markers_that_were_written_twice_complete_nothing_later(house: House) -> None:
    who = house.init()
    house.add(who)
    house.end(who)
    (told,) = house.write_markers()
    house.add((who[0], 1))
    house.end((who[0], 1))
    assert house.state.transactions.complete(told).records == ()
    assert len(house.state.transactions.prepared()) == 1


# Two producers with one id --------------------------------------------------------------------------------------------


def test_a_successor_fences_its_predecessor(house: House) -> None:
    old = house.init("a")
    new = house.init("b")
    assert new == (old[0], old[1] + 1)
    for call in (house.add, house.end):
        with pytest.raises(FencedProducer):
            call(old)
    house.add(new)


def test_a_successor_aborts_what_is_open_and_gets_an_epoch_that_the_predecessor_cannot_know(house: House) -> None:
    old = house.init("a")
    house.add(old)
    with pytest.raises(ConcurrentTransactions):
        house.init("b")
    for epoch in (old[1], old[1] + 1):
        with pytest.raises(FencedProducer):
            house.end((old[0], epoch))
    (told,) = house.write_markers()
    assert (told.state, told.epoch) == (PREPARE_ABORT, 1)
    for epoch in (old[1], old[1] + 1):
        with pytest.raises(FencedProducer):
            house.add((old[0], epoch))
    assert house.init("b") == (old[0], 2)
    assert house.init("b") == (old[0], 2), "asked again, because the reply was lost"


def test_a_successor_does_not_change_what_is_decided(house: House) -> None:
    old = house.init("a")
    house.add(old)
    house.end(old)
    with pytest.raises(ConcurrentTransactions):
        house.init("b")
    assert house.write_markers()[0].state == PREPARE_COMMIT
    assert house.init("b") == (old[0], 2)
    with pytest.raises(FencedProducer):
        house.end(old)


def test_a_late_copy_of_the_first_call_neither_aborts_nor_fences(house: House) -> None:
    who = house.init("a")
    house.add(who)
    assert house.init("a") == who
    house.end(who)
    house.write_markers()
    assert house.init("a") == (who[0], 1)


def test_epochs_that_are_used_up_give_a_new_producer_id(house: House) -> None:
    who = house.at_epoch(MAX_EPOCH - 1)
    house.add(who)
    house.end(who)
    (told,) = house.write_markers()
    assert (told.producer_id, told.epoch) == (who[0], MAX_EPOCH)
    reply = house.end(who)
    assert reply.producer_id != who[0] and reply.producer_epoch == 0
    with pytest.raises(InvalidTransactionState):
        house.end(who, False)
    house.add((reply.producer_id, 0))
    with pytest.raises(FencedProducer):
        house.end(who)


def test_a_successor_of_used_up_epochs_gets_a_new_producer_id(house: House) -> None:
    who = house.at_epoch(MAX_EPOCH - 1)
    new = house.init("b")
    assert new[0] != who[0] and new[1] == 0
    with pytest.raises(FencedProducer):
        house.add(who)


# Time -----------------------------------------------------------------------------------------------------------------


def test_one_that_is_open_for_too_long_is_aborted(house: House) -> None:
    who = house.init(timeout_ms=5_000)
    house.add(who)
    house.now_ms += 4_000
    house.add(who, 1)
    assert house.state.next_expiry_ms() == 6_000
    assert house.state.expire(house.now_ms).records == ()
    house.now_ms += 1_001
    house.do(house.state.expire(house.now_ms))
    with pytest.raises(TransactionTimedOut, match="transaction_timeout_ms=5,000"):
        house.add(who, 1)
    (told,) = house.write_markers()
    assert (told.state, told.epoch) == (PREPARE_ABORT, 1)
    with pytest.raises(TransactionTimedOut):
        house.end(who, True)
    assert house.end(who, False).producer_epoch == 1, "which is how its producer goes on"


def test_an_id_that_nobody_uses_is_forgotten(house: House) -> None:
    who = house.init()
    house.now_ms += 8 * DAY_MS
    house.do(house.state.expire(house.now_ms))
    assert list(house.state.transactions.snapshot()) == []
    with pytest.raises(InvalidTransactionState, match="not known"):
        house.add(who)


# Positions ------------------------------------------------------------------------------------------------------------


def test_positions_move_with_the_commit_in_one_step(house: House) -> None:
    member = house.join()
    who = house.init()
    house.add(who)
    rows = len(house.rows)
    house.end(who, True, commit(7, member.member_epoch))
    assert len(house.rows) == rows + 2 and house.position() == {("in", 0): 7}
    house.write_markers()
    house.end(who, True, commit(3, member.member_epoch))
    assert house.position() == {("in", 0): 7}, "a repeated end moves nothing"


def test_positions_stay_with_an_abort(house: House) -> None:
    member = house.join()
    who = house.init()
    house.add(who)
    house.end(who, False, commit(7, member.member_epoch))
    assert house.position() == {}


@pytest.mark.parametrize(
    ("member", "epochs_on", "error"), [("other", 0, UnknownMember), ("m", 1, FencedMember)], ids=["gone", "too new"]
)
def test_who_may_not_commit_does_not_decide(house: House, member: str, epochs_on: int, error: type[Exception]) -> None:
    joined = house.join()
    who = house.init()
    house.add(who)
    with pytest.raises(error):
        house.end(who, True, commit(7, joined.member_epoch + epochs_on, member))
    assert house.state.transactions.prepared() == () and house.position() == {}
    house.end(who, False)
    assert house.write_markers()[0].state == PREPARE_ABORT


# The log --------------------------------------------------------------------------------------------------------------


def test_a_new_coordinator_goes_on_where_the_log_ends(house: House) -> None:
    who = house.init()
    house.add(who, 0, 1)
    house.restart()
    assert house.end(who).complete is False
    house.restart()
    (told,) = house.write_markers()
    assert told.state == PREPARE_COMMIT and len(told.partitions) == 2
    house.restart()
    assert house.end(who) == m.EndTransactionReply(producer_id=who[0], producer_epoch=1)


def test_a_snapshot_is_the_whole_state(house: House) -> None:
    for name, steps in (("open", 1), ("decided", 2), ("complete", 3), ("new", 0)):
        who = house.init(name=name)
        if steps:
            house.add(who, name=name)
        if steps > 1:
            request = m.EndTransactionRequest(
                transactional_id=name, producer_id=who[0], producer_epoch=who[1], commit=True
            )
            house.do(house.state.end_transaction(request))
        if steps > 2:
            house.do(house.state.transactions.complete(house.state.transactions.prepared()[-1]))
    again = Coordinator()
    for record in house.state.snapshot():
        again.replay(from_pair(*to_pair(record)), 0.0)
    assert list(again.snapshot()) == list(house.state.snapshot())
    assert again.transactions.prepared() == house.state.transactions.prepared()


@pytest.mark.parametrize(
    ("name", "timeout_ms"), [("", 1), ("x" * 250, 1), ("x", 0), ("x", MAX_TIMEOUT_MS + 1), (7, 1), ("x", True)]
)
def test_a_bad_request_is_refused(house: House, name: Any, timeout_ms: Any) -> None:
    with pytest.raises(InvalidArgument):
        house.init(name=name, timeout_ms=timeout_ms)
    who = house.init()
    with pytest.raises(InvalidArgument):
        house.state.transactions.add_partitions(
            m.AddPartitionsRequest(transactional_id="tx", producer_id=who[0], producer_epoch=0, partitions=())
        )
    with pytest.raises(InvalidTransactionState, match="not 4"):
        house.end((who[0], 4))
