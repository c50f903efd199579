"""Transactions of a history: what became of each, who read them too early, and whether they depend on each other in
circles.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from raystream.errors import InvalidArgument
from raystream.testing.cycles import cycle_through, strongly_connected
from raystream.testing.operations import Operation
from raystream.testing.report import Findings

if TYPE_CHECKING:
    from raystream.testing.facts import Facts


class Fate(Enum):
    """What became of a transaction."""

    UNKNOWN = 0
    COMMITTED = 1
    ABORTED = 2


@dataclass(slots=True)
class _Producer:
    """One holder of a transactional id: the operations between which it has taken the id."""

    process: str
    invoked: int
    taken: int = -1


@dataclass(slots=True)
class _Transaction:
    name: str
    commit_asked: int = -1
    ended: int = -1
    fate: Fate = Fate.UNKNOWN
    producer: _Producer | None = None


@dataclass(frozen=True, slots=True)
class _Edge:
    """The second transaction depends on the first; `values` by number, in the order first, second."""

    kind: str
    values: tuple[int, ...]
    read_by: int = -1


Edges = dict[int, dict[int, _Edge]]


class Transactions:
    """Every transaction that operations named so far."""

    def __init__(self) -> None:
        self._all: list[_Transaction] = []
        self._numbers: dict[str, int] = {}
        self.of_value: dict[int, int] = {}
        """The transaction in which a value was sent."""
        self._producers: dict[str, dict[str, _Producer]] = {}
        """By transactional id, then by process."""
        self._early: dict[int, tuple[int, bool]] = {}
        self._reads: dict[tuple[int, int], tuple[int, int]] = {}

    def _number(self, name: str) -> int:
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self._all)
            self._all.append(_Transaction(name))
        return found

    def begin(self, number: int, operation: Operation) -> None:
        """A transaction begins, or has begun: the first time its producer has taken over the transactional id."""
        if operation.txn is None or operation.transactional_id is None:
            raise InvalidArgument("the beginning of a transaction needs txn and transactional_id")
        of_id = self._producers.setdefault(operation.transactional_id, {})
        producer = of_id.setdefault(operation.process, _Producer(operation.process, number))
        if operation.type == "ok":
            producer.taken = number if producer.taken < 0 else producer.taken
            self._all[self._number(operation.txn)].producer = producer

    def wrote(self, name: str, value: int) -> None:
        """A send in a transaction was invoked."""
        self.of_value[value] = self._number(name)

    def read(self, number: int, reader: str | None, value: int) -> None:
        """A value that was sent in a transaction was read, perhaps in another."""
        writer = self.of_value[value]
        own = reader is not None and self._number(reader) == writer
        if self._all[writer].commit_asked < 0:
            self._early.setdefault(value, (number, own))
        if reader is not None and not own:
            self._reads.setdefault((writer, self._number(reader)), (value, number))

    def end(self, number: int, operation: Operation) -> None:
        """A commit or an abort was asked for, or is answered."""
        if operation.txn is None or operation.outcome is None:
            raise InvalidArgument("the end of a transaction needs txn and outcome")
        transaction = self._all[self._number(operation.txn)]
        if operation.outcome == "commit":
            if transaction.commit_asked < 0:
                transaction.commit_asked = number
            answer = {"ok": Fate.COMMITTED, "fail": Fate.ABORTED}.get(operation.type)
        else:  # without a commit on its way nothing can commit it any more, whatever the answer
            surely = operation.type == "ok" or transaction.commit_asked < 0
            answer = Fate.ABORTED if surely else None
        if answer is not None and transaction.fate is Fate.UNKNOWN:
            transaction.fate = answer
            transaction.ended = number

    def fate(self, transaction: int) -> Fate:
        return self._all[transaction].fate

    def name(self, transaction: int) -> str:
        return self._all[transaction].name

    def ended(self, transaction: int) -> int:
        """The operation that settled its fate."""
        return self._all[transaction].ended

    # Checks ---------------------------------------------------------------------------------------------------------

    def find_early_reads(self, facts: Facts, findings: Findings) -> None:
        """Values that were read before their transaction asked to commit; of aborted ones only its own reads."""
        for value, (number, own) in self._early.items():
            transaction = self._all[self.of_value[value]]
            if own or transaction.fate is not Fate.ABORTED:
                whose = "its own transaction" if own else "somebody before its transaction"
                asked = f"{transaction.name!r}" if own else f"{transaction.name!r} asked to commit"
                sentence = f"{facts.values[value]!r} was read by {whose} {asked}"
                findings.add("uncommitted-read", sentence, (facts.sent[value], number, transaction.commit_asked))

    def find_halves(self, facts: Facts, findings: Findings) -> None:
        """Transactions that nobody was told the outcome of: where one record was read all must be there in the end."""
        first: dict[int, int] = {}
        for value in sorted((value for value in self.of_value if facts.read[value] >= 0), key=facts.read.__getitem__):
            first.setdefault(self.of_value[value], value)
        for value, transaction in self.of_value.items():
            if self._all[transaction].fate is not Fate.UNKNOWN or transaction not in first or not facts.acked(value):
                continue
            drain, read = facts.complete.get(facts.partition[value]), first[transaction]
            if drain is None or facts.drained[value] & drain.bit or facts.read[read] >= drain.begun:
                continue
            if facts.read[value] < 0 and facts.offset[value] >= drain.starts[facts.partition[value]]:
                place = facts.place(facts.partition[value], facts.offset[value])
                sentence = (
                    f"{facts.values[read]!r} of {self.name(transaction)!r} was read, and {facts.values[value]!r}, "
                    f"acknowledged at {place}, is absent"
                )
                findings.add("half-transaction", sentence, (facts.settled[value], facts.read[read], drain.begun))

    def find_zombies(self, facts: Facts, findings: Findings) -> None:
        """What producers did after another one had taken over their transactional id."""
        taken_over = {number: self._taken_over(transaction) for number, transaction in enumerate(self._all)}
        told: set[int] = set()
        for value, number in self.of_value.items():
            transaction, (successor, since) = self._all[number], taken_over[number]
            committed = facts.read[value] >= 0 or transaction.fate is Fate.COMMITTED
            late_commit = committed and not 0 <= transaction.commit_asked <= since
            late_write = facts.acked(value) and facts.sent[value] > since
            if since >= 0 and (late_commit or late_write) and number not in told:
                told.add(number)
                assert transaction.producer is not None
                what = "was committed" if late_commit else "was written to"
                sentence = (
                    f"{transaction.name!r} of {transaction.producer.process} {what} with {facts.values[value]!r} after "
                    f"{successor} had taken over its transactional id"
                )
                shown = (since, facts.sent[value], facts.settled[value], transaction.commit_asked, facts.read[value])
                findings.add("zombie-write", sentence, shown)

    def _taken_over(self, transaction: _Transaction) -> tuple[str, int]:
        """The first producer that has taken the id surely after the transaction's own, and when it had; -1: nobody."""
        producer = transaction.producer
        if producer is None:
            return "", -1
        of_id = next(held for held in self._producers.values() if held.get(producer.process) is producer)
        later = [other for other in of_id.values() if other.taken >= 0 and other.invoked > producer.taken]
        first = min(later, key=lambda other: other.taken, default=None)
        return ("", -1) if first is None else (first.process, first.taken)

    def find_cycles(self, facts: Facts, findings: Findings) -> None:
        """Circles of ww dependencies, and of ww and wr ones with at least one wr.

        Kafka's protocol does not order the writes of concurrent transactions, so a log may be right and have write
        cycles; where "write-cycle" is ignored, ww dependencies count for nothing.
        """
        writes: Edges = {}
        if "write-cycle" not in findings.ignored:
            writes = self._write_edges(facts)
            for component in strongly_connected(writes):
                self._tell("write-cycle", writes, cycle_through(writes, component, component[0]), facts, findings)
        edges: Edges = {first: dict(seconds) for first, seconds in writes.items()}
        for (writer, reader), (value, number) in self._reads.items():
            if not facts.withdrawn(value):
                edges.setdefault(writer, {})[reader] = _Edge("wr", (value,), number)
        for component in strongly_connected(edges):
            members = set(component)
            reads = [
                (first, second)
                for first in component
                for second, edge in edges[first].items()
                if edge.kind == "wr" and second in members
            ]
            if reads:
                self._tell("information-cycle", edges, cycle_through(edges, component, *reads[0]), facts, findings)

    def _write_edges(self, facts: Facts) -> Edges:
        """Transactions whose writes follow each other in a partition, those that surely are in the log."""
        per_partition: dict[int, list[tuple[int, int]]] = {}
        for value in self.of_value:
            if facts.shown(value) and facts.partition[value] >= 0:
                per_partition.setdefault(facts.partition[value], []).append((facts.offset[value], value))
        edges: Edges = {}
        for places in per_partition.values():
            places.sort()
            for (_, first), (_, second) in itertools.pairwise(places):
                before, after = self.of_value[first], self.of_value[second]
                if before != after:
                    edges.setdefault(before, {}).setdefault(after, _Edge("ww", (first, second)))
        return edges

    def _tell(
        self,
        name: str,
        edges: Mapping[int, Mapping[int, _Edge]],
        cycle: Sequence[int],
        facts: Facts,
        findings: Findings,
    ) -> None:
        parts, numbers = [], []
        for before, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            edge = edges[before][after]
            values = [repr(facts.values[value]) for value in edge.values]
            if edge.kind == "ww":
                what = f"{self.name(after)!r} wrote {values[1]} after {values[0]} of {self.name(before)!r}"
            else:
                what = f"{self.name(after)!r} read {values[0]} of {self.name(before)!r}"
            parts.append(what)
            numbers += [*_completions(facts, edge.values), edge.read_by]
        findings.add(name, ", ".join(parts), numbers)


def _completions(facts: Facts, values: Iterable[int]) -> list[int]:
    return [max(facts.settled[value], facts.placed[value]) for value in values]
