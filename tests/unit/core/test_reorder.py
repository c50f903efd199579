"""Early batches wait for their turn, bounded in number and in time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.core.reorder import MAX_EARLY_BATCHES, MAX_EARLY_PRODUCERS, ReorderBuffer


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


def test_a_repetition_waits_from_its_own_arrival_on() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer(max_wait_ms=100)
    buffer.offer(1, 10, "first try", 0)
    buffer.offer(1, 20, "another", 20)
    buffer.offer(1, 10, "second try", 50)
    assert buffer.next_deadline_ms() == 120
    assert buffer.expired(149) == ["another"]
    assert buffer.expired(150) == ["second try"]


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


def test_waiting_bytes_are_bounded() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer(max_wait_ms=100, max_bytes=10)
    assert buffer.offer(1, 10, "six", 0, 6) == []
    assert buffer.offer(2, 10, "five", 0, 5) is None
    assert buffer.offer(1, 10, "ten, in its place", 0, 10) == ["six"]
    assert buffer.size_bytes == 10
    assert buffer.offer(1, 10, "eleven", 0, 11) is None
    assert buffer.release_after(1, 10) == "ten, in its place", "what was refused displaced nothing"
    assert buffer.size_bytes == 0
    assert buffer.offer(2, 10, "five", 0, 5) == []


def test_producers_are_bounded() -> None:
    buffer: ReorderBuffer[int] = ReorderBuffer(max_wait_ms=100)
    for producer in range(MAX_EARLY_PRODUCERS):
        assert buffer.offer(producer, 1, producer, 0) == []
    assert buffer.offer(MAX_EARLY_PRODUCERS, 1, 0, 0) is None
    assert buffer.offer(0, 2, 0, 0) == []
    buffer.expired(100)
    assert len(buffer) == 0
    assert buffer.offer(MAX_EARLY_PRODUCERS, 1, 0, 100) == []


@settings(deadline=None)
@given(st.permutations(range(12)), st.integers(1, 5))
def test_up_to_five_in_flight_come_out_in_order(order: list[int], depth: int) -> None:
    """A producer keeps `depth` batches in flight; the network delivers any of them next."""
    buffer: ReorderBuffer[int] = ReorderBuffer(max_wait_ms=100)
    log: list[int] = []
    in_flight, following = list(range(depth)), depth
    for draw in order:
        batch = in_flight.pop(draw % len(in_flight))
        if batch == len(log):
            placed: int | None = batch
            while placed is not None:
                log.append(placed)
                in_flight += [following] if following < len(order) else []
                following += 1
                placed = buffer.release_after(7, placed + 1)
        else:
            assert buffer.offer(7, batch, batch, 0, 1) == []
        assert len(buffer) == buffer.size_bytes < depth
    assert log == list(range(12))
