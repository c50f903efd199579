"""Runs of values over offsets, against a list."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from raystream.core.offset_runs import OffsetRuns

OFFSET = st.integers(0, 20)
SIZE = 45


@given(
    start=OFFSET, puts=st.lists(st.tuples(OFFSET, OFFSET, st.sampled_from("ab.")), max_size=12), drop=st.integers(0, 50)
)
def test_runs_are_what_a_list_would_be(start: int, puts: list[tuple[int, int, str]], drop: int) -> None:
    runs: OffsetRuns[str] = OffsetRuns(start, ".")
    plain = ["."] * SIZE
    before = runs.copy()
    for first, length, value in puts:
        runs.put(first, first + length, value)
        for offset in range(max(first, start), first + length):
            plain[offset] = value
    assert list(before.runs()) == []
    twin = runs.copy()
    runs.drop_before(drop)
    for each, begin in ((twin, start), (runs, max(start, drop))):
        found = {o: value for first, stop, value in each.between(0, SIZE) for o in range(first, stop)}
        assert found == {o: plain[o] for o in range(begin, SIZE)}
        shown = list(each.runs())
        assert all(a[1] == b[0] and a[2] != b[2] for a, b in itertools.pairwise(shown)), "joined, without gaps"
        assert not shown or (shown[0][0] >= begin and shown[-1][1] == each.stop and shown[-1][2] != ".")
        assert each.start == begin
