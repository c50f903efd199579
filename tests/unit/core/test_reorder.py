"""Early batches wait for their turn, bounded in number and in time."""

from __future__ import annotations

from raystream.core.reorder import MAX_EARLY_BATCHES, ReorderBuffer


def test_an_early_batch_is_released_when_the_gap_closes() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer(max_wait_ms=100)
    assert buffer.offer(1, 20, "third", 0) == []
    assert buffer.offer(1, 10, "second", 0) == []
    assert buffer.release_after(1, 5) is None
    assert buffer.release_after(2, 10) is None
    assert buffer.release_after(1, 10) == "second"
    assert buffer.release_after(1, 20) == "third"
    assert len(buffer) == 0


def test_a_repetition_takes_the_place_of_the_first() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer(max_wait_ms=100)
    buffer.offer(1, 10, "first try", 0)
    assert buffer.offer(1, 10, "second try", 50) == ["first try"]
    assert buffer.release_after(1, 10) == "second try"


def test_no_more_wait_than_may_be_in_flight() -> None:
    buffer: ReorderBuffer[int] = ReorderBuffer(max_wait_ms=100)
    for number in range(MAX_EARLY_BATCHES):
        assert buffer.offer(1, number, number, 0) == []
    assert buffer.offer(1, 99, 99, 0) is None
    assert buffer.offer(2, 99, 99, 0) == []


def test_what_waited_long_enough_is_given_up() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer(max_wait_ms=100)
    buffer.offer(1, 10, "early", 0)
    buffer.offer(1, 20, "later", 50)
    assert buffer.next_deadline_ms() == 100
    assert buffer.expired(99) == []
    assert buffer.expired(100) == ["early"]
    assert buffer.next_deadline_ms() == 150
    assert buffer.clear() == ["later"]
    assert buffer.next_deadline_ms() is None
