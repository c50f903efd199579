"""What the topics themselves say about the demo: read back from the log alone, when all is done or after a restart."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raystream.demo import flights
from raystream.demo.ledger import Ledger, Range
from raystream.demo.worker import GROUP, REPORTS

if TYPE_CHECKING:
    import pandas as pd

    from raystream.cluster import Cluster


@dataclass(frozen=True)
class Reconciliation:
    """Counts are records. `differences` holds a sentence for each thing that does not agree."""

    produced: int
    processed: int
    lost: int
    reprocessed: int
    replay_seconds: float
    differences: tuple[str, ...]
    statistics: pd.DataFrame

    @property
    def ok(self) -> bool:
        return not self.differences


def reconcile(cluster: Cluster, produced: Mapping[int, Range], source: pd.DataFrame) -> Reconciliation:
    """Compares produced offsets, the workers' reports, a replay of the topic and the package's own frame."""
    ledger, streamed = _reports(cluster)
    began = time.monotonic()
    replay = cluster.read(flights.TOPIC).to_pandas()
    replay_seconds = time.monotonic() - began
    own = flights.merged([flights.delays(source)])
    made = sum(end - first for first, end in produced.values())
    lost = ledger.missing(produced)
    checks = {
        f"{len(source):,} flights were to be produced, {made:,} were": made == len(source),
        f"{lost:,} records were produced and never processed": lost == 0,
        f"{ledger.distinct:,} distinct records were processed": ledger.distinct == made,
        "the workers' statistics are not those of the package's frame": streamed.equals(own),
        "the replay's statistics are not those of the package's frame": flights.merged([flights.delays(replay)]).equals(
            own
        ),
        "the replay is not the package's frame, carrier by carrier in order": by_key(replay).equals(by_key(source)),
        "the group's positions are not at the topic's ends": _positions(cluster)
        == {p: end for p, (_, end) in produced.items()},
    }
    differences = tuple(sentence for sentence, holds in checks.items() if not holds)
    return Reconciliation(made, ledger.distinct, lost, ledger.repeated, replay_seconds, differences, streamed)


def by_key(frame: pd.DataFrame) -> pd.DataFrame:
    """Order holds within a key, which is all that a partitioned log promises."""
    return frame.sort_values(flights.KEY, kind="stable", ignore_index=True)


def _positions(cluster: Cluster) -> dict[int, int | None]:
    return {row.partition: row.committed for row in cluster.lag(GROUP) if row.topic == flights.TOPIC}


def _reports(cluster: Cluster) -> tuple[Ledger, pd.DataFrame]:
    """The ledger and the statistics that the workers' reports add up to; what was reported twice counts once."""
    ledger = Ledger()
    parts = []
    for report in _read(cluster):
        whole = report["first"], report["end"]
        new = ledger.add(report["partition"], *whole)
        if new == [whole]:
            parts.append(_frame(report["delays"]))
            continue
        for first, end in new:
            # A takeover may cut batches elsewhere: what is new of this one is computed from the log.
            none = dict.fromkeys(range(flights.PARTITIONS), 0)
            start, stop = none | {report["partition"]: first}, none | {report["partition"]: end}
            parts.append(flights.delays(cluster.read(flights.TOPIC, start=start, end=stop).to_pandas()))
    return ledger, flights.merged(parts)


def _frame(delays: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame.from_dict(delays, orient="index")


def _read(cluster: Cluster) -> list[dict[str, Any]]:
    return [json.loads(value) for value in cluster.read(REPORTS).to_arrow().column("value").to_pylist()]
