"""Words of the command line that stand for values: positions, settings, schemas. Each raises what argparse shows."""

from __future__ import annotations

import argparse
import datetime as dt
import re
from typing import Any

from raystream.types import Position

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_BROKER = re.compile(r"[0-9]{1,9}")
_PLACEMENT = re.compile(r"[0-9]{1,9}=[0-9]{1,9}(, *[0-9]{1,9})*")
_OFFSETS = re.compile(r"\d+:\d+(,\d+:\d+)*")
POSITION_HELP = "earliest, latest, a duration ago (15m, 2h, 7d), a date or time (ISO 8601, UTC), or PARTITION:OFFSET,…"


def position(text: str) -> Position:
    """A place in a topic, as `connect().read(start=…)` takes it."""
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    duration = _DURATION.fullmatch(text)
    try:
        if duration:
            return dt.timedelta(**{_UNITS[duration[2]]: float(duration[1])})
        if _OFFSETS.fullmatch(text):
            pairs = [pair.split(":") for pair in text.split(",")]
            return {int(partition): int(offset) for partition, offset in pairs}
        if not text.isdigit():
            return dt.datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no position: give {POSITION_HELP}")


def moment(text: str) -> Position:
    """An instant, or a duration ago."""
    found = position(text)
    if isinstance(found, (dt.datetime, dt.timedelta)):
        return found
    raise argparse.ArgumentTypeError(f"{text!r} is no time: give a date or time (ISO 8601, UTC), or a duration ago")


def shift(text: str) -> int:
    """A number of records, forwards or back."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of records: write 100 or -100") from None


def count(text: str) -> int:
    """A whole number above zero."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def setting(text: str) -> tuple[str, Any]:
    """`name=value`; `name=default` puts a setting back."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is no setting: write name=value, such as segment_ms=3600000")
    if value == "default":
        return name, None
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def schema(text: str) -> Any:
    """`name:type,name:type`, with Arrow's names of types."""
    import pyarrow as pa

    fields = []
    for part in text.split(","):
        name, colon, kind = part.strip().partition(":")
        try:
            if not colon or not name:
                raise ValueError
            fields.append(pa.field(name, pa.type_for_alias(kind)))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{part.strip()!r} is no column: write NAME:TYPE, such as carrier:string or at:timestamp[ms]"
            ) from None
    return pa.schema(fields)


def broker(text: str) -> int:
    """A broker's id."""
    if not _BROKER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no broker's id: raystream broker list shows them")
    return int(text)


def placement(text: str) -> tuple[int, tuple[int, ...]]:
    """A partition and the brokers of its replicas: "0=1,2,3"."""
    if not _PLACEMENT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not PARTITION=BROKER,BROKER,…, such as 0=1,2,3")
    partition, _, brokers = text.partition("=")
    return int(partition), tuple(int(broker) for broker in brokers.split(","))
