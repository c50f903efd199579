"""What consumers were given: in order and without gaps, each by itself and the members of a group together."""

from __future__ import annotations

from raystream.testing.facts import Facts, Run
from raystream.testing.operations import Operation
from raystream.testing.report import Findings


class Consumers:
    """Where every consumer stands, and what every group has been given."""

    def __init__(self, facts: Facts, findings: Findings) -> None:
        self._facts = facts
        self._findings = findings
        self.group_of: dict[str, str] = {}
        """The group of a process, as its last operation that named one said."""
        self._last: dict[str, dict[int, tuple[int, int]]] = {}
        """The last offset that a process was given of a partition, and the operation (-1: where it was to begin)."""
        self._jumps: list[tuple[str, int, int, int, int, int]] = []
        self._given: dict[tuple[str, int], list[Run]] = {}
        """Per group and partition: first offset, last offset, operation."""
        self._sought: set[tuple[str, int]] = set()

    def reassigned(self, operation: Operation) -> None:
        """An assign, revoke, seek or crash: what the process was given last says nothing about what comes next."""
        last = self._last.setdefault(operation.process, {})
        if operation.kind == "crash" or (operation.kind == "revoke" and not operation.partitions):
            last.clear()
        for topic, number in operation.partitions:
            last.pop(self._facts.partition_number(topic, number), None)
        for topic, number, offset in operation.offsets:
            partition = self._facts.partition_number(topic, number)
            last[partition] = (offset - 1, -1)
            if operation.kind == "seek" and operation.process in self.group_of:
                self._sought.add((self.group_of[operation.process], partition))

    def poll(self, number: int, process: str, runs: list[Run]) -> None:
        """Goes on with what a poll gave."""
        last = self._last.setdefault(process, {})
        group = self.group_of.get(process)
        for partition, first, end in runs:
            before = last.get(partition)
            if before is not None and first != before[0] + 1:
                if first > before[0]:
                    self._jumps.append((process, partition, before[0], first, before[1], number))
                else:
                    self._tell_backwards(process, partition, before, first, number)
            last[partition] = (end, number)
            if group is not None:
                given = self._given.setdefault((group, partition), [])
                if given and given[-1][1] + 1 == first:
                    given[-1] = (given[-1][0], end, number)
                else:
                    given.append((first, end, number))

    def _tell_backwards(self, process: str, partition: int, before: tuple[int, int], first: int, number: int) -> None:
        after, earlier = before
        place = self._facts.place(partition, first)
        if earlier < 0:
            sentence = f"{process} was given {place} although it was to begin at {after + 1}"
        else:
            where = "inside one poll" if earlier == number else "by a later poll"
            sentence = f"{process} was given {place} after offset {after}, {where}"
        self._findings.add("nonmonotonic-poll", sentence, (earlier, number))

    def find_skips(self) -> None:
        """Jumps over offsets that the log shows, once the whole history is known."""
        facts = self._facts
        for process, partition, after, before, earlier, number in self._jumps:
            if skipped := facts.skipped(partition, after, before):
                names = ", ".join(repr(facts.values[value]) for value in skipped)
                how = "inside one poll" if earlier == number else "between two polls"
                how = "at its beginning" if earlier < 0 else how
                place = facts.place(partition, before)
                sentence = f"{process} was given {place} after offset {after}, {how}, without {names}"
                shown = [facts.placed[value] for value in skipped]
                self._findings.add("poll-skip", sentence, (earlier, number, *shown))

    def find_group_skips(self) -> None:
        """Gaps in what all members of a group together were given; not where one of them sought."""
        facts = self._facts
        for (group, partition), runs in self._given.items():
            if (group, partition) in self._sought:
                continue
            runs.sort()
            end, earlier = runs[0][1], runs[0][2]
            for first, last, number in runs:
                if first > end + 1 and (skipped := facts.skipped(partition, end, first)):
                    names = ", ".join(repr(facts.values[value]) for value in skipped)
                    place = facts.place(partition, end)
                    sentence = f"no member of group {group!r} was given {names}, between {place} and {first}"
                    shown = [facts.placed[value] for value in skipped]
                    self._findings.add("group-skip", sentence, (earlier, number, *shown))
                if last > end:
                    end, earlier = last, number
