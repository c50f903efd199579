"""What became of every value: lost, unseen, read though withdrawn or never sent, out of its sender's order."""

from __future__ import annotations

from raystream.testing.facts import ACKED, FAILED, Drain, Facts
from raystream.testing.report import Findings


def check_writes(facts: Facts, findings: Findings) -> None:
    """Goes through all values in the order in which they were sent."""
    last_sent: dict[tuple[int, int], int] = {}
    for value in range(len(facts.values)):
        read = facts.read[value] >= 0
        if read:
            _check_read(facts, findings, value)
        if facts.partition[value] >= 0 and facts.sent[value] >= 0:
            _check_order(facts, findings, value, last_sent)
        if read or facts.outcome[value] == ACKED:
            _check_presence(facts, findings, value)


def note_what_is_unchecked(facts: Facts, findings: Findings) -> None:
    """Without a final read nobody can say whether the tail is there."""
    undrained = [
        f"{topic}-{number}"
        for partition, (topic, number) in enumerate(facts.partitions)
        if partition not in facts.complete and topic in facts.topics
    ]
    if undrained:
        more = f" and {len(undrained) - 5} more" if len(undrained) > 5 else ""
        findings.notes.append(
            f"no final read of {', '.join(undrained[:5])}{more} completed: a lost tail would not be found there"
        )


def _check_read(facts: Facts, findings: Findings, value: int) -> None:
    name, sent, read = facts.values[value], facts.sent[value], facts.read[value]
    if facts.outcome[value] == FAILED:
        findings.add("aborted-read", f"{name!r} was read though its send failed", (sent, facts.settled[value], read))
    elif facts.withdrawn(value):
        transaction, ended = facts.transaction(value)
        sentence = f"{name!r} was read though its transaction {transaction!r} was aborted"
        findings.add("aborted-read", sentence, (sent, ended, read))
    elif sent < 0 and facts.partitions[facts.partition[value]][0] in facts.topics:
        place = facts.place(facts.partition[value], facts.offset[value])
        findings.add("unwritten-read", f"{name!r} was read at {place} and never sent", (read,))


def _check_order(facts: Facts, findings: Findings, value: int, last_sent: dict[tuple[int, int], int]) -> None:
    lane = (facts.producer[value], facts.partition[value])
    before = last_sent.get(lane)
    if before is not None and facts.offset[before] >= facts.offset[value]:
        place = facts.place(facts.partition[value], facts.offset[value])
        sentence = (
            f"{facts.values[value]!r} was sent after {facts.values[before]!r} by the same producer and stands at "
            f"{place}, before offset {facts.offset[before]}"
        )
        numbers = (facts.sent[before], facts.placed[before], facts.sent[value], facts.placed[value])
        findings.add("nonmonotonic-send", sentence, numbers)
    last_sent[lane] = value


def _check_presence(facts: Facts, findings: Findings, value: int) -> None:
    partition, offset = facts.partition[value], facts.offset[value]
    drain = facts.complete.get(partition)
    if drain is not None:
        if not facts.drained[value] & drain.bit:
            _check_drained(facts, findings, value, drain)
    elif facts.read[value] < 0 and partition >= 0 and partition in facts.high and facts.promised(value):
        high, at = facts.high[partition]
        if offset < high:
            _lost(facts, findings, value, high, at)
    elif value in facts.unplaced and partition < 0 and facts.promised(value):
        drains = [d for p, d in facts.complete.items() if facts.partitions[p][0] == facts.unplaced[value]]
        if drains and all(facts.known_since(value) < drain.begun for drain in drains):
            _unseen(facts, findings, value, drains[-1])


def _check_drained(facts: Facts, findings: Findings, value: int, drain: Drain) -> None:
    """The final read of its partition did not find the value."""
    if not facts.shown(value):
        return
    partition, offset = facts.partition[value], facts.offset[value]
    if offset < drain.starts[partition]:
        return
    high, at = drain.high.get(partition, (-1, -1))
    if offset <= high:
        _lost(facts, findings, value, high, at)
    elif facts.known_since(value) < drain.begun:
        _unseen(facts, findings, value, drain)


def _lost(facts: Facts, findings: Findings, value: int, high: int, at: int) -> None:
    place = facts.place(facts.partition[value], facts.offset[value])
    known = f"{facts.values[value]!r} was {_how_known(facts, value)} at {place}"
    sentence = f"{known} and is absent, though offset {high} was read"
    findings.add("lost-write", sentence, (facts.sent[value], facts.settled[value], facts.placed[value], at))


def _unseen(facts: Facts, findings: Findings, value: int, drain: Drain) -> None:
    where = "" if facts.partition[value] < 0 else f" at {facts.place(facts.partition[value], facts.offset[value])}"
    sentence = f"{facts.values[value]!r} was {_how_known(facts, value)}{where} and the final read ended without it"
    numbers = (facts.sent[value], facts.settled[value], facts.placed[value], drain.begun)
    findings.add("unseen", sentence, numbers)


def _how_known(facts: Facts, value: int) -> str:
    return "acknowledged" if facts.outcome[value] == ACKED else "read"
