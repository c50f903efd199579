"""The demo's bookkeeping against plain sets of offsets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raystream.demo.ledger import Ledger, subtracted

ranges = st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda r: (r[0], r[0] + r[1]))


@given(st.lists(st.tuples(st.integers(0, 2), ranges)), st.dictionaries(st.integers(0, 2), ranges))
def test_ledger_counts_as_sets_do(
    entries: list[tuple[int, tuple[int, int]]], produced: dict[int, tuple[int, int]]
) -> None:
    ledger = Ledger()
    seen: set[tuple[int, int]] = set()
    repeated = 0
    for partition, (first, end) in entries:
        offsets = {(partition, offset) for offset in range(first, end)}
        new = {(partition, offset) for a, b in ledger.add(partition, first, end) for offset in range(a, b)}
        assert new == offsets - seen
        repeated += len(offsets & seen)
        seen |= offsets
    assert (ledger.distinct, ledger.repeated) == (len(seen), repeated)
    made = {(partition, offset) for partition, (first, end) in produced.items() for offset in range(first, end)}
    assert ledger.missing(produced) == len(made - seen)


def test_subtracted_cuts_out_the_middle() -> None:
    assert subtracted((0, 10), [(2, 4), (6, 7)]) == [(0, 2), (4, 6), (7, 10)]
