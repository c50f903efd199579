"""The first of many deadlines that move."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.core.deadlines import Deadlines

STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 20)), max_size=40)


@settings(deadline=None)
@given(STEPS, st.sets(st.integers(0, 39)))
def test_it_agrees_with_looking_at_all(steps: list[tuple[str, int | None]], looks: set[int]) -> None:
    due: dict[str, float] = {}
    deadlines: Deadlines[str] = Deadlines(due.get)
    for number, (key, due_ms) in enumerate(steps):
        earlier = due_ms is not None and due_ms < due.get(key, float("inf"))
        if due_ms is None:
            due.pop(key, None)
        else:
            due[key] = due_ms
        if earlier:
            deadlines.watch(key)
        if number in looks:
            assert deadlines.next_ms() == min(due.values(), default=None)
            assert sorted(deadlines.due(10)) == sorted(k for k, at in due.items() if at <= 10)
    assert deadlines.next_ms() == min(due.values(), default=None)
    assert sorted(deadlines.due(10)) == sorted(deadlines.due(10)) == sorted(k for k, at in due.items() if at <= 10)


def test_a_deadline_that_keeps_moving_on_takes_no_room() -> None:
    due: dict[str, float] = {"a": 0.0, "b": 0.0}
    deadlines: Deadlines[str] = Deadlines(due.get)
    for now in range(10_000):
        for key in due:
            due[key] = now + 10
            deadlines.watch(key)
        assert deadlines.next_ms() == now + 10
    assert len(deadlines._heap) == 2
