"""`left.join_asof(right)`: to each row of a view the row of another that was there before it, and no later one.

The join itself is polars'. What is ours is when a row of the right side counts: not before its own time, and, where
`known_at` says when it became known, not before that either: of what was known by then, the latest. So a row that came
late, or was corrected, is not seen by rows before it, as it was not when they happened.
"""

from __future__ import annotations

import datetime as dt
import difflib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final, Literal

import pyarrow as pa

from raystream.client.dataframes import polars, to_pandas, to_polars
from raystream.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from raystream.client.reader import View

Strategy = Literal["backward", "forward", "nearest"]
Unit = Literal["us", "ns"]
Tolerance = str | int | float | dt.timedelta | None

_ROW: Final = "__raystream_row"
_ON: Final = "__raystream_on"
_EVENT: Final = "__raystream_event"
_KNOWN: Final = "__raystream_known"


@dataclass(frozen=True, slots=True, kw_only=True)
class AsOf:
    """How rows are matched, by polars' names. `known_at`: see `View.join_asof`."""

    left_on: str
    right_on: str
    by_left: tuple[str, ...] = ()
    by_right: tuple[str, ...] = ()
    known_at: str | None = None
    tolerance: Tolerance = None
    strategy: Strategy = "backward"
    allow_exact_matches: bool = True
    suffix: str = "_right"
    log_times: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    """Of both sides: columns of the log's own, which are milliseconds since the epoch."""

    def said(self) -> dict[str, Any]:
        """What was asked for, as plain values."""
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        del given["log_times"]
        return given | ({"tolerance": str(self.tolerance)} if isinstance(self.tolerance, dt.timedelta) else {})


class Joined:
    """The rows of a view, in its order, with what an as-of join found for each; null where it found nothing."""

    def __init__(self, frame: pl.DataFrame, manifest: dict[str, Any]) -> None:
        self._frame = frame
        self.manifest = manifest
        """Which rows of which topics went in, and how: plain values that JSON takes."""

    def to_polars(self) -> pl.DataFrame:
        """The rows as a polars frame."""
        return self._frame

    def to_arrow(self) -> pa.Table:
        """The rows as a table."""
        return self._frame.to_arrow()

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas frame."""
        return to_pandas(self.to_arrow())

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return int(self._frame.height)

    def __repr__(self) -> str:
        left, right = (self.manifest[side]["topic"] for side in ("left", "right"))
        return f"<{left!r} as-of {right!r}: {len(self):,} rows, {self._frame.width} columns>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self._frame.head(10)._repr_html_()}"


def join_asof(left: View, right: Any, **how: Any) -> Joined:
    """See `View.join_asof`, which says what `how` is. Raises InvalidArgument."""
    if not isinstance(right, type(left)):
        raise InvalidArgument(f"the right side is a view, as `cluster.read` gives it, not {type(right).__name__}")
    (left_time, left_ms), (right_time, right_ms) = left.times(), right.times()
    join = _checked((left_time, right_time), log_times=(left_ms, right_ms), **how)
    lefts = [join.left_on, *join.by_left]
    rights = [join.right_on, *join.by_right, *([] if join.known_at is None else [join.known_at])]
    for names, view, side in ((lefts, left, "left"), (rights, right, "right")):
        for name in names:
            _require(name, view.known_columns(), side)
    ours, theirs = to_polars(left.with_columns(lefts)), to_polars(right.with_columns(rights))
    found = join_frames(ours, theirs, join)
    beside = {name for name in lefts if name not in left.schema.names}
    for name in rights:
        if name not in right.schema.names:
            beside.add(f"{name}{join.suffix}" if name in ours.columns else name)
    manifest = {"left": left.manifest(), "right": right.manifest(), "join": join.said()}
    return Joined(found.select([name for name in found.columns if name not in beside]), manifest)


def _checked(
    times: tuple[str, str],
    *,
    on: str | None,
    left_on: str | None,
    right_on: str | None,
    by: str | Sequence[str] | None,
    by_left: str | Sequence[str] | None,
    by_right: str | Sequence[str] | None,
    **how: Any,
) -> AsOf:
    """The join; where no column is named it goes by `times`."""
    if on is not None and (left_on is not None or right_on is not None):
        raise InvalidArgument("give either on, or left_on and right_on")
    if by is not None and (by_left is not None or by_right is not None):
        raise InvalidArgument("give either by, or by_left and by_right")
    lefts, rights = _names(by if by is not None else by_left), _names(by if by is not None else by_right)
    if len(lefts) != len(rights):
        raise InvalidArgument(f"by_left names {len(lefts)} columns, by_right {len(rights)}: they are matched in pairs")
    join = AsOf(
        left_on=on or left_on or times[0], right_on=on or right_on or times[1], by_left=lefts, by_right=rights, **how
    )
    if join.strategy not in ("backward", "forward", "nearest"):
        raise InvalidArgument(f"strategy={join.strategy!r} is none of 'backward', 'forward' and 'nearest'")
    if join.known_at is not None and join.strategy != "backward":
        raise InvalidArgument(f"known_at goes with strategy='backward': {join.strategy!r} looks ahead")
    if not join.suffix:
        raise InvalidArgument(f"suffix={join.suffix!r} tells no columns apart: give a string")
    return join


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None or isinstance(given, str):
        return () if given is None else (given,)
    return tuple(given)


def _require(name: str, columns: Sequence[str], side: str) -> None:
    if name in columns:
        return
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"its columns are {', '.join(columns)}"
    raise InvalidArgument(f"the {side} side has no column {name!r}: {hint}")


def join_frames(left: pl.DataFrame, right: pl.DataFrame, join: AsOf) -> pl.DataFrame:
    """`left` with the columns of `right`, row by row. Raises InvalidArgument where their types do not go together."""
    try:
        return _joined(left, right, join)
    except (polars().exceptions.PolarsError, TypeError, ValueError) as error:
        raise InvalidArgument(f"the views cannot be joined: {error}") from None


def _joined(left: pl.DataFrame, right: pl.DataFrame, join: AsOf) -> pl.DataFrame:
    library = polars()
    on, event, known = _comparable(left, right, join)
    rows = left.with_row_index(_ROW).with_columns(on.alias(_ON))
    matches = _matches(right, left.columns, event, known, join)
    timed = rows.filter(library.col(_ON).is_not_null()).sort(_ON, maintain_order=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sortedness of columns", category=UserWarning)
        found = timed.join_asof(
            matches,
            left_on=_ON,
            right_on=_KNOWN,
            by_left=list(join.by_left) or None,
            by_right=_by(join) or None,
            strategy=join.strategy,
            tolerance=join.tolerance if join.known_at is None else None,
            allow_exact_matches=join.allow_exact_matches,
            coalesce=False,
        )
    if join.known_at is not None and join.tolerance is not None:
        found = _within(found, join, [name for name in matches.columns if name not in _by(join)])
    untimed = rows.filter(library.col(_ON).is_null())
    every = library.concat([found, untimed], how="diagonal").sort(_ROW)
    done: pl.DataFrame = every.drop(_ROW, _ON, _KNOWN, _EVENT)
    return done


def _matches(
    right: pl.DataFrame, taken: Sequence[str], event: pl.Expr, known: pl.Expr | None, join: AsOf
) -> pl.DataFrame:
    """Rows of the right side as they are looked for by the time `_KNOWN`, with names that the left side lacks."""
    column = polars().col
    keyed = right.with_columns(event.alias(_EVENT))
    if known is None:
        keyed = keyed.with_columns(column(_EVENT).alias(_KNOWN))
    else:  # what happens later than it is told of, such as a forecast, is not there before it happens
        keyed = keyed.with_columns(known.alias(_KNOWN)).filter(column(_KNOWN).is_not_null())
        keyed = keyed.with_columns(polars().max_horizontal(_KNOWN, _EVENT).alias(_KNOWN))
    keyed = keyed.filter(column(_EVENT).is_not_null()).sort(_KNOWN, maintain_order=True)
    if known is not None:  # of what is known at a moment the latest counts: what is older changes nothing any more
        latest = column(_EVENT).cum_max()
        keyed = keyed.filter(column(_EVENT) >= (latest.over(list(join.by_right)) if join.by_right else latest))
    names = dict(zip(join.by_right, _by(join), strict=True))
    names |= {name: f"{name}{join.suffix}" for name in right.columns if name in taken and name not in names}
    return keyed.rename(names)


def _by(join: AsOf) -> list[str]:
    return [f"__by{number}" for number in range(len(join.by_right))]


def _within(found: pl.DataFrame, join: AsOf, columns: Sequence[str]) -> pl.DataFrame:
    """Takes back what is older than the tolerance."""
    library = polars()
    on = library.col(_ON)
    oldest = on.dt.offset_by(f"-{join.tolerance}") if isinstance(join.tolerance, str) else on - join.tolerance
    keep = library.col(_EVENT) >= oldest
    return found.with_columns(library.when(keep).then(library.col(name)).alias(name) for name in columns)


def _comparable(left: pl.DataFrame, right: pl.DataFrame, join: AsOf) -> tuple[pl.Expr, pl.Expr, pl.Expr | None]:
    """The times of both sides, and when the right ones became known, as values of one type."""
    library = polars()
    named = [(left, join.left_on, join.log_times[0]), (right, join.right_on, join.log_times[1])]
    if join.known_at is not None:
        named.append((right, join.known_at, join.log_times[1]))
    types = [frame.schema[name] for frame, name, _ in named]
    if any(kind.is_temporal() for kind in types):
        unit: Unit = "ns" if any(getattr(kind, "time_unit", None) == "ns" for kind in types) else "us"
        exprs = [
            _instant(name, kind, unit, is_ms=name in own) for (_, name, own), kind in zip(named, types, strict=True)
        ]
    elif all(kind.is_integer() for kind in types):
        exprs = [library.col(name).cast(library.Int64) for _, name, _ in named]
    elif all(kind.is_numeric() for kind in types):
        exprs = [library.col(name).cast(library.Float64) for _, name, _ in named]
    else:
        shown = ", ".join(f"{name} {kind}" for (_, name, _), kind in zip(named, types, strict=True))
        raise InvalidArgument(f"these columns are not all times, or all numbers: {shown}")
    return exprs[0], exprs[1], exprs[2] if len(exprs) == 3 else None


def _instant(name: str, kind: Any, unit: Unit, *, is_ms: bool) -> pl.Expr:
    """The instants in UTC; what has no time zone is UTC."""
    library = polars()
    column: pl.Expr = library.col(name)
    if kind == library.Date or (kind.is_integer() and is_ms):
        return column.cast(library.Datetime("ms")).cast(library.Datetime(unit))
    if not isinstance(kind, library.Datetime):
        raise InvalidArgument(f"column {name!r} is {kind}, and the others are times")
    zoned: pl.Expr = column if kind.time_zone is None else column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return zoned.cast(library.Datetime(unit))
