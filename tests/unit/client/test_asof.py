"""`left.join_asof(right)`: what was there, and known, before each row; checked against the definition, row by row."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.client.asof import AsOf, join_frames
from raystream.client.reader import View
from raystream.errors import InvalidArgument
from tests.fakes.log import FakeCluster, raw_rows

FLIGHTS = pa.schema([("origin", pa.string()), ("delay", pa.int64()), ("at", pa.timestamp("ms", "UTC"))])
WEATHER = pa.schema(
    [("origin", pa.string()), ("wind", pa.float64()), ("at", pa.timestamp("us")), ("told", pa.timestamp("us"))]
)


def minutes(*given: int) -> list[dt.datetime]:
    return [dt.datetime(2013, 1, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=each) for each in given]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("flights", schema=FLIGHTS, time="at")
        cluster.create("weather", schema=WEATHER, time="at")
        flights = [["JFK", "LGA", "JFK", "JFK"], [1, 2, 3, 4], minutes(60, 30, 10, 95)]
        arrays = [pa.array(column, field.type) for column, field in zip(flights, FLIGHTS, strict=True)]
        cluster.append("flights", pa.record_batch(arrays, schema=FLIGHTS))
        weather = [["JFK", "JFK", "LGA", "JFK"], [10.0, 20.0, 30.0, 25.0], minutes(0, 60, 0, 50), minutes(5, 70, 5, 90)]
        arrays = [pa.array(column, field.type) for column, field in zip(weather, WEATHER, strict=True)]
        cluster.append("weather", pa.record_batch(arrays, schema=WEATHER))
        yield cluster


def views(cluster: FakeCluster, **how: Any) -> tuple[View, View]:
    return cluster.view("flights"), cluster.view("weather", **how)


# By the definition ----------------------------------------------------------------------------------------------------

times = st.integers(0, 12)
lefts = st.lists(st.tuples(st.none() | times, st.sampled_from("ab")), max_size=12)
rights = st.lists(st.tuples(st.none() | times, st.none() | times, st.sampled_from("ab")), max_size=12)


@settings(max_examples=300, deadline=None)
@given(left=lefts, right=rights, tolerance=st.none() | st.integers(0, 6), exact=st.booleans(), keyed=st.booleans())
def test_of_what_was_known_by_then_the_latest(
    left: list[Any], right: list[Any], tolerance: int | None, exact: bool, keyed: bool
) -> None:
    def found(time: int | None, key: str) -> int | None:
        best: tuple[int, int, int] | None = None
        for place, (event, known, other) in enumerate(right):
            if time is None or event is None or known is None or (keyed and other != key):
                continue
            there = max(event, known)
            if there < time or (exact and there == time):
                best = max(best or (-1, -1, -1), (event, there, place))
        if best is None or (tolerance is not None and time is not None and time - best[0] > tolerance):
            return None
        return best[2]

    frames = (
        pl.DataFrame(left, schema={"t": pl.Int64, "k": pl.String}, orient="row"),
        pl.DataFrame(right, schema={"t": pl.Int32, "known": pl.Int64, "k": pl.String}, orient="row").with_columns(
            place=pl.int_range(len(right), dtype=pl.Int64)
        ),
    )
    by = ("k",) if keyed else ()
    how: dict[str, Any] = {"known_at": "known", "tolerance": tolerance, "allow_exact_matches": exact}
    joined = join_frames(*frames, AsOf(left_on="t", right_on="t", by_left=by, by_right=by, **how))
    assert joined["place"].to_list() == [found(time, key) for time, key in left]
    assert joined["t"].to_list() == [time for time, _ in left], "the order stays"


@settings(max_examples=100, deadline=None)
@given(left=lefts, right=rights, strategy=st.sampled_from(["backward", "forward", "nearest"]))
def test_without_known_at_it_is_polars_own(left: list[Any], right: list[Any], strategy: Any) -> None:
    frames = (
        pl.DataFrame(left, schema={"t": pl.Int64, "k": pl.String}, orient="row").filter(pl.col("t").is_not_null()),
        pl.DataFrame(
            [(event, place) for place, (event, _, _) in enumerate(right) if event is not None],
            schema={"t": pl.Int64, "place": pl.Int64},
            orient="row",
        ),
    )
    joined = join_frames(*frames, AsOf(left_on="t", right_on="t", strategy=strategy))
    theirs = frames[0].sort("t").join_asof(frames[1].sort("t"), on="t", strategy=strategy, coalesce=False)
    assert joined.sort("t", maintain_order=True)["t_right"].to_list() == theirs["t_right"].to_list()


# Views ----------------------------------------------------------------------------------------------------------------


def test_each_row_has_the_last_one_before_it(cluster: FakeCluster) -> None:
    left, right = views(cluster)
    joined = left.join_asof(right, by="origin")
    frame = joined.to_polars()
    assert frame.columns == ["origin", "delay", "at", "wind", "at_right", "told"]
    assert frame["wind"].to_list() == [20.0, 30.0, 10.0, 20.0]
    assert frame["origin"].to_list() == ["JFK", "LGA", "JFK", "JFK"]
    assert len(joined) == 4 and joined.to_arrow().num_rows == 4 and len(joined.to_pandas()) == 4
    assert pl.DataFrame(joined).equals(frame)
    assert repr(joined) == "<'flights' as-of 'weather': 4 rows, 6 columns>" and "<table" in joined._repr_html_()


def test_what_was_not_known_yet_is_not_joined(cluster: FakeCluster) -> None:
    left, right = views(cluster)
    joined = left.join_asof(right, by="origin", known_at="told").to_polars()
    assert joined["wind"].to_list() == [10.0, 30.0, 10.0, 20.0], "a correction of the past does not hide what is later"
    near = left.join_asof(right, by="origin", known_at="told", tolerance=dt.timedelta(minutes=40)).to_polars()
    assert near["wind"].to_list() == [None, 30.0, 10.0, 20.0]
    assert near.equals(left.join_asof(right, by="origin", known_at="told", tolerance="40m").to_polars())


def test_the_log_knows_when_a_row_became_known(cluster: FakeCluster) -> None:
    """The fake's leader appends at 5,000 ms, long before any flight."""
    left, right = views(cluster)
    joined = left.join_asof(right, by="origin", known_at="_append_time").to_polars()
    assert joined.equals(left.join_asof(right, by="origin").to_polars())
    assert "_append_time" not in joined.columns


def test_raw_topics_go_by_their_records_timestamps(cluster: FakeCluster) -> None:
    for name, values, stamps in (("a", [b"1", b"2"], [100, 300]), ("b", [b"x", b"y"], [90, 250])):
        cluster.create(name)
        cluster.append(name, raw_rows(values, timestamps=stamps))
    left = cluster.view("a", columns=["value"])
    joined = left.join_asof(cluster.view("b", columns=["value"])).to_polars()
    assert joined.to_dict(as_series=False) == {"value": [b"1", b"2"], "value_right": [b"x", b"y"]}
    mixed = cluster.view("flights").join_asof(cluster.view("b"), right_on="timestamp", suffix="_b").to_polars()
    assert mixed["value"].to_list() == [b"y"] * 4


def test_a_topics_own_number_named_timestamp_is_no_instant(cluster: FakeCluster) -> None:
    schema = pa.schema([("timestamp", pa.int64()), ("x", pa.int64())])
    cluster.create("seconds", schema=schema)
    cluster.append("seconds", pa.record_batch([[7], [1]], schema=schema))
    with pytest.raises(InvalidArgument, match="column 'timestamp' is Int64, and the others are times"):
        cluster.view("seconds").join_asof(cluster.view("weather"), left_on="timestamp")


def test_only_views_are_joined(cluster: FakeCluster) -> None:
    wrong: Any = "weather"
    with pytest.raises(InvalidArgument, match=r"the right side is a view, as .*, not str"):
        cluster.view("flights").join_asof(wrong)


def test_the_views_columns_and_filters_hold(cluster: FakeCluster) -> None:
    left = cluster.view("flights", columns=["delay"], filter=pc.field("delay") > 1)
    right = cluster.view("weather", columns=["wind"])
    joined = left.join_asof(right, by="origin", known_at="told").to_polars()
    assert joined.to_dict(as_series=False) == {"delay": [2, 3, 4], "wind": [30.0, 10.0, 20.0]}


def test_the_result_says_what_it_was_made_of(cluster: FakeCluster) -> None:
    left, right = views(cluster)
    manifest = left.join_asof(right, by="origin", tolerance=dt.timedelta(hours=1)).manifest
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["left"] == left.manifest()
    assert manifest["right"]["offsets"] == {"0": [0, 4]} and manifest["right"]["topic"] == "weather"
    assert manifest["join"]["by_left"] == ["origin"] and manifest["join"]["tolerance"] == "1:00:00"


def test_nothing_on_either_side(cluster: FakeCluster) -> None:
    left, right = views(cluster, start={0: 4})
    assert left.join_asof(right, by="origin").to_polars()["wind"].to_list() == [None] * 4
    none = cluster.view("flights", start={0: 4}).join_asof(cluster.view("weather"), known_at="_append_time")
    assert len(none) == 0 and "wind" in none.to_polars().columns


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"on": "att"}, "the left side has no column 'att': did you mean 'at'"),
        ({"right_on": "tolt"}, "the right side has no column 'tolt': did you mean 'told'"),
        ({"by": "airport"}, "the left side has no column 'airport': its columns are origin"),
        ({"known_at": "knwon"}, "the right side has no column 'knwon'"),
        ({"on": "at", "left_on": "at"}, "either on, or left_on and right_on"),
        ({"by": "origin", "by_left": "origin"}, "either by, or by_left and by_right"),
        ({"by_left": "origin"}, "by_left names 1 columns, by_right 0"),
        ({"suffix": ""}, "suffix='' tells no columns apart"),
        ({"strategy": "sideways"}, "strategy='sideways' is none of"),
        ({"strategy": "forward", "known_at": "told"}, "known_at goes with strategy='backward'"),
        ({"left_on": "delay", "right_on": "at"}, "column 'delay' is Int64, and the others are times"),
        ({"left_on": "origin", "right_on": "origin"}, "not all times, or all numbers: origin String"),
        ({"tolerance": "soon"}, "the views cannot be joined"),
        ({"tolerance": "soon", "known_at": "told"}, "the views cannot be joined"),
        ({"by_left": "delay", "by_right": "origin"}, "the views cannot be joined"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(cluster: FakeCluster, how: dict[str, Any], said: str) -> None:
    left, right = views(cluster)
    with pytest.raises(InvalidArgument, match=said):
        left.join_asof(right, **how)
