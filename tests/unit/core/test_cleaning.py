"""When a log is compacted, and up to where."""

from __future__ import annotations

from typing import Any

from raystream.core.cleaning import SegmentFacts, clean_up_to

SEALED = [
    SegmentFacts(0, 10, 100, 0, 1_000),
    SegmentFacts(10, 20, 100, 1_000, 2_000),
    SegmentFacts(20, 30, 100, 2_000, 3_000),
]


def up_to(sealed: list[SegmentFacts] = SEALED, **changes: Any) -> int | None:
    asked: dict[str, Any] = {
        "cleaned_to": 0,
        "bound": 30,
        "min_cleanable_dirty_ratio": 0.5,
        "min_compaction_lag_ms": 0,
        "max_compaction_lag_ms": None,
        "now_ms": 3_000,
    }
    return clean_up_to(sealed, **{**asked, **changes})


def test_all_that_is_below_the_bound() -> None:
    assert up_to() == 30
    assert up_to(bound=29) == 20
    assert up_to(bound=9) is None
    assert up_to([]) is None


def test_only_once_enough_of_it_is_dirty() -> None:
    assert up_to(cleaned_to=10) == 30
    assert up_to(cleaned_to=20) is None
    assert up_to(cleaned_to=20, min_cleanable_dirty_ratio=0.3) == 30
    assert up_to(cleaned_to=30, min_cleanable_dirty_ratio=0) is None


def test_what_was_appended_just_now_waits() -> None:
    assert up_to(min_compaction_lag_ms=1_000) == 20
    assert up_to(min_compaction_lag_ms=1_001) == 10
    assert up_to(min_compaction_lag_ms=2_001) is None


def test_what_has_waited_too_long_is_compacted_whatever_the_ratio() -> None:
    assert up_to(cleaned_to=20, max_compaction_lag_ms=1_001) is None
    assert up_to(cleaned_to=20, max_compaction_lag_ms=1_000) == 30


def test_a_tombstone_whose_time_has_come_is_reason_enough() -> None:
    assert up_to(cleaned_to=30, horizon_ms=3_001) is None
    assert up_to(cleaned_to=30, horizon_ms=3_000) == 30
    assert up_to(cleaned_to=20, horizon_ms=3_000) == 30
    assert up_to(cleaned_to=20, bound=29, horizon_ms=3_000) == 20
