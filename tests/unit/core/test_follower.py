"""A follower's rules, each by a case made by hand. How they hold together is `tests/sim`'s."""

from __future__ import annotations

from typing import Any

import pytest

from raystream.core.follower import Follower
from raystream.core.replication import BatchAt, EpochStarts, Probe, Request, Send, Truncate
from raystream.errors import Fenced, FencedLeaderEpoch, StorageError, UnknownLeaderEpoch

EPOCH, LIFE = 5, 3
COMMON: dict[str, Any] = {"leader": 1, "sent_ms": 7.0, "leader_end_offset": 20}


def follower(end: int = 10, high_watermark: int = 4, epochs: EpochStarts = ((2, 0), (4, 6))) -> Follower:
    return Follower(
        2, LIFE, EPOCH, end_offset=end, flushed_end_offset=end, high_watermark=high_watermark, epochs=epochs
    )


def probe(leader_epoch: int = EPOCH, round: int = 0) -> Probe:
    return Probe(leader_epoch=leader_epoch, round=round, incarnation=-1, **COMMON)


def truncate(offset: int, *, round: int = 0, incarnation: int = LIFE, anew: bool = False) -> Truncate:
    return Truncate(leader_epoch=EPOCH, round=round, incarnation=incarnation, offset=offset, anew=anew, **COMMON)


def send(offset: int, *, high_watermark: int = 0, leader_epoch: int = EPOCH, incarnation: int = LIFE) -> Send:
    return Send(
        leader_epoch=leader_epoch,
        round=0,
        incarnation=incarnation,
        offset=offset,
        max_bytes=1,
        catch_up=False,
        high_watermark=high_watermark,
        **COMMON,
    )


def aligned(at: int = 8) -> Follower:
    node = follower()
    node.probed(probe())
    node.truncation(truncate(at))
    node.truncated(truncate(at))
    return node


def take(node: Follower, *batches: BatchAt, high_watermark: int = 0) -> None:
    skip = node.accept(send(batches[0].base_offset, high_watermark=high_watermark), batches)
    assert skip is not None
    node.appended(batches[skip:])


# Whom it hears ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (probe(leader_epoch=4), FencedLeaderEpoch),
        (probe(leader_epoch=6), UnknownLeaderEpoch),
        (send(8, leader_epoch=4), FencedLeaderEpoch),
        (send(8, incarnation=2), Fenced),
        (truncate(8, incarnation=4), Fenced),
    ],
)
def test_other_epochs_and_lives_are_refused(request_: Request, error: type[Exception]) -> None:
    with pytest.raises(error):
        aligned().check(request_)


def test_another_leader_epoch_begins_unaligned_and_older_news_changes_nothing() -> None:
    node = aligned()
    node.led(4)
    assert (node.leader_epoch, node.aligned) == (5, True)
    node.led(6)
    assert (node.leader_epoch, node.aligned) == (6, False)


# Aligning -----------------------------------------------------------------------------------------------------------


def test_a_probe_is_answered_with_end_and_epochs() -> None:
    answer = follower().probed(probe(round=3))
    assert (answer.end_offset, answer.epochs) == (10, ((2, 0), (4, 6)))
    assert (answer.incarnation, answer.leader_epoch, answer.round) == (LIFE, EPOCH, 3)


def test_the_log_is_cut_once_and_is_aligned_then() -> None:
    node = follower()
    node.probed(probe())
    assert node.truncation(truncate(6)) == 6
    answer = node.truncated(truncate(6))
    assert (answer.end_offset, answer.flushed_end_offset, answer.gap) == (6, 6, False)
    assert (node.aligned, node.epochs) == (True, ((2, 0),))
    assert node.truncation(truncate(5)) is None and node.truncated(truncate(5)).end_offset == 6


def test_nothing_is_cut_where_nothing_parts() -> None:
    node = follower()
    node.probed(probe())
    assert node.truncation(truncate(10)) is None
    assert node.truncated(truncate(10)).end_offset == 10


def test_a_truncation_that_answers_no_probe_of_this_life_and_epoch_is_refused() -> None:
    with pytest.raises(Fenced):
        follower().truncation(truncate(6))  # the actor has died and come again since the probe
    node = follower()
    node.probed(probe(round=1))
    with pytest.raises(Fenced):
        node.truncation(truncate(6, round=0))


def test_cutting_what_is_committed_quarantines() -> None:
    node = follower(high_watermark=7)
    node.probed(probe())
    with pytest.raises(StorageError):
        node.truncation(truncate(6))
    assert node.quarantined
    with pytest.raises(StorageError):
        node.probed(probe(round=1))


def test_a_log_begins_anew_past_what_the_leader_has_deleted() -> None:
    node = follower()
    node.probed(probe())
    assert node.truncation(truncate(15, anew=True)) == 15
    node.truncated(truncate(15, anew=True))
    assert (node.end_offset, node.flushed_end_offset, node.epochs) == (15, 15, ())


def test_an_aligned_follower_too_begins_anew_when_the_leader_has_deleted_what_comes_next() -> None:
    node = aligned()
    node.probed(probe(round=1))
    assert node.truncation(truncate(15, round=1, anew=True)) == 15
    assert node.truncated(truncate(15, round=1, anew=True)).end_offset == 15
    assert node.truncation(truncate(15, round=1, anew=True)) is None


# Batches ------------------------------------------------------------------------------------------------------------


def test_batches_are_taken_over_and_those_that_are_here_skipped() -> None:
    node = aligned()
    batches = (BatchAt(8, 10, 4), BatchAt(10, 11, 5))
    assert node.accept(send(8), batches) == 0
    node.appended(batches)
    assert (node.end_offset, node.epochs) == (11, ((2, 0), (4, 6), (5, 10)))
    assert node.accept(send(10), (BatchAt(10, 11, 5), BatchAt(11, 12, 5))) == 1


@pytest.mark.parametrize(
    "batches",
    [
        (BatchAt(9, 10, 5),),
        (BatchAt(8, 9, 5), BatchAt(10, 11, 5)),
        (BatchAt(8, 9, 5), BatchAt(9, 10, 4)),
        (BatchAt(8, 9, 6),),
    ],
)
def test_what_is_no_run_of_this_leaders_is_a_gap(batches: tuple[BatchAt, ...]) -> None:
    assert aligned().accept(send(8), batches) is None


def test_a_gap_teaches_no_high_watermark() -> None:
    node = aligned()
    assert node.accept(send(9, high_watermark=8), (BatchAt(9, 10, 5),)) is None
    assert node.high_watermark == 4


def test_an_unaligned_follower_takes_nothing() -> None:
    node = follower()
    assert node.accept(send(10), (BatchAt(10, 11, 5),)) is None
    assert node.answer(send(10)).gap


def test_an_aligned_follower_that_holds_something_else_is_quarantined() -> None:
    node = aligned()
    with pytest.raises(StorageError):
        node.accept(send(7), (BatchAt(7, 8, 5),))  # epoch 4 stands there
    assert node.quarantined


def test_the_high_watermark_covers_only_what_is_on_the_disk_and_never_moves_back() -> None:
    node = aligned()
    take(node, BatchAt(8, 12, 5), high_watermark=11)
    assert node.high_watermark == 8
    assert node.answer(send(8)).flushed_end_offset == 8
    node.flushed(12)
    assert (node.high_watermark, node.answer(send(8)).flushed_end_offset) == (11, 12)
    assert node.accept(send(12, high_watermark=3), ()) == 0
    assert node.high_watermark == 11


def test_a_rewritten_batch_over_the_logs_end_is_a_gap_and_no_damage() -> None:
    """Sent before the follower's end was known to its leader: it is asked again."""
    node = aligned()
    assert node.accept(send(9), (BatchAt(9, 12, 5, rewritten=True),)) is None
    assert not node.quarantined
