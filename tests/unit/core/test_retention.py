"""Which segments go, by age and by size."""

from __future__ import annotations

from typing import Any

from raystream.core.retention import SegmentAge, first_kept

SEGMENTS = [SegmentAge(10, 100, 1_000), SegmentAge(20, 100, 2_000), SegmentAge(30, 50, 3_000)]


def kept(**changes: Any) -> int | None:
    asked: dict[str, Any] = {
        "log_bytes": 250,
        "log_end_offset": 30,
        "high_watermark": 30,
        "retention_ms": None,
        "retention_bytes": None,
        "now_ms": 3_000,
    }
    return first_kept(iter(SEGMENTS), **{**asked, **changes})


def test_nothing_goes_unless_asked() -> None:
    assert kept(now_ms=10**15) is None


def test_by_age_of_the_last_record() -> None:
    assert kept(retention_ms=2_001) is None
    assert kept(retention_ms=2_000) == 10
    assert kept(retention_ms=1_000) == 20
    assert kept(retention_ms=1_000, now_ms=4_000) == 30  # the one that is appended to as well


def test_by_size_down_to_no_less_than_asked() -> None:
    assert kept(retention_bytes=151) is None
    assert kept(retention_bytes=150) == 10
    assert kept(retention_bytes=50) == 20
    assert kept(retention_bytes=1) == 20  # never the one that is appended to


def test_both_together() -> None:
    assert kept(retention_bytes=150, retention_ms=2_001) == 10
    assert kept(retention_bytes=150, retention_ms=1_000) == 20
    assert kept(retention_bytes=50, retention_ms=2_000) == 20


def test_nothing_above_the_high_watermark_goes() -> None:
    assert kept(retention_ms=1, now_ms=10**15, high_watermark=29) == 20
    assert kept(retention_ms=1, now_ms=10**15, high_watermark=9) is None
    assert kept(retention_bytes=1, high_watermark=15) == 10


def test_a_younger_segment_keeps_what_follows_it() -> None:
    late = [SegmentAge(10, 100, 9_000), SegmentAge(20, 100, 1_000)]
    asked = {"segments": late, "log_bytes": 200, "log_end_offset": 20, "high_watermark": 20, "now_ms": 10_000}
    assert first_kept(**asked, retention_ms=5_000, retention_bytes=None) is None  # type: ignore[arg-type]
    assert first_kept(**asked, retention_ms=1_000, retention_bytes=None) == 20  # type: ignore[arg-type]
