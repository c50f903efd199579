"""What a command works with: the way to the cluster, and where its results go: tables for people, JSON for programs."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import decimal
import json
import logging
import math
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from raystream.actors.processes import answers
from raystream.commands import localray
from raystream.errors import ClusterNotFound

if TYPE_CHECKING:
    from raystream.cluster import Cluster

_PIPE_WIDTH = 10_000  # rows are never wrapped or cut where no terminal shows them


class Shell:
    """Results go to stdout, everything else (notes, progress, errors) to stderr."""

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.json: bool = args.json
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)
        logging.getLogger("raystream").setLevel(logging.WARNING)  # a command says itself what it did
        if self.named_address is None:
            localray.use_token()

    @property
    def named_address(self) -> str | None:
        """The Ray cluster that was named, by option or environment."""
        return self.args.address or os.environ.get("RAY_ADDRESS") or None

    def connect(self) -> Cluster:
        """The cluster that `--address`, `--data-dir` and the environment name, as `raystream.connect()` finds it."""
        import raystream

        named = self.named_address or ""
        if named.rpartition(":")[2].isdigit() and "//" not in named and not answers(named):
            raise ClusterNotFound(f"nobody answers at {named}: is that the address of a Ray cluster's head?")
        with self.err.status("connecting"):
            return raystream.connect(self.args.address, data_dir=self.args.data_dir)

    def note(self, text: str) -> None:
        """One line for people, on stderr."""
        self.err.print(text, style="dim", markup=False, highlight=False)

    def result(self, text: str, facts: Mapping[str, Any]) -> None:
        """What a command did: a sentence for people, an object for programs."""
        if self.json:
            self.print_json(facts)
        else:
            self.out.print(text, markup=False, highlight=False)

    def print_json(self, value: Any) -> None:
        sys.stdout.write(to_json(value, indent=2) + "\n")

    def table(self, items: Sequence[Any], columns: Mapping[str, str], *, title: str = "") -> None:
        """Dataclasses as a table. `columns` maps attributes to headings; sizes and counts are set to the right."""
        if not items:
            self.out.print("(none)", style="dim")
            return
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for name, heading in columns.items():
            numeric = name not in _LABELS and any(isinstance(getattr(item, name), (int, float)) for item in items)
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
        for item in items:
            table.add_row(*(escape(cell(name, getattr(item, name))) for name in columns))
        self.out.print(table)

    def facts(self, pairs: Mapping[str, Any]) -> None:
        """Names and values below one another."""
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, value in pairs.items():
            table.add_row(name, escape(cell(name, value)))
        self.out.print(table)

    def progress(self, unit: str) -> Progress:
        """A progress bar on stderr that vanishes when done, and stays away where stderr is no terminal."""
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            console=self.err,
            transient=True,
            disable=not self.err.is_terminal,
        )


_LABELS = frozenset({"partition", "leader", "broker_id", "pid", "controller", "ok"})


def _console(stream: Any) -> Console:
    return Console(file=stream, width=None if stream.isatty() else _PIPE_WIDTH)


def cell(name: str, value: Any) -> str:
    """One value of a table: sizes with their unit, counts with separators, sequences joined."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") or name in ("size", "free"):
        return size(value)
    if isinstance(value, int):
        return str(value) if name in _LABELS else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return "  ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(str(item) for item in value)
    return str(value)


def size(count: int) -> str:
    """Bytes for people, in powers of 1,024."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def count_of(number: int, noun: str) -> str:
    """`1 record`, `2,000 records`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as every parser takes it: no NaN, bytes as text, or in base64 where they are no UTF-8."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """The value in terms of JSON's types."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _text(bytes(value))
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, dt.timedelta)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if type(value).__name__ == "Schema":
        return {field.name: str(field.type) for field in value}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def _text(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
