"""Reads a history and says what a correct log could not have done.

    python -m raystream.testing.checker FILE …

prints the report of recorded files and exits with 1 where it holds an anomaly. What each anomaly means stands in
`report.ANOMALIES`; the model is Jepsen's Kafka workload.

It assumes that the values of a topic are unique and not compacted, that consumers read committed records only where
they do not say otherwise, and that somebody reads every partition from its beginning. It reports what cannot have
happened on a correct log whatever the timing: an outcome that is unknown may be either. One pass, memory in proportion
to the number of values.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from raystream.errors import InvalidArgument
from raystream.testing.consumers import Consumers
from raystream.testing.facts import Facts
from raystream.testing.groups import Groups
from raystream.testing.moves import Moves
from raystream.testing.operations import History, Operation
from raystream.testing.queues import Queues
from raystream.testing.report import ANOMALIES, EXAMPLES_MAX, Anomaly, Findings, Report
from raystream.testing.transactions import Transactions
from raystream.testing.writes import check_writes, note_what_is_unchecked

Source = str | os.PathLike[str] | Iterable[Operation]


def check(source: Source, *, ignore: Collection[str] = (), examples: int = EXAMPLES_MAX) -> Report:
    """The report of a history: a file, a `History` of several, or operations in order of time.

    `ignore` names anomalies that do not count; `examples` says how many of each are written out. An iterator is kept
    in memory, whatever can be iterated twice is not. Raises InvalidArgument where it is no history.
    """
    unknown = sorted(set(ignore) - ANOMALIES.keys())
    if unknown:
        raise InvalidArgument(f"there is no anomaly {', '.join(unknown)}; there are: {', '.join(ANOMALIES)}")
    operations = History(source) if isinstance(source, (str, os.PathLike)) else source
    if isinstance(operations, Iterator):
        operations = list(operations)
    return Checker(frozenset(ignore), examples).run(operations)


class Checker:
    """One pass over one history."""

    def __init__(self, ignored: frozenset[str], examples: int) -> None:
        self._findings = Findings(ignored, examples)
        self._transactions = Transactions()
        self._facts = Facts(self._findings, self._transactions)
        self._consumers = Consumers(self._facts, self._findings)
        self._groups = Groups(self._findings)
        self._queues = Queues(self._facts, self._findings)
        self._moves = Moves(self._facts, self._groups, self._findings)
        self._handlers: dict[str, Callable[[int, Operation], None]] = {
            "send": self._send,
            "poll": self._poll,
            "assign": self._reassigned,
            "revoke": self._reassigned,
            "seek": self._reassigned,
            "commit": self._position,
            "committed": self._position,
            "drain": self._facts.drain,
            "deliver": self._queues.deliver,
            "settle": self._queues.settle,
            "buried": self._queues.buried,
            "settled": self._queues.settled,
            "begin": self._transactions.begin,
            "end": self._end,
            "crash": self._crash,
        }

    def run(self, operations: Iterable[Operation]) -> Report:
        """Reads the history once, and once more for the operations to show where there is something to show."""
        seen: Counter[tuple[str, str]] = Counter()
        handlers = self._handlers
        time = -1
        for number, operation in enumerate(operations):
            seen[operation.kind, operation.type] += 1
            if operation.time < time:
                raise InvalidArgument(f"operation {number} is earlier than the one before it: {operation}")
            time = operation.time
            handler = handlers.get(operation.kind)
            if handler is not None:
                handler(number, operation)
        self._finish()
        return self._report(operations, {f"{kind} {type}": count for (kind, type), count in sorted(seen.items())})

    def _finish(self) -> None:
        check_writes(self._facts, self._findings)
        note_what_is_unchecked(self._facts, self._findings)
        self._consumers.find_skips()
        self._consumers.find_group_skips()
        self._queues.find_what_is_wrong()
        self._transactions.find_early_reads(self._facts, self._findings)
        self._transactions.find_halves(self._facts, self._findings)
        self._transactions.find_zombies(self._facts, self._findings)
        self._moves.find_what_is_wrong()
        self._transactions.find_cycles(self._facts, self._findings)

    def _report(self, operations: Iterable[Operation], seen: dict[str, int]) -> Report:
        findings = self._findings
        wanted = findings.wanted()
        shown = {number: op for number, op in enumerate(operations) if number in wanted} if wanted else {}
        rank = {name: place for place, name in enumerate(ANOMALIES)}
        anomalies = tuple(
            Anomaly(name, sentence, tuple(shown[number] for number in numbers))
            for name, sentence, numbers in sorted(findings.kept, key=lambda kept: rank[kept[0]])
        )
        counts = {name: findings.counts[name] for name in ANOMALIES if findings.counts[name]}
        return Report(seen, counts, anomalies, tuple(findings.notes))

    # Operations -----------------------------------------------------------------------------------------------------

    def _send(self, number: int, operation: Operation) -> None:
        self._facts.send(number, operation)
        if operation.source is not None:
            self._moves.made(operation)

    def _end(self, number: int, operation: Operation) -> None:
        self._transactions.end(number, operation)
        self._groups.ended(number, operation)

    def _group(self, operation: Operation) -> str | None:
        if operation.group is not None:
            self._consumers.group_of[operation.process] = operation.group
        return self._consumers.group_of.get(operation.process)

    def _poll(self, number: int, operation: Operation) -> None:
        if operation.type == "ok" and operation.records:
            self._group(operation)
            runs = self._facts.poll(number, operation)
            self._consumers.poll(number, operation.process, runs)

    def _reassigned(self, number: int, operation: Operation) -> None:
        if operation.type not in ("invoke", "fail"):
            group = self._group(operation)
            self._consumers.reassigned(operation)
            if operation.kind == "assign":
                self._groups.assigned(number, operation, group)
            elif operation.kind == "seek":
                self._groups.sought(operation, group)

    def _position(self, number: int, operation: Operation) -> None:
        self._groups.position(number, operation, self._group(operation))

    def _crash(self, _: int, operation: Operation) -> None:
        self._facts.crash(operation.process)
        self._consumers.reassigned(operation)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 1 with anomalies, 2 where a file is no history."""
    parser = argparse.ArgumentParser(
        prog="python -m raystream.testing.checker", description="Checks recorded histories."
    )
    parser.add_argument("file", nargs="+", help="recorded at the same time on one machine: merged by time")
    parser.add_argument(
        "--ignore", action="append", default=[], choices=ANOMALIES, help="an anomaly that does not count"
    )
    parser.add_argument("--examples", type=int, default=EXAMPLES_MAX, help="how many of each anomaly are written out")
    options = parser.parse_args(arguments)
    try:
        report = check(History(*options.file), ignore=options.ignore, examples=options.examples)
    except (InvalidArgument, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
