"""Transactions in a small simulated world: the coordinator's decisions and the partitions' memory are the product's,
the network loses, repeats and delays calls, the coordinator dies, and producers of one transactional id meet.

python -m tests.sim.transactions --seeds 1000
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from raystream import batch as b
from raystream import messages as m
from raystream.clock import ManualClock
from raystream.core.coordinator import Coordinator
from raystream.core.records import from_pair, to_pair
from raystream.core.transaction_records import TransactionRecord
from raystream.errors import (
    ConcurrentTransactions,
    FencedProducer,
    InvalidTransactionState,
    OutOfOrderSequence,
    TransactionTimedOut,
)
from raystream.storage.producer_state import Duplicate, ProducerState
from tests.fakes.logs import marker, message

PARTITIONS: Final = 3
STEPS: Final = 400
TIMEOUT_MS: Final = 20_000
TEMPLATE: Final = message([b"x"])[1]


class Lost(Exception):
    """No answer: the call may have been carried out."""


class Wrong(AssertionError):
    """What must never happen."""


class Partition:
    """A log that is published at once."""

    def __init__(self, clock: ManualClock) -> None:
        self.state = ProducerState(clock)
        self.rows: list[tuple[b.BatchHeader, str]] = []
        self._clock = clock
        self._shown: list[str] = []

    def append(self, producer_id: int, epoch: int, sequence: int, value: str) -> None:
        header = dataclasses.replace(
            TEMPLATE,
            producer_id=producer_id,
            producer_epoch=epoch,
            base_sequence=sequence,
            last_offset_delta=0,
            attributes=b.ATTR_TRANSACTIONAL,
        )
        if not isinstance(self.state.check(header), Duplicate):
            self._write(header, value)

    def end(self, producer_id: int, epoch: int, commits: bool) -> None:
        if not self.state.marked(producer_id, epoch):
            self._write(marker(producer_id, epoch, commits=commits)[1], "")

    def _write(self, header: b.BatchHeader, value: str) -> None:
        self.state.record(header, len(self.rows), self._clock.now_ms())
        self.rows.append((header, value))

    def committed(self) -> list[str]:
        """What a reader sees. What was seen before stays as it was."""
        stable = self.state.last_stable_offset(len(self.rows), 0)
        aborted = self.state.aborted.entries
        shown = [
            value
            for offset, (header, value) in enumerate(self.rows[:stable])
            if not header.is_control
            and not any(
                e.producer_id == header.producer_id and e.first_offset <= offset <= e.last_offset for e in aborted
            )
        ]
        if shown[: len(self._shown)] != self._shown:
            raise Wrong(f"a reader has seen {self._shown}, and now {shown}")
        self._shown = shown
        return shown


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.partitions = [Partition(self.clock) for _ in range(PARTITIONS)]
        self.coordinator = Coordinator()
        self.rows: list[Any] = []
        self.late: list[Callable[[], Any]] = []
        self.calm = False
        self.fates: dict[str, str] = {}
        self.written: dict[str, set[str]] = {}
        self.clients = [Client(self, number) for number in range(4)]

    # The network ----------------------------------------------------------------------------------------------------

    def call(self, work: Callable[[], Any]) -> Any:
        if not self.calm:
            if self.rng.random() < 0.2:
                self.late.append(work)
            if self.rng.random() < 0.1:
                raise Lost
        reply = work()
        if not self.calm and self.rng.random() < 0.15:
            raise Lost
        return reply

    def deliver_late(self) -> None:
        if self.late:
            work = self.late.pop(self.rng.randrange(len(self.late)))
            with contextlib.suppress(Lost, *ANSWERS):
                work()

    # The coordinator ------------------------------------------------------------------------------------------------

    def decide(self, operation: Callable[[Coordinator], Any]) -> Any:
        decision = operation(self.coordinator)
        for record in decision.records:
            self.rows.append(to_pair(record))
            self.coordinator.replay(from_pair(*self.rows[-1]), self.clock.monotonic_ms())
        if isinstance(decision.reply, Exception):
            raise decision.reply
        return decision.reply

    def crash_coordinator(self) -> None:
        self.coordinator = Coordinator()
        for pair in self.rows:
            self.coordinator.replay(from_pair(*pair), self.clock.monotonic_ms())

    def write_markers(self) -> None:
        for record in self.coordinator.transactions.prepared():
            try:
                for _, _, number in record.partitions:
                    end = self.partitions[number].end
                    self.call(partial(end, record.producer_id, record.epoch, record.commits))
            except Lost:
                return  # it goes on another time
            self.decide(partial(_complete, record))

    # A run ----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        for _ in range(STEPS):
            self.clock.advance(self.rng.randrange(400))
            self.step()
            for partition in self.partitions:
                self.look(partition)
        self.calm = True
        while self.late:
            self.deliver_late()
        self.clock.advance(2 * TIMEOUT_MS)
        self.decide(lambda state: state.expire(self.clock.monotonic_ms()))
        self.write_markers()
        self.check()

    def step(self) -> None:
        chance = self.rng.random()
        if chance < 0.03:
            self.crash_coordinator()
        elif chance < 0.15:
            self.deliver_late()
        elif chance < 0.35:
            self.write_markers()
        elif chance < 0.4:
            self.decide(lambda state: state.expire(self.clock.monotonic_ms()))
        else:
            self.rng.choice(self.clients).step()

    def look(self, partition: Partition) -> None:
        for value in partition.committed():
            name = value.partition("/")[0]
            if self.fates.get(name) in ("open", "aborted"):
                raise Wrong(f"{value} is seen, and its transaction is {self.fates[name]}")

    def check(self) -> None:
        seen = [value for partition in self.partitions for value in partition.committed()]
        if len(seen) != len(set(seen)):
            raise Wrong("a record is seen twice")
        for name, fate in self.fates.items():
            there = self.written[name] & set(seen)
            if fate in ("aborted", "open") and there:
                raise Wrong(f"{name} is {fate}, and {there} are seen")
            if fate == "committed" and there != self.written[name]:
                raise Wrong(f"{name} is committed, and of {self.written[name]} only {there} are seen")
            if fate == "asked" and there not in (set(), self.written[name]):
                raise Wrong(f"of {name} a part is seen: {there}")
        for partition in self.partitions:
            if partition.state.last_stable_offset(len(partition.rows), 0) != len(partition.rows):
                raise Wrong("a transaction stays open for ever")
        for client in self.clients:
            client.check_position(seen)


def _complete(record: TransactionRecord, state: Coordinator) -> Any:
    return state.transactions.complete(record)


ANSWERS: Final = (
    ConcurrentTransactions,
    FencedProducer,
    InvalidTransactionState,
    OutOfOrderSequence,
    TransactionTimedOut,
)


class Client:
    """A producer with a transactional id, which does one call at a time until it is answered."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._rng = world.rng
        self._id = f"tx{number % 3}"  # the first and the last share one
        self._rests = 0
        self._group = f"g{number}"
        self._number = number
        self._lives = 0
        self._count = 0
        self._begin_life()

    def _begin_life(self) -> None:
        self._lives += 1
        self._do: Callable[[], None] = self._init
        self._sequences: dict[int, int] = {}

    def step(self) -> None:
        if self._rests:
            self._rests -= 1
            return
        if self._rng.random() < 0.01:
            self._begin_life()  # killed, and started again
            return
        try:
            self._do()
        except (Lost, ConcurrentTransactions):
            pass
        except FencedProducer:
            if self._do == self._write:
                self._do = self._abort
            else:
                self._begin_life()
                self._rests = self._rng.randrange(60)
        except TransactionTimedOut:
            self._world.fates[self._name] = "aborted"
            self._do = self._abort

    def _init(self) -> None:
        request = m.InitProducerRequest(
            transactional_id=self._id,
            instance=f"{self._number}.{self._lives}",
            transaction_timeout_ms=TIMEOUT_MS,
        )
        reply = self._world.call(lambda: self._world.decide(lambda state: state.init_producer(request)))
        self._goes_on(reply)

    def _goes_on(self, reply: Any) -> None:
        self._who = (reply.producer_id, reply.producer_epoch)
        self._sequences = {}
        self._count += 1
        self._name = f"{self._number}.{self._lives}.{self._count}"
        self._left = self._rng.randrange(1, 5)
        self._world.written[self._name] = set()
        self._world.fates[self._name] = "open"
        self._told: set[int] = set()
        self._pick()

    def _pick(self) -> None:
        self._partition = self._rng.randrange(PARTITIONS)
        self._value = f"{self._name}/{self._left}"
        self._do = self._write if self._partition in self._told else self._add

    def _add(self) -> None:
        request = m.AddPartitionsRequest(
            transactional_id=self._id,
            producer_id=self._who[0],
            producer_epoch=self._who[1],
            partitions=(("out", "id", self._partition),),
        )
        self._world.call(lambda: self._world.decide(lambda state: state.transactions.add_partitions(request)))
        self._told.add(self._partition)
        self._do = self._write

    def _write(self) -> None:
        partition, value, who = self._world.partitions[self._partition], self._value, self._who
        sequence = self._sequences.get(self._partition, 0)
        self._world.call(lambda: partition.append(*who, sequence, value))
        self._world.written[self._name].add(value)
        self._sequences[self._partition] = sequence + 1
        self._left -= 1
        if self._left:
            self._pick()
        else:
            self._do = self._commit if self._rng.random() < 0.7 else self._abort

    def _commit(self) -> None:
        self._world.fates[self._name] = "asked"
        self._end(commit=True)

    def _abort(self) -> None:
        if self._world.fates[self._name] == "open":
            self._world.fates[self._name] = "aborted"
        self._end(commit=False)

    def _end(self, *, commit: bool) -> None:
        position = m.CommittedOffset("in", 0, self._count)
        request = m.EndTransactionRequest(
            transactional_id=self._id,
            producer_id=self._who[0],
            producer_epoch=self._who[1],
            commit=commit,
            offsets=(m.CommitRequest(group=self._group, offsets=(position,)),),
        )
        reply = self._world.call(lambda: self._world.decide(lambda state: state.end_transaction(request)))
        if reply.complete:
            if commit:
                self._world.fates[self._name] = "committed"
            self._goes_on(reply)

    def check_position(self, seen: list[str]) -> None:
        """The group stands where the last transaction that counts has put it."""
        counted = {int(value.partition("/")[0].rpartition(".")[2]) for value in seen if self._is_mine(value)}
        found = self._world.coordinator.fetch_offsets(m.GroupRequest(group=self._group)).reply
        if max(counted, default=None) != (found[0].offset if found else None):
            raise Wrong(f"{self._group} stands at {found}, and the last of its transactions that counts is {counted}")

    def _is_mine(self, value: str) -> bool:
        return value.startswith(f"{self._number}.")


def run(seed: int) -> World:
    """One world. Raises Wrong."""
    world = World(seed)
    world.run()
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--seed", type=int, help="this one alone")
    options = parser.parse_args()
    committed = aborted = 0
    for seed in [options.seed] if options.seed is not None else range(options.seeds):
        try:
            fates = list(run(seed).fates.values())
        except Wrong as error:
            raise SystemExit(f"python -m tests.sim.transactions --seed {seed}: {error}") from error
        committed += fates.count("committed")
        aborted += fates.count("aborted")
    print(f"{committed:,} transactions committed, {aborted:,} aborted, nothing wrong")


if __name__ == "__main__":
    main()
