"""Correct histories made at random have no anomaly, and one that was spoilt is always found out."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raystream.testing.history import Operation, check
from tests.unit.testing.script import Clients, T

seeds = st.integers(0, 2**32)


@settings(max_examples=150, deadline=None)
@given(seeds, st.integers(0, 120))
def test_a_correct_history_has_no_anomaly(seed: int, steps: int) -> None:
    report = Clients(random.Random(seed), steps).script.check()
    assert report.ok, report


Spoil = Callable[[list[Operation], random.Random], list[Operation] | None]


def _reads(operations: list[Operation], process: str, least: int = 1) -> list[int]:
    return [
        place
        for place, operation in enumerate(operations)
        if operation.kind == "poll" and operation.process == process and len(operation.records) >= least
    ]


def _acknowledged(operations: list[Operation]) -> set[object]:
    return {operation.value for operation in operations if operation.kind == "send" and operation.type == "ok"}


def _with(operations: list[Operation], place: int, **changes: object) -> list[Operation]:
    changed = operations[place]._replace(**changes)  # type: ignore[arg-type]
    return [*operations[:place], changed, *operations[place + 1 :]]


def _last_read(operations: list[Operation], chance: random.Random, pick: str = "one") -> tuple[int, list[int]] | None:
    """The final read, and the places of acknowledged records in it."""
    known = _acknowledged(operations)
    for place in _reads(operations, "r"):
        if operations[place].type == "ok":
            records = operations[place].records
            places = [n for n, record in enumerate(records) if record[3] in known]
            chance.shuffle(places)
            return (place, places) if places else None
    return None


def swap_two_values(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    found = _last_read(operations, chance)
    if found is None or len(found[1]) < 2:
        return None
    place, (first, second, *_) = found
    records = list(operations[place].records)
    one, other = records[first], records[second]
    records[first], records[second] = (*one[:3], other[3]), (*other[:3], one[3])
    return _with(operations, place, records=records)


def drop_an_acknowledged_record(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    found = _last_read(operations, chance)
    if found is None:
        return None
    place, (gone, *_) = found
    records = list(operations[place].records)
    del records[gone]
    return _with(operations, place, records=records)


def repeat_a_record(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    found = _last_read(operations, chance)
    if found is None:
        return None
    place, (again, *_) = found
    records = list(operations[place].records)
    topic, partition, _, value = records[again]
    end = max(offset for _, p, offset, _ in records if p == partition) + 1
    return _with(operations, place, records=[*records, (topic, partition, end, value)])


def read_a_failed_value(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    failed = [op.value for op in operations if op.kind == "send" and op.type == "fail"]
    found = _last_read(operations, chance)
    if not failed or found is None:
        return None
    records = list(operations[found[0]].records)
    partition = records[-1][1]
    end = max(offset for _, p, offset, _ in records if p == partition) + 1
    return _with(operations, found[0], records=[*records, (T, partition, end, chance.choice(failed))])


def move_a_read_offset_back(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    found = _last_read(operations, chance)
    if found is None:
        return None
    place, (moved, *_) = found
    records = list(operations[place].records)
    topic, partition, offset, value = records[moved]
    if offset == 0:
        return None
    records[moved] = (topic, partition, offset - 1, value)
    return _with(operations, place, records=records)


def move_an_acknowledged_offset(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    sends = [n for n, op in enumerate(operations) if op.kind == "send" and op.type == "ok"]
    if not sends:
        return None
    place = chance.choice(sends)
    return _with(operations, place, offset=(operations[place].offset or 0) + 1)


def acknowledge_what_never_arrived(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    end = 1 + max((op.offset for op in operations if op.offset is not None), default=-1)
    begin = [Operation(0, "p9", "invoke", "send", topic=T, value="lost")]
    ends = [Operation(0, "p9", "ok", "send", topic=T, value="lost", partition=0, offset=end)]
    return [*begin, *ends, *operations]


def give_a_poll_again(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    places = [n for c in ("c0", "c1", "m0", "m1") for n in _reads(operations, c) if operations[n].type == "ok"]
    if not places:
        return None
    place = chance.choice(places)
    return [*operations[: place + 1], operations[place], *operations[place + 1 :]]


def leave_out_a_poll(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    """The middle one of three polls of a consumer that go on from each other."""
    for process in ("c0", "c1"):
        own = [
            n
            for n, op in enumerate(operations)
            if op.process == process and op.type == "ok" and (op.kind == "seek" or op.records)
        ]
        for before, middle, after in zip(own, own[1:], own[2:], strict=False):
            chain = [operations[n] for n in (before, middle, after)]
            if all(op.kind == "poll" for op in chain) and len({op.records[0][1] for op in chain}) == 1:
                return [*operations[:middle], *operations[middle + 1 :]]
    return None


def forget_a_commit(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    places = [
        n
        for n, op in enumerate(operations)
        if op.kind == "commit" and op.type == "ok" and op.offsets[0][2] > 0 and operations[n + 1].kind == "committed"
    ]
    if not places:
        return None
    place = chance.choice(places)
    (topic, partition, offset) = operations[place].offsets[0]
    return _with(operations, place + 2, offsets=[(topic, partition, offset - 1)])


def assign_to_both(operations: list[Operation], chance: random.Random) -> list[Operation] | None:
    place = chance.choice([n for n, op in enumerate(operations) if op.kind == "assign"])
    twin = operations[place]._replace(process="m9")
    return [*operations[: place + 1], twin, *operations[place + 1 :]]


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (swap_two_values, {"inconsistent-offsets", "duplicate"}),
        (drop_an_acknowledged_record, {"lost-write", "unseen"}),
        (repeat_a_record, {"duplicate"}),
        (read_a_failed_value, {"aborted-read"}),
        (move_a_read_offset_back, {"inconsistent-offsets"}),
        (move_an_acknowledged_offset, {"duplicate"}),
        (acknowledge_what_never_arrived, {"lost-write", "unseen"}),
        (give_a_poll_again, {"nonmonotonic-poll"}),
        (leave_out_a_poll, {"poll-skip"}),
        (forget_a_commit, {"position-moved-back"}),
        (assign_to_both, {"two-owners"}),
    ],
)
def test_a_spoilt_history_is_always_found(spoil: Spoil, names: set[str]) -> None:
    tried = 0

    @settings(max_examples=40, deadline=None)
    @given(seeds, st.integers(60, 120))
    def run(seed: int, steps: int) -> None:
        nonlocal tried
        chance = random.Random(seed)
        operations = spoil(Clients(chance, steps).script.operations, chance)
        assume(operations is not None)
        assert operations is not None
        tried += 1
        report = check([op._replace(time=n) for n, op in enumerate(operations)])
        assert names & report.counts.keys(), report

    run()
    assert tried >= 20
