"""Words on the command line and the values they become."""

from __future__ import annotations

import argparse
import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from raystream.commands import arguments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("earliest", "earliest"),
        ("latest", "latest"),
        ("15m", dt.timedelta(minutes=15)),
        ("1.5h", dt.timedelta(minutes=90)),
        ("7d", dt.timedelta(days=7)),
        ("250ms", dt.timedelta(milliseconds=250)),
        ("2013-07-04", dt.datetime(2013, 7, 4)),  # noqa: DTZ001 - naive is UTC, by the library's rule
        ("2013-07-04T12:30:00Z", dt.datetime(2013, 7, 4, 12, 30, tzinfo=dt.UTC)),
        ("0:12", {0: 12}),
        ("0:12,3:400", {0: 12, 3: 400}),
    ],
)
def test_position(text: str, value: Any) -> None:
    assert arguments.position(text) == value


@pytest.mark.parametrize("text", ["", "first", "12", "1:", ":1", "0:1,", "-5m", "5y", "2013-13-01", "9" * 400 + "d"])
def test_no_position(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no position"):
        arguments.position(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("flush=os", ("flush", "os")),
        ("segment_ms=3600000", ("segment_ms", 3_600_000)),
        ("ratio=0.5", ("ratio", 0.5)),
        ("flush=default", ("flush", None)),
        ("note=a=b", ("note", "a=b")),
    ],
)
def test_setting(text: str, value: Any) -> None:
    assert arguments.setting(text) == value


@pytest.mark.parametrize("text", ["flush", "=os", ""])
def test_no_setting(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write name=value"):
        arguments.setting(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "²"])
def test_no_count(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number above 0"):
        arguments.count(text)


def test_schema() -> None:
    schema = pa.schema([("carrier", pa.string()), ("delay", pa.float64()), ("at", pa.timestamp("ms"))])
    assert arguments.schema("carrier:string, delay:float64, at:timestamp[ms]") == schema


@pytest.mark.parametrize("text", ["carrier", "carrier:text", ":string", ""])
def test_no_schema(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write NAME:TYPE"):
        arguments.schema(text)


@pytest.mark.parametrize(("text", "value"), [("0=1,2,3", (0, (1, 2, 3))), ("12=0", (12, (0,)))])
def test_placement(text: str, value: Any) -> None:
    assert arguments.placement(text) == value


@pytest.mark.parametrize("text", ["", "0", "0=", "=1", "0=a", "0=1,", "0=1;2"])
def test_no_placement(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not PARTITION=BROKER"):
        arguments.placement(text)
