"""What every benchmark shares: repeated runs in rotation, medians, a ratio to a bare operation, a table.

Traps that turned verdicts around before: dirty pages of one case billed to the next (so: delete, sync and settle in
between), first touch of memory, a fixed order of cases (so: rotate), cold code (so: one run that does not count).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

Case = Callable[[], float]
"""Runs once and answers its own figure, in the unit of its table."""


@dataclass
class Table:
    """Cases measured side by side. `better` is "higher" or "lower"."""

    title: str
    unit: str
    better: str = "higher"
    figures: dict[str, list[float]] = field(default_factory=dict)

    def median(self, case: str) -> float:
        return statistics.median(self.figures[case])

    def ratio(self, case: str, bare: str) -> float:
        """How `case` stands against `bare`, run by run in the same rotation: the median of the pairs."""
        pairs = zip(self.figures[case], self.figures[bare], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def show(self, ratios: Mapping[str, str] | None = None) -> None:
        """Prints a Markdown table: median, range, and the ratio to another case where one is named."""
        print(f"\n### {self.title} ({self.unit}, {self.better} is better)\n")
        print("| case | median | min | max | ratio |\n|---|---|---|---|---|")
        for case, values in self.figures.items():
            against = (ratios or {}).get(case)
            ratio = f"{self.ratio(case, against):.2f} × {against}" if against else ""
            print(f"| {case} | {_short(self.median(case))} | {_short(min(values))} | {_short(max(values))} | {ratio} |")


def measure(title: str, unit: str, cases: Mapping[str, Case], *, runs: int, better: str = "higher") -> Table:
    """Runs every case once uncounted, then `runs` times in rotating order."""
    table = Table(title, unit, better, {name: [] for name in cases})
    names = list(cases)
    for name in names:
        cases[name]()
        settle()
    for turn in range(runs):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            table.figures[name].append(cases[name]())
            settle()
    return table


def settle() -> None:
    """Lets the disk and the collector finish what a case left behind."""
    gc.collect()
    os.sync()
    time.sleep(0.3)


def arguments(description: str, **defaults: int) -> argparse.Namespace:
    """`--runs` and the sizes a benchmark takes; `--json FILE` keeps the figures."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data-dir", type=Path)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return parser.parse_args()


def machine() -> str:
    """One line about where the figures were measured."""
    import pyarrow as pa
    import ray

    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"Ray {ray.__version__}, pyarrow {pa.__version__}, RAY_worker_niceness={os.environ['RAY_worker_niceness']}"
    )


def keep(path: Path | None, *tables: Table) -> None:
    """Writes the figures as JSON where asked to."""
    if path is not None:
        path.write_text(json.dumps({table.title: table.figures for table in tables}, indent=1))


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:,.2f} M"
    if value >= 1e4:
        return f"{value / 1e3:,.0f} k"
    return f"{value:,.2f}"
