"""Histories written by hand, an operation a call, and correct ones made at random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from raystream.testing.history import Operation, Report, check
from raystream.testing.operations import Kind, Type, Value

T = "t"

Read = tuple[int, Value] | tuple[int, int, Value]
"""(offset, value) of partition 0, or (partition, offset, value)."""


class Script:
    """Operations in order, each a nanosecond after the one before."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def add(self, process: str, type: Type, kind: Kind, **fields: Any) -> Script:
        self.operations.append(Operation(len(self.operations), process, type, kind, **fields))
        return self

    def call(self, process: str, type: Type, kind: Kind, **fields: Any) -> Script:
        """Invoked and completed."""
        self.add(process, "invoke", kind, **fields)
        return self.add(process, type, kind, **fields)

    def send(
        self, value: Value, offset: int | None, partition: int = 0, *, by: str = "p", type: Type = "ok", **more: Any
    ) -> Script:
        self.add(by, "invoke", "send", topic=T, value=value, **more)
        return self.add(by, type, "send", topic=T, value=value, partition=partition, offset=offset, **more)

    def sends(self, *values: str) -> Script:
        """Acknowledged at the next offsets of partition 0, from 0 on."""
        for offset, value in enumerate(values):
            self.send(value, offset)
        return self

    def poll(self, *records: Read, by: str = "c", **more: Any) -> Script:
        return self.call(by, "ok", "poll", records=[(T, *(r if len(r) == 3 else (0, *r))) for r in records], **more)

    def drain(self, *records: Read, starts: Sequence[int] = (0,), by: str = "r") -> Script:
        self.add(by, "invoke", "drain")
        self.poll(*records, by=by)
        return self.add(by, "ok", "drain", offsets=[(T, p, start) for p, start in enumerate(starts)])

    def deliver(self, *offsets: int, by: str = "w", delivery: int = 1) -> Script:
        """A queue gives records of partition 0."""
        return self.add(by, "ok", "deliver", group="q", records=[(T, 0, o, f"{o}") for o in offsets], epoch=delivery)

    def settle(
        self, *offsets: int, word: str = "accept", by: str = "w", delivery: int = 1, type: Type = "ok"
    ) -> Script:
        records = [(T, 0, o, f"{o}") for o in offsets]
        return self.call(by, type, "settle", group="q", records=records, epoch=delivery, outcome=word)

    def bury(self, *offsets: int) -> Script:
        return self.add("r", "ok", "buried", group="q", records=[(T, 0, o, f"{o}") for o in offsets])

    def settled(self, offset: int) -> Script:
        return self.add("r", "ok", "settled", group="q", offsets=[(T, 0, offset)])

    def begin(self, txn: str, *, by: str = "p", id: str = "i") -> Script:
        return self.call(by, "ok", "begin", txn=txn, transactional_id=id)

    def end(self, txn: str, outcome: str = "commit", *, type: Type = "ok", by: str = "p") -> Script:
        return self.call(by, type, "end", txn=txn, outcome=outcome)

    def check(self, **options: Any) -> Report:
        return check(self.operations, **options)


class Clients:
    """A correct log with producers, consumers and one group, stepped at random; every outcome is one that can be."""

    def __init__(self, chance: random.Random, steps: int, *, partitions: int = 2) -> None:
        self.script = Script()
        self._chance = chance
        self._logs: list[list[Value]] = [[] for _ in range(partitions)]
        self._sequence = 0
        self._positions = {f"c{n}": [0] * partitions for n in range(2)}
        self._group = [0] * partitions
        self._owner = "m0"
        self._epoch = 1
        self._given = [0] * partitions
        self.script.add("m0", "ok", "assign", partitions=self._all(), group="g", epoch=1)
        for _ in range(steps):
            chance.choice([self._send, self._send, self._poll, self._member_poll, self._commit, self._move])()
        self._drain()

    def _all(self) -> list[tuple[str, int]]:
        return [(T, partition) for partition in range(len(self._logs))]

    def _send(self) -> None:
        value = f"v{self._sequence}"
        self._sequence += 1
        process = f"p{self._sequence % 2}"
        partition = self._chance.randrange(len(self._logs))
        log = self._logs[partition]
        kind = self._chance.choices(["ok", "fail", "info in", "info out", "silent"], [80, 5, 5, 5, 5])[0]
        self.script.add(process, "invoke", "send", topic=T, value=value)
        if kind == "ok":
            self.script.add(process, "ok", "send", topic=T, value=value, partition=partition, offset=len(log))
        elif kind == "fail":
            self.script.add(process, "fail", "send", topic=T, value=value)
        elif kind != "silent":
            self.script.add(process, "info", "send", topic=T, value=value)
        if kind in ("ok", "info in", "silent"):
            log.append(value)

    def _take(self, process: str, positions: list[int], partition: int, many: int, **more: Any) -> None:
        log = self._logs[partition]
        begin = positions[partition]
        part = log[begin : begin + many]
        positions[partition] += len(part)
        records = [(partition, begin + n, value) for n, value in enumerate(part)]
        self.script.poll(*records, by=process, **more)

    def _poll(self) -> None:
        process = self._chance.choice(sorted(self._positions))
        partition = self._chance.randrange(len(self._logs))
        if self._chance.random() < 0.1:
            offset = self._chance.randint(0, len(self._logs[partition]))
            self.script.call(process, "ok", "seek", offsets=[(T, partition, offset)])
            self._positions[process][partition] = offset
        self._take(process, self._positions[process], partition, self._chance.randint(0, 4))

    def _member_poll(self) -> None:
        partition = self._chance.randrange(len(self._logs))
        self._take(self._owner, self._given, partition, self._chance.randint(1, 4), group="g")

    def _commit(self) -> None:
        partition = self._chance.randrange(len(self._logs))
        offsets = [(T, partition, self._given[partition])]
        outcome: Type = self._chance.choices(["ok", "info"], [4, 1])[0]  # type: ignore[assignment]
        self.script.call(self._owner, outcome, "commit", group="g", offsets=offsets)
        if outcome == "ok" or self._chance.random() < 0.5:
            self._group[partition] = self._given[partition]
        rows = [(T, p, offset) for p, offset in enumerate(self._group)]
        self.script.call(self._owner, "ok", "committed", group="g", offsets=rows)

    def _move(self) -> None:
        """All partitions go to the other member, which begins at the committed positions."""
        self.script.add(self._owner, "ok", "revoke", partitions=self._all())
        self._owner = "m1" if self._owner == "m0" else "m0"
        self._epoch += 1
        self._given = list(self._group)
        self.script.add(self._owner, "ok", "assign", partitions=self._all(), group="g", epoch=self._epoch)

    def _drain(self) -> None:
        records = [(p, offset, value) for p, log in enumerate(self._logs) for offset, value in enumerate(log)]
        self.script.drain(*records, starts=[0] * len(self._logs))
