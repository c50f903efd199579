"""Producer ids are given once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from raystream import messages as m
from raystream.batch import MAX_SEQUENCE
from raystream.core.coordinator import Coordinator
from raystream.core.producer_ids import BLOCK, IDS_PER_COORDINATOR, MAX_COORDINATORS, ProducerIds
from raystream.core.records import Pair


@settings(deadline=None)
@given(st.lists(st.integers(0, 2 * BLOCK), max_size=6))
def test_no_id_is_given_twice_over_restarts(lives: list[int]) -> None:
    log: list[Pair] = []
    given_out: set[int] = set()
    for count in lives:
        state = Coordinator()
        for key, value in log:
            state.replay_row(key, value, 0)
        for _ in range(count):
            decision = state.init_producer(m.InitProducerRequest())
            log += state.encode(decision.records)
            for record in decision.records:
                state.replay(record, 0)
            assert decision.reply.producer_id not in given_out
            given_out.add(decision.reply.producer_id)
    assert len(given_out) == sum(lives)
    assert len(log) <= sum(-(-count // BLOCK) for count in lives), "a reservation per block"


def test_a_snapshot_gives_no_id_again() -> None:
    ids = ProducerIds()
    first, records = ids.allocate()
    ids.replay(records[0])
    again = ProducerIds()
    for record in ids.snapshot():
        again.replay(record)
    assert again.allocate()[0] == BLOCK > first
    assert ProducerIds().snapshot() == ()


def test_coordinators_side_by_side_never_meet() -> None:
    for coordinator in (0, 1, MAX_COORDINATORS - 1):
        first, _ = ProducerIds(coordinator).allocate()
        assert first == coordinator * IDS_PER_COORDINATOR
        assert first + IDS_PER_COORDINATOR - 1 < 2**63
    assert IDS_PER_COORDINATOR > MAX_SEQUENCE
