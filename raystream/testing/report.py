"""What a check found: anomalies by name, each with a sentence and the operations that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from raystream.testing.operations import Operation

ANOMALIES: Final = {
    "inconsistent-offsets": "two values at one offset of a partition",
    "duplicate": "one value at two places of the log",
    "lost-write": "an acknowledged or read value is absent although later ones of its partition were read",
    "unseen": "an acknowledged value was not read by the final read, nor anything behind it: the tail is lost",
    "aborted-read": "a value was read whose send failed or whose transaction was aborted",
    "uncommitted-read": "a value was read before its transaction asked to commit",
    "unwritten-read": "a value was read that nobody sent",
    "poll-skip": "a consumer went on behind offsets that the log holds and it was not given",
    "nonmonotonic-poll": "a consumer was given an offset again, or an earlier one, without a reassignment or a seek",
    "group-skip": "offsets that no member of a group was given although members were given earlier and later ones",
    "nonmonotonic-send": "a producer's record stands before one that it sent earlier to the same partition",
    "position-moved-back": "a group's committed position was lower than one known before the operation began",
    "two-owners": "two members of a group were assigned one partition in one epoch",
    "accepted-twice": "two members of a queue were told that they have accepted one record",
    "delivered-after-accept": "a record was accepted, although a later delivery of it had begun or was yet to come",
    "settled-unhandled": "a queue is done with a record that nobody accepted and that is no dead letter",
    "half-transaction": "records of a transaction were read, and others of it, acknowledged, are absent in the end",
    "zombie-write": "a producer wrote or committed after another one had surely taken over its transactional id",
    "moved-twice": "a pipeline has made two visible records of one",
    "moved-never": "a pipeline's position has passed a record of which it has made none",
    "moved-out-of-order": "what a pipeline has made of a partition's records stands in another order",
    "write-cycle": "transactions wrote around each other: each has a write after one of the next",
    "information-cycle": "transactions that each read from, or wrote after, the next in a circle",
}
"""Every anomaly, with what it means."""

EXAMPLES_MAX: Final = 20
OPERATIONS_MAX: Final = 12
"""How many operations one anomaly shows at most."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One finding: its name in `ANOMALIES`, one sentence, and the operations that show it, in order of time."""

    name: str
    sentence: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.name}: {self.sentence}", *(f"    {operation}" for operation in self.operations)])


@dataclass(frozen=True, slots=True)
class Report:
    """What a history holds and what is wrong with it. Printed, it is a summary.

    `counts` has every anomaly found; `anomalies` the first `examples` of each name, written out.
    """

    operations: dict[str, int]
    """How many of each kind and type, as "send ok"."""
    counts: dict[str, int]
    anomalies: tuple[Anomaly, ...]
    notes: tuple[str, ...] = ()
    """What could not be checked, and why."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.counts

    def named(self, name: str) -> list[Anomaly]:
        """The anomalies of that name that are written out."""
        return [anomaly for anomaly in self.anomalies if anomaly.name == name]

    def __str__(self) -> str:
        lines = [f"{sum(self.operations.values()):,} operations"]
        lines += [f"  {what:<18}{count:>12,}" for what, count in self.operations.items()]
        lines += [f"note: {note}" for note in self.notes]
        if self.ok:
            return "\n".join([*lines, "no anomaly"])
        lines.append(f"{sum(self.counts.values()):,} anomalies")
        lines += [f"  {name:<22}{count:>8,}  {ANOMALIES[name]}" for name, count in self.counts.items()]
        lines += [f"\n{anomaly}" for anomaly in self.anomalies]
        return "\n".join(lines)


@dataclass(slots=True)
class Findings:
    """Gathers anomalies while a history goes by, its operations named by their number."""

    ignored: frozenset[str] = frozenset()
    examples: int = EXAMPLES_MAX
    counts: Counter[str] = field(default_factory=Counter)
    kept: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, sentence: str, operations: Iterable[int]) -> None:
        """One more anomaly. Numbers below 0 stand for operations that nobody recorded."""
        if name in self.ignored:
            return
        self.counts[name] += 1
        if self.counts[name] <= self.examples:
            numbers = sorted({number for number in operations if number >= 0})
            self.kept.append((name, sentence, tuple(numbers[:OPERATIONS_MAX])))

    def wanted(self) -> set[int]:
        """The numbers of the operations that the kept anomalies show."""
        return {number for _, _, numbers in self.kept for number in numbers}
