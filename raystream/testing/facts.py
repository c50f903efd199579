"""What a history says about the log: where each value stands, who sent it, who read it, what a final read covered.

Values, partitions and processes are numbered as they come up, and what is known of a value lies in arrays under its
number. Operations are named by their place in the history; -1 stands for one that was never recorded.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from raystream.errors import InvalidArgument
from raystream.testing.operations import Operation, Value
from raystream.testing.report import Findings
from raystream.testing.transactions import Fate, Transactions

UNSETTLED: Final = 0
ACKED: Final = 1
FAILED: Final = 2

DRAINS_MAX: Final = 63

Run = tuple[int, int, int]
"""Consecutive records of one poll: partition, first offset, last offset."""


@dataclass(slots=True)
class Drain:
    """A final read. `starts` says where it began in each partition, once it has completed."""

    bit: int
    begun: int
    starts: dict[int, int] = field(default_factory=dict)
    high: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The last offset that it read of each partition, and the operation."""


class Facts:
    """The log as the operations so far show it. Finds inconsistent offsets and duplicates on the way."""

    def __init__(self, findings: Findings, transactions: Transactions) -> None:
        self._findings = findings
        self._transactions = transactions
        self.values: list[Value] = []
        self._values: dict[Value, int] = {}
        self.partitions: list[tuple[str, int]] = []
        self._partitions: dict[tuple[str, int], int] = {}
        self.at: list[dict[int, int]] = []
        """The value at each offset, per partition."""
        self.high: dict[int, tuple[int, int]] = {}
        """The highest offset that anybody read of each partition, and the operation."""
        self.topics: set[str] = set()
        """Where anything was sent to."""
        self.unplaced: dict[int, str] = {}
        """The topics of acknowledged values of which nobody said where they stand."""
        self.sent = array("q")
        self.settled = array("q")
        """The operation that completed the send."""
        self.outcome = bytearray()
        self.producer = array("q")
        self.partition = array("q")
        self.offset = array("q")
        self.placed = array("q")
        """The operation that first told partition and offset."""
        self.read = array("q")
        """The operation that first read it."""
        self.drained = array("Q")
        """The final reads that found it, a bit each."""
        self._producers: dict[str, int] = {}
        self._producer_count = 0
        self._drains: dict[str, Drain] = {}
        self._drain_count = 0
        self.complete: dict[int, Drain] = {}
        """The last final read of each partition that completed."""
        self._told: set[tuple[int, int, int]] = set()
        self._visible: dict[int, list[int]] = {}

    # Numbers --------------------------------------------------------------------------------------------------------

    def value_number(self, value: Value) -> int:
        """The value's number, a new one where it comes up for the first time."""
        found = self._values.get(value)
        if found is not None:
            return found
        number = self._values[value] = len(self.values)
        self.values.append(value)
        for column in (self.sent, self.settled, self.producer, self.partition, self.offset, self.placed, self.read):
            column.append(-1)
        self.outcome.append(UNSETTLED)
        self.drained.append(0)
        return number

    def partition_number(self, topic: str, partition: int) -> int:
        """The partition's number, likewise."""
        found = self._partitions.get((topic, partition))
        if found is None:
            found = self._partitions[topic, partition] = len(self.partitions)
            self.partitions.append((topic, partition))
            self.at.append({})
        return found

    def place(self, partition: int, offset: int) -> str:
        """In words."""
        topic, number = self.partitions[partition]
        return f"{topic}-{number} offset {offset}"

    # Operations -----------------------------------------------------------------------------------------------------

    def send(self, number: int, operation: Operation) -> None:
        """A send was invoked or completed. Raises InvalidArgument where a value is sent a second time."""
        topic, sent = operation.topic, operation.value
        if topic is None or sent is None:
            raise InvalidArgument("a send needs topic and value")
        value = self.value_number(sent)
        if self.sent[value] < 0 or operation.type == "invoke":
            if self.sent[value] >= 0:
                raise InvalidArgument(f"the value {sent!r} was sent before: values have to be unique")
            self.topics.add(topic)
            self.sent[value] = number
            self.producer[value] = self._producer(operation.process)
            if operation.txn is not None:
                self._transactions.wrote(operation.txn, value)
            if operation.type == "invoke":
                return
        self.settled[value] = number
        if operation.type == "fail":
            self.outcome[value] = FAILED
        elif operation.type == "ok":
            self.outcome[value] = ACKED
            if operation.partition is not None and operation.offset is not None and operation.offset >= 0:
                partition = self.partition_number(topic, operation.partition)
                if self.at[partition].setdefault(operation.offset, value) != value or self.placed[value] >= 0:
                    self._place_again(number, partition, operation.offset, value)
                else:
                    self._place(number, partition, operation.offset, value)
            else:
                self.unplaced[value] = topic

    def _producer(self, process: str) -> int:
        found = self._producers.get(process)
        if found is None:
            found = self._producers[process] = self._producer_count
            self._producer_count += 1
        return found

    def crash(self, process: str) -> None:
        """What the process sends from here on follows nothing that it sent before."""
        self._producers.pop(process, None)
        self._drains.pop(process, None)

    def poll(self, number: int, operation: Operation) -> list[Run]:
        """What a poll gave, as runs of consecutive offsets in the order in which it gave them."""
        drain = self._drains.get(operation.process)
        bit = 0 if drain is None else drain.bit
        committed = operation.isolation is None
        values, partitions, placed, read, drained = (
            self._values,
            self._partitions,
            self.placed,
            self.read,
            self.drained,
        )
        transactional = self._transactions.of_value
        runs: list[Run] = []
        topic, number_in_topic, current, first, last = None, -1, -1, 0, -2
        for record_topic, record_partition, offset, what in operation.records:
            if offset != last + 1 or record_partition != number_in_topic or record_topic != topic:
                if current >= 0:
                    runs.append((current, first, last))
                topic, number_in_topic, first = record_topic, record_partition, offset
                found = partitions.get((topic, number_in_topic))
                current = self.partition_number(topic, number_in_topic) if found is None else found
                at = self.at[current]
            last = offset
            known = values.get(what)
            value = self.value_number(what) if known is None else known
            if at.setdefault(offset, value) != value or placed[value] >= 0:
                if self.offset[value] != offset or self.partition[value] != current or at[offset] != value:
                    self._place_again(number, current, offset, value)
            else:
                self._place(number, current, offset, value)
            if read[value] < 0 and committed:
                read[value] = number
            if bit:
                drained[value] |= bit
            if transactional and committed and value in transactional:
                self._transactions.read(number, operation.txn, value)
        if current >= 0:
            runs.append((current, first, last))
        if committed:
            self._raise_high(number, runs, self.high)
        if drain is not None:
            self._raise_high(number, runs, drain.high)
        return runs

    def _raise_high(self, number: int, runs: list[Run], high: dict[int, tuple[int, int]]) -> None:
        for partition, _, last in runs:
            if partition not in high or high[partition][0] < last:
                high[partition] = (last, number)

    def _place(self, number: int, partition: int, offset: int, value: int) -> None:
        self.partition[value] = partition
        self.offset[value] = offset
        self.placed[value] = number

    def _place_again(self, number: int, partition: int, offset: int, value: int) -> None:
        """The offset holds another value, or the value stood elsewhere, or all is as it was known."""
        other = self.at[partition][offset]
        first = self.placed[value] < 0
        moved = not first and (self.partition[value], self.offset[value]) != (partition, offset)
        told = (partition, offset, value)
        if told not in self._told and (other != value or moved):
            self._told.add(told)
            name = self.values[value]
            if other != value:
                sentence = f"{self.place(partition, offset)} holds {self.values[other]!r} and {name!r}"
                self._findings.add("inconsistent-offsets", sentence, (self.placed[other], number))
            if moved:
                before = self.place(self.partition[value], self.offset[value])
                sentence = f"{name!r} stands at {before} and at {self.place(partition, offset)}"
                self._findings.add("duplicate", sentence, (self.placed[value], number))
        if first:
            self._place(number, partition, offset, value)

    def drain(self, number: int, operation: Operation) -> None:
        """A final read begins or ends; the polls of its process between are what it read."""
        process = operation.process
        if operation.type == "invoke":
            if self._drain_count == DRAINS_MAX:
                raise InvalidArgument(f"a history holds at most {DRAINS_MAX} final reads")
            self._drains[process] = Drain(1 << self._drain_count, number)
            self._drain_count += 1
            return
        drain = self._drains.pop(process, None)
        if drain is None:
            raise InvalidArgument(f"{process} ends a final read that it did not begin")
        if operation.type == "ok":
            for topic, partition, start in operation.offsets:
                found = self.partition_number(topic, partition)
                drain.starts[found] = start
                self.complete[found] = drain

    # What follows ---------------------------------------------------------------------------------------------------

    def fate(self, value: int) -> Fate:
        """What became of the value's transaction; without one it is committed."""
        transaction = self._transactions.of_value.get(value)
        return Fate.COMMITTED if transaction is None else self._transactions.fate(transaction)

    def transaction(self, value: int) -> tuple[str, int]:
        """The name of the value's transaction, and the operation that settled its fate."""
        number = self._transactions.of_value[value]
        return self._transactions.name(number), self._transactions.ended(number)

    def withdrawn(self, value: int) -> bool:
        """Whether the log must not show it."""
        return self.outcome[value] == FAILED or self.fate(value) is Fate.ABORTED

    def known_since(self, value: int) -> int:
        """The operation from which on a final read has to find it, where it is promised or was read."""
        since = self.placed[value] if self.placed[value] >= 0 else self.settled[value]
        if value in self._transactions.of_value:
            ended = self.transaction(value)[1]
            return max(since, ended if ended >= 0 else self.read[value])
        return since

    def acked(self, value: int) -> bool:
        """Whether its send was acknowledged."""
        return self.outcome[value] == ACKED

    def shown(self, value: int) -> bool:
        """Whether the log showed it, or must."""
        return self.promised(value) or (self.read[value] >= 0 and not self.withdrawn(value))

    def promised(self, value: int) -> bool:
        """Whether the log must show it: acknowledged, and committed where it belongs to a transaction."""
        return self.outcome[value] == ACKED and self.fate(value) is Fate.COMMITTED

    def skipped(self, partition: int, after: int, before: int) -> list[int]:
        """Up to three values that the log shows between two offsets."""
        visible = self._visible.get(partition)
        at = self.at[partition]
        if visible is None:
            visible = sorted(offset for offset, value in at.items() if self.shown(value))
            self._visible[partition] = visible
        begin = bisect_left(visible, after + 1)
        return [at[offset] for offset in visible[begin : begin + 3] if offset < before]
