"""What share groups promise: a record is accepted once, or delivered again, or a dead letter, and never forgotten.

How often a record was delivered only grows when a delivery of it has ended, so that a delivery of a higher number than
the accepted one began after that had ended, whatever the clients' clocks say. The same number may come twice: those
deliveries are not counted that are under way when a coordinator dies.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raystream.testing.facts import Facts
from raystream.testing.operations import Operation
from raystream.testing.report import Findings

Place = tuple[str, str, int, int]
"""Group, topic, partition, offset."""


@dataclass(slots=True)
class _Record:
    """One record in one queue: its highest delivery, and what members said of it, each with the operation."""

    delivery: tuple[int, int] = (0, -1)
    accepted: tuple[int, int, str] | None = None
    maybe_accepted: bool = False
    asked: set[str] = field(default_factory=set)
    """Who has said that it accepts the record, and was not answered yet."""


@dataclass(slots=True)
class _Settled:
    offset: int
    number: int


class Queues:
    """Every record that was delivered by a queue, as the operations so far show it."""

    def __init__(self, facts: Facts, findings: Findings) -> None:
        self._facts = facts
        self._findings = findings
        self._records: dict[Place, _Record] = {}
        self._buried: set[Place] = set()
        self._settled: dict[tuple[str, str, int], _Settled] = {}

    def _of(self, operation: Operation) -> list[tuple[Place, _Record]]:
        group = operation.group or ""
        places = [(group, topic, partition, offset) for topic, partition, offset, _ in operation.records]
        return [(place, self._records.setdefault(place, _Record())) for place in places]

    def deliver(self, number: int, operation: Operation) -> None:
        """A member was given records."""
        if operation.type == "ok":
            for _, record in self._of(operation):
                record.delivery = max(record.delivery, (operation.epoch or 1, number))

    def settle(self, number: int, operation: Operation) -> None:
        """A member says, or was told, what becomes of records. What was refused for sure is `fail`."""
        if operation.outcome != "accept":
            return
        for place, record in self._of(operation):
            if operation.type == "invoke":
                record.asked.add(operation.process)
            else:
                record.asked.discard(operation.process)
                record.maybe_accepted |= operation.type != "fail"
            if operation.type != "ok":
                continue
            if record.accepted is not None:
                _, earlier, process = record.accepted
                sentence = f"{process} and {operation.process} have both accepted {_named(place)}"
                self._findings.add("accepted-twice", sentence, (earlier, number))
            else:
                record.accepted = (operation.epoch or 1, number, operation.process)

    def buried(self, _: int, operation: Operation) -> None:
        """Dead letters that are there."""
        self._buried.update(place for place, _ in self._of(operation))

    def settled(self, number: int, operation: Operation) -> None:
        """Everything below these offsets is said to be settled."""
        for topic, partition, offset in operation.offsets:
            self._settled[operation.group or "", topic, partition] = _Settled(offset, number)

    def find_what_is_wrong(self) -> None:
        """Once the whole history is known."""
        for place, record in self._records.items():
            if record.accepted is not None and record.delivery[0] > record.accepted[0]:
                delivery, given = record.delivery
                accepted, said, process = record.accepted
                sentence = (
                    f"{process} has accepted {_named(place)} as delivery {accepted}, delivery {delivery} followed"
                )
                self._findings.add("delivered-after-accept", sentence, sorted((said, given)))
        for (group, topic, partition), settled in self._settled.items():
            self._find_unhandled(group, topic, partition, settled)

    def _find_unhandled(self, group: str, topic: str, partition: int, settled: _Settled) -> None:
        number = self._facts.partition_number(topic, partition)
        for offset, value in sorted(self._facts.at[number].items()):
            place = (group, topic, partition, offset)
            record = self._records.get(place)
            handled = place in self._buried or (record is not None and (record.maybe_accepted or bool(record.asked)))
            if offset < settled.offset and not handled and self._facts.shown(value):
                sentence = f"nobody accepted {_named(place)}, {self._facts.values[value]!r}, and it is settled"
                self._findings.add("settled-unhandled", sentence, (self._facts.placed[value], settled.number))


def _named(place: Place) -> str:
    group, topic, partition, offset = place
    return f"{topic}-{partition} offset {offset} in share group {group!r}"
