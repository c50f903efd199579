"""What exactly-once pipelines promise: of every record that their position has passed one was made, in that order."""

from __future__ import annotations

from raystream.testing.facts import Facts
from raystream.testing.groups import Groups
from raystream.testing.operations import Operation
from raystream.testing.report import Findings


class Moves:
    """What every pipeline has made of what."""

    def __init__(self, facts: Facts, groups: Groups, findings: Findings) -> None:
        self._facts = facts
        self._groups = groups
        self._findings = findings
        self._made: dict[str, dict[int, list[int]]] = {}
        """By group, then by the value that it was made of: values."""
        self._topics: dict[str, set[str]] = {}
        """Where each group writes to."""

    def made(self, operation: Operation) -> None:
        """A send that says what it was made of."""
        if operation.type != "invoke" or operation.source is None or operation.value is None:
            return
        group = operation.group or ""
        source, value = self._facts.value_number(operation.source), self._facts.value_number(operation.value)
        self._made.setdefault(group, {}).setdefault(source, []).append(value)
        self._topics.setdefault(group, set()).add(operation.topic or "")

    def find_what_is_wrong(self) -> None:
        """Once the whole history is known."""
        for group, made in self._made.items():
            shown = {source: [v for v in values if self._facts.shown(v)] for source, values in made.items()}
            for source, values in shown.items():
                if len(values) > 1:
                    self._tell_twice(group, source, values)
            self._find_unmoved(group, shown)
            self._find_disorder(group, shown)

    def _tell_twice(self, group: str, source: int, values: list[int]) -> None:
        facts = self._facts
        names = " and ".join(repr(facts.values[value]) for value in values)
        numbers = [number for value in values for number in (facts.sent[value], facts.read[value])]
        self._findings.add("moved-twice", f"group {group!r} has made {names} of {facts.values[source]!r}", numbers)

    def _find_unmoved(self, group: str, shown: dict[int, list[int]]) -> None:
        facts = self._facts
        drains = [d.begun for p, d in facts.complete.items() if facts.partitions[p][0] in self._topics[group]]
        sources = {facts.partition[source] for source in shown if facts.partition[source] >= 0}
        for partition in sorted(sources):
            topic, number = facts.partitions[partition]
            position = self._groups.highest(group, topic, number)
            if position is None or not drains or position[1] >= min(drains):
                continue
            for offset, value in sorted(facts.at[partition].items()):
                if offset < position[0] and facts.shown(value) and not shown.get(value):
                    sentence = (
                        f"group {group!r} is at {position[0]} of {topic}-{number} and has made nothing of "
                        f"{facts.values[value]!r} at offset {offset}"
                    )
                    self._findings.add("moved-never", sentence, (facts.placed[value], position[1]))

    def _find_disorder(self, group: str, shown: dict[int, list[int]]) -> None:
        """Per partition that was read and partition that was written to."""
        facts = self._facts
        lanes: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for source, values in shown.items():
            for value in values:
                if facts.partition[source] >= 0 and facts.partition[value] >= 0:
                    lane = (facts.partition[source], facts.partition[value])
                    lanes.setdefault(lane, []).append((facts.offset[value], facts.offset[source], value))
        for made in lanes.values():
            made.sort()
            highest, before = -1, -1
            for _, offset, value in made:
                if offset < highest:
                    place = facts.place(facts.partition[value], facts.offset[value])
                    sentence = (
                        f"{facts.values[value]!r} at {place} stands behind {facts.values[before]!r}, and was made by "
                        f"group {group!r} of an earlier record"
                    )
                    self._findings.add("moved-out-of-order", sentence, (facts.placed[before], facts.placed[value]))
                if offset > highest:
                    highest, before = offset, value
