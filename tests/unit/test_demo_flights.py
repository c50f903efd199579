"""The flights as they are published, and the statistics that every part of the demo shares."""

from __future__ import annotations

import importlib.util

import pandas as pd
import pytest

from raystream.demo import flights
from raystream.errors import NotFound


def test_flights_come_in_the_order_of_their_schedule() -> None:
    frame = flights.load()
    assert len(frame) == 336_776
    scheduled = frame["time_hour"] + pd.to_timedelta(frame["minute"], unit="min")
    assert scheduled.is_monotonic_increasing
    assert len(frame.columns) == 19


def test_parts_add_up_to_the_whole() -> None:
    frame = flights.load().head(10_000)
    parts = [flights.delays(frame.iloc[at : at + 777]) for at in range(0, len(frame), 777)]
    whole = flights.merged([flights.delays(frame)])
    assert flights.merged(parts).equals(whole)
    plain = frame.groupby("carrier").agg(flights=("flight", "size"), minutes=("dep_delay", "sum"))
    assert whole["flights"].to_dict() == plain["flights"].to_dict()
    assert whole["minutes"].to_dict() == plain["minutes"].astype(int).to_dict()
    assert whole["flights"].is_monotonic_decreasing


def test_nothing_adds_up_to_nothing() -> None:
    assert flights.merged([]).empty


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match=r"pip install 'raystream\[demo\]'"):
        flights.load()
