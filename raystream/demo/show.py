"""What is seen of the demo: the live picture, the tables at the end, the plot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raystream.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas as pd

    from raystream.demo.job import Outcome
    from raystream.demo.reconcile import Reconciliation

BUSIEST: Final = 10
_BAR_WIDTH: Final = 32


@dataclass
class Worker:
    """One member of the group, as its reports show it."""

    pid: int
    rows: int = 0
    partitions: list[int] = field(default_factory=list)
    killed: bool = False


@dataclass
class Picture:
    """What the live display shows at one moment."""

    total: int
    published: int = 0
    processed: int = 0
    lag: dict[int, int] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    doing: str = "starting"

    def __rich__(self) -> RenderableType:
        bars = Table.grid(padding=(0, 2))
        for name, done in (("published", self.published), ("processed", self.processed)):
            bar = ProgressBar(total=self.total, completed=done, width=_BAR_WIDTH)
            bars.add_row(Text(name, "bold"), bar, Text(f"{done:,}", justify="right"))
        lag = "  ".join(f"{p}: {behind:,}" for p, behind in sorted(self.lag.items()))
        bars.add_row(Text("lag", "bold"), Text(lag or "–"), Text(f"{sum(self.lag.values()):,}", justify="right"))
        members = Table.grid(padding=(0, 2))
        for number, worker in enumerate(self.workers, 1):
            state = Text("killed (SIGKILL)", "bold red") if worker.killed else Text("running", "green")
            held = "partitions " + ", ".join(map(str, sorted(worker.partitions))) if worker.partitions else ""
            members.add_row(
                Text(f"worker {number}", "bold"), f"pid {worker.pid}", state, f"{worker.rows:,} flights", held
            )
        return Group(bars, members, Text(self.doing, "dim"))


def statistics(frame: pd.DataFrame, names: dict[str, str]) -> Table:
    """The busiest carriers, with a bar for each one's mean departure delay."""
    table = Table(
        box=None, pad_edge=False, header_style="bold", title=f"The {BUSIEST} busiest carriers", title_justify="left"
    )
    table.add_column("carrier", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading in ("flights", "late", "mean delay"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", max_width=_BAR_WIDTH)  # in a narrow terminal this one gives way
    means = mean_delays(frame)
    longest = max(means.values(), default=1.0)
    for carrier, mean in means.items():
        row = frame.loc[carrier]
        late = f"{row['late'] / row['departed']:.0%}"
        bar = Bar(size=longest, begin=0, end=max(mean, 0), color="cyan")
        table.add_row(carrier, names.get(carrier, ""), f"{row['flights']:,}", late, f"{mean:.1f} min", bar)
    return table


def mean_delays(frame: pd.DataFrame) -> dict[str, float]:
    """Minutes of departure delay per flight that left, of the busiest carriers."""
    busiest = frame.head(BUSIEST)
    return {str(carrier): mean for carrier, mean in (busiest["minutes"] / busiest["departed"]).items()}


def plot(frame: pd.DataFrame, path: Path, names: dict[str, str]) -> None:
    """The same as a PNG. Raises InvalidArgument where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidArgument("--png needs matplotlib: pip install 'raystream[demo]'") from None
    means = dict(reversed(mean_delays(frame).items()))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.barh([names.get(carrier, carrier) for carrier in means], list(means.values()))
    axes.set_xlabel("mean departure delay, minutes")
    axes.set_title("Flights from New York, 2013: the busiest carriers")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def summary(result: Reconciliation, outcome: Outcome | None) -> Table:
    """Throughput, where there was any, and the reconciliation."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    if outcome is not None:
        rate = outcome.published / outcome.publish_seconds
        table.add_row(
            "published", f"{rate:,.0f}/s", f"{outcome.published:,} records in {outcome.publish_seconds:.1f} s"
        )
        if outcome.takeover_seconds is not None:
            table.add_row(
                "takeover",
                f"{outcome.takeover_seconds:.1f} s",
                "from SIGKILL to the first batch of its partitions",
            )
    rate = result.produced / max(result.replay_seconds, 1e-9)
    table.add_row("replayed", f"{rate:,.0f}/s", f"into pandas in {result.replay_seconds:.2f} s")
    table.add_row()
    table.add_row("produced", f"{result.produced:,}")
    table.add_row("processed", f"{result.processed:,}", "distinct (partition, offset)")
    table.add_row("lost", Text(f"{result.lost:,}", "bold green" if result.lost == 0 else "bold red"))
    table.add_row("reprocessed", f"{result.reprocessed:,}", "done before the kill and not yet committed")
    return table


def verdict(result: Reconciliation) -> Text:
    """One line that says whether everything agrees, or a line for each thing that does not."""
    if result.ok:
        return Text("✓ streamed, replayed and the package's own numbers agree", "bold green")
    return Text("\n".join(f"✗ {sentence}" for sentence in result.differences), "bold red")
