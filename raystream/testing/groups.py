"""What the coordinator of groups promises: committed positions do not move back, and a partition has one owner."""

from __future__ import annotations

from bisect import bisect_left

from raystream.testing.operations import Operation
from raystream.testing.report import Findings


class Groups:
    """Positions and owners of every group, as the operations so far show them.

    A position counts as known from the completion of the operation that committed or read it, and binds operations that
    begin after that: two commits that overlap may take effect in either order.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._known: dict[tuple[str, str, int], tuple[list[int], list[int]]] = {}
        """Per group and partition: operations at which the highest known position rose, and what it rose to."""
        self._begun: dict[tuple[str, str], int] = {}
        self._in_transaction: dict[str, list[tuple[str, Operation]]] = {}
        """Commits by the transaction that they belong to, each with its group."""
        self._ends: dict[str, int] = {}
        self._owners: dict[tuple[str, int, str, int], tuple[str, int]] = {}

    def position(self, number: int, operation: Operation, group: str | None) -> None:
        """A commit, or a read of committed positions. A commit in a transaction counts from its end on."""
        if operation.type == "invoke":
            self._begun[operation.process, operation.kind] = number
            return
        begun = self._begun.pop((operation.process, operation.kind), number)
        if operation.type != "ok" or group is None:
            return
        if operation.txn is not None:
            self._in_transaction.setdefault(operation.txn, []).append((group, operation))
            return
        self._moved(begun, number, operation, group)

    def ended(self, number: int, operation: Operation) -> None:
        """A transaction's end was asked for, or is answered: with a commit its positions move."""
        name = operation.txn or ""
        if operation.outcome != "commit":
            return
        if operation.type == "invoke":
            self._ends.setdefault(name, number)
        elif operation.type == "ok":
            for group, commit in self._in_transaction.pop(name, []):
                self._moved(self._ends.get(name, number), number, commit, group)

    def highest(self, group: str, topic: str, partition: int) -> tuple[int, int] | None:
        """The highest position known of a partition, and the operation from which on it was known."""
        numbers, offsets = self._known.get((group, topic, partition), ([], []))
        return (offsets[-1], numbers[-1]) if offsets else None

    def _moved(self, begun: int, number: int, operation: Operation, group: str) -> None:
        for topic, partition, offset in operation.offsets:
            numbers, offsets = self._known.setdefault((group, topic, partition), ([], []))
            before = bisect_left(numbers, begun) - 1
            if before >= 0 and offsets[before] > offset:
                did = "committed" if operation.kind == "commit" else "read the position"
                sentence = (
                    f"{operation.process} {did} {offset} of {topic}-{partition} in group {group!r}, "
                    f"which was at {offsets[before]} before"
                )
                self._findings.add("position-moved-back", sentence, (numbers[before], begun, number))
            if not offsets or offset > offsets[-1]:
                numbers.append(number)
                offsets.append(offset)

    def sought(self, operation: Operation, group: str | None) -> None:
        """A member went to another position on purpose: the group's may move back."""
        if group is not None:
            for topic, partition, _ in operation.offsets:
                self._known.pop((group, topic, partition), None)

    def assigned(self, number: int, operation: Operation, group: str | None) -> None:
        """A member was given partitions. Counts where the operation carries the epoch."""
        if group is None or operation.epoch is None:
            return
        given = [*operation.partitions, *((topic, partition) for topic, partition, _ in operation.offsets)]
        for topic, partition in given:
            place = (group, operation.epoch, topic, partition)
            owner, since = self._owners.setdefault(place, (operation.process, number))
            if owner != operation.process:
                sentence = (
                    f"{topic}-{partition} was assigned to {owner} and to {operation.process} "
                    f"in epoch {operation.epoch} of group {group!r}"
                )
                self._findings.add("two-owners", sentence, (since, number))
