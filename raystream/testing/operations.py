"""One operation of a history, its line in a file, and files read back in order of time.

A client's call is two operations, `invoke` before it and `ok`, `fail` or `info` after it, the completion carrying
everything the invocation said. `fail` says that it surely did not happen; `info` that nobody knows, so a timeout is
`info`, never `fail`. An invocation without a completion counts as `info`.

| kind | what it carries |
|---|---|
| send | topic, key, value, partition (where known); `ok`: partition, offset |
| poll | `ok`: records |
| assign | partitions given to a consumer besides those it has, or `offsets` with where it begins; group, epoch |
| revoke | partitions taken from it |
| seek | offsets where it goes on |
| commit | group, offsets |
| committed | group; `ok`: offsets |
| drain | a read of everything there is, by the polls of the same process in between; `ok`: offsets where it began |
| deliver | what a queue gave a member: group, records, and as epoch which delivery it is |
| settle | what a member said becomes of records: group, records, epoch as it was delivered, outcome `accept` … |
| buried | copies in a dead-letter topic: group, and records as they stand in their own topic |
| settled | group, and offsets below which the queue holds everything settled, once it is at rest |
| begin | of a transaction: txn, transactional_id; a process is one producer of that id, from its first `begin` on |
| end | of a transaction: txn, outcome `commit` or `abort` |
| crash | a process is gone; what it had open stays unknown |
| fault | something was broken on purpose; value says what |

A send, poll or commit with `txn` belongs to that transaction; positions of such a commit move with its `end`. A send
with `source` and `group` says of which value of another topic it was made, by a pipeline of that group. A poll with
`isolation` "read_uncommitted" may see what is open or aborted. Values are unique over the whole history, names of
transactions too. A process does one thing at a time, but for sends
and ends.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from raystream.errors import InvalidArgument

Type = Literal["invoke", "ok", "fail", "info"]
Kind = Literal[
    "send", "poll", "assign", "revoke", "seek", "commit", "committed", "drain", "deliver", "settle", "buried",
    "settled", "begin", "end", "crash", "fault",
]  # fmt: skip
Value = str | int

KINDS: Final[frozenset[str]] = frozenset(get_args(Kind))
TYPES: Final[frozenset[str]] = frozenset(get_args(Type))


class Operation(NamedTuple):
    """One line of a history. `time` is the machine's monotonic clock in nanoseconds."""

    time: int
    process: str
    type: Type
    kind: Kind
    topic: str | None = None
    partition: int | None = None
    key: str | None = None
    value: Value | None = None
    offset: int | None = None
    records: Sequence[tuple[str, int, int, Value]] = ()
    """(topic, partition, offset, value)"""
    partitions: Sequence[tuple[str, int]] = ()
    offsets: Sequence[tuple[str, int, int]] = ()
    """(topic, partition, offset of the next record)"""
    group: str | None = None
    epoch: int | None = None
    txn: str | None = None
    transactional_id: str | None = None
    outcome: Literal["commit", "abort", "accept", "release", "reject"] | None = None
    source: Value | None = None
    isolation: Literal["read_uncommitted"] | None = None
    error: str | None = None

    def __str__(self) -> str:
        said = {
            name: value
            for name, value in zip(self._fields[4:], self[4:], strict=True)
            if value is not None and value != () and name != "records"
        }
        if self.records:
            first, last = self.records[0], self.records[-1]
            said["records"] = list(self.records) if len(self.records) <= 5 else f"{len(self.records)}, {first} … {last}"
        words = " ".join(f"{name}={value}" for name, value in said.items())
        return f"{self.time / 1e9:.6f} {self.process} {self.type} {self.kind} {words}".rstrip()


FIELDS: Final = frozenset(Operation._fields)

_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


def to_line(fields: dict[str, Any]) -> str:
    """The operation with these fields as a line of JSON, its newline included."""
    return _encode(fields) + "\n"


def from_line(line: str) -> Operation:
    """The operation of a line. Raises InvalidArgument."""
    try:
        return Operation(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"no operation: {error}") from error


class History:
    """Recorded files as one sequence of operations in order of time. Every iteration reads the files anew.

    A last line without its newline is left out: its writer was killed.
    """

    def __init__(self, *paths: str | os.PathLike[str]) -> None:
        if not paths:
            raise InvalidArgument("a history needs a file")
        self.paths = tuple(Path(path) for path in paths)

    def __iter__(self) -> Iterator[Operation]:
        if len(self.paths) == 1:
            return _read(self.paths[0])
        return heapq.merge(*map(_read, self.paths), key=_time)

    def __repr__(self) -> str:
        return f"History({', '.join(map(repr, map(str, self.paths)))})"


def _read(path: Path) -> Iterator[Operation]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield from_line(line)
            except InvalidArgument as error:
                raise InvalidArgument(f"{path}, line {number}: {error}") from error


def _time(operation: Operation) -> int:
    return operation.time
