"""The values that users meet: records, positions and descriptions. No behaviour beyond showing themselves."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple, TypeVar

from raystream.errors import InvalidRecord

EARLIEST: Final = "earliest"
LATEST: Final = "latest"

Headers = Mapping[str, bytes | str | None] | Sequence[tuple[str, bytes | str | None]]
Position = (
    Literal["earliest", "latest"] | dt.datetime | dt.timedelta | Mapping[int, int] | Mapping[str, Mapping[int, int]]
)
"""`"earliest"`, `"latest"`, an instant (naive is UTC), a duration ago, `{partition: offset}` or
`{topic: {partition: offset}}`. Ranges are half-open."""


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


class RecordMetadata(NamedTuple):
    """Where a record went. `offset` is -1 under `acks=0`; `timestamp_ms` is milliseconds since the epoch, UTC."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class Record(NamedTuple):
    """One record as a consumer reads it.

    On a raw topic `key` and `value` are bytes or None; on a typed topic `value` is a dict of the row and `key` the
    value of the key column. A consumer's deserializers replace either.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: Any
    value: Any
    headers: Sequence[tuple[str, bytes | None]] = ()

    @property
    def text(self) -> str | None:
        """The value as UTF-8 text; None for a tombstone. Raises InvalidRecord where it is none."""
        if self.value is None or isinstance(self.value, str):
            return self.value
        try:
            return self._bytes("text").decode()
        except UnicodeDecodeError as error:
            raise InvalidRecord(f"{self._place()} is no UTF-8 text: {error}; see .value") from None

    def json(self) -> Any:
        """The value parsed as JSON; None for a tombstone. Raises InvalidRecord where it is none."""
        if self.value is None:
            return None
        try:
            return json.loads(self.value if isinstance(self.value, str) else self._bytes("json()"))
        except ValueError as error:
            raise InvalidRecord(f"{self._place()} is no JSON: {error}; see .value") from None

    def _bytes(self, wanted: str) -> bytes:
        if isinstance(self.value, (bytes, bytearray, memoryview)):
            return bytes(self.value)
        raise InvalidRecord(
            f"{self._place()} is a {type(self.value).__name__} already: .{wanted} is for bytes; see .value"
        )

    def _place(self) -> str:
        return f"the value of {self.topic}-{self.partition} at offset {self.offset}"


Row = TypeVar("Row")


class Rows(list[Row]):
    """A list of descriptions that prints, and shows itself in a notebook, as a table."""

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        names = [f.name for f in fields(self[0]) if f.repr]  # type: ignore[arg-type]
        return names, [[_cell(getattr(row, name), label=name in _LABELS) for name in names] for row in self]

    def __repr__(self) -> str:
        if not self:
            return "(none)"
        names, cells = self._cells()
        widths = [max(len(row[i]) for row in [names, *cells]) for i in range(len(names))]
        lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) for row in [names, *cells]]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        from html import escape

        if not self:
            return "<em>(none)</em>"
        names, cells = self._cells()
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in cells)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_LABELS: Final = frozenset({"pid", "partition", "leader", "broker_id"})
"""Numbers that name something, and count nothing."""


def _cell(value: object, *, label: bool) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and not label:
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)


@dataclass(frozen=True)
class PartitionDescription:
    """One partition: who leads it, what it holds (`size_bytes` on the leader's disk), and its epoch. What it holds is
    None where its leader does not answer."""

    topic: str
    partition: int
    leader: int | None
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    start_offset: int | None
    end_offset: int | None
    size_bytes: int | None
    segments: int | None


@dataclass(frozen=True)
class TopicDescription:
    """A topic. `records` counts offsets between start and end over all partitions; it and `size_bytes` are None where
    a partition's leader does not answer."""

    name: str
    kind: Literal["raw", "typed"]
    partitions: int
    replication_factor: int
    records: int | None
    size_bytes: int | None
    key: str | None = None
    time: str | None = None
    id: str = field(default="", repr=False)
    schema: Any = field(default=None, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    partition_list: Rows[PartitionDescription] = field(default_factory=Rows, repr=False)


@dataclass(frozen=True)
class MemberDescription:
    """A member of a consumer group: where it runs (`node` is the Ray node's id), how far it is behind in records, and
    how long ago its user last asked for records (`last_poll_ms_ago`; None: not known) and its last heartbeat came.

    One that is stuck in a handler goes on with its heartbeats, and its last poll grows old."""

    member_id: str
    client: str
    epoch: int
    partitions: tuple[TopicPartition, ...]
    last_heartbeat_ms_ago: int
    last_poll_ms_ago: int | None = None
    lag: int | None = None
    host: str = ""
    pid: int = 0
    node: str = ""
    instance_id: str | None = None


@dataclass(frozen=True)
class PartitionLag:
    """How far a group is behind on one partition, in records that are there; `lag` is None where it has no position.
    `lost` of those behind its position are there no more (see OffsetsLost)."""

    topic: str
    partition: int
    committed: int | None
    end_offset: int
    lag: int | None
    member: str | None
    lost: int = 0


@dataclass(frozen=True)
class OffsetMove:
    """One row of what `reset_offsets` does, or would do: a position (None: there was none) and where it goes."""

    topic: str
    partition: int
    before: int | None
    after: int


@dataclass(frozen=True)
class SharePartitionDescription:
    """A share group's state in one partition, in records. All below `start_offset` are settled; beyond it some are
    `acquired` by members, `released` for another delivery, `dying` on their way to the dead-letter topic, or `settled`.
    The others are since the group began; `lost` are those that retention took before they were settled."""

    topic: str
    partition: int
    start_offset: int
    acquired: int
    released: int
    dying: int
    settled: int
    accepted: int
    archived: int
    dead_lettered: int
    lost: int


@dataclass(frozen=True)
class GroupDescription:
    """A consumer group or a share group. `state` is "empty", "reconciling" or "stable"; `lag` is how many records are
    not processed, or not settled, yet. `share_list` is a share group's state in each partition."""

    name: str
    state: str
    epoch: int
    topics: tuple[str, ...]
    members: int
    lag: int | None
    member_list: Rows[MemberDescription] = field(default_factory=Rows, repr=False)
    partition_list: Rows[PartitionLag] = field(default_factory=Rows, repr=False)
    kind: Literal["consumer", "share"] = "consumer"
    share_list: Rows[SharePartitionDescription] = field(default_factory=Rows, repr=False)


@dataclass(frozen=True)
class BrokerDescription:
    """A broker: the raystream actor of one Ray node. `state` is "running", "draining", "not heard" where it has not
    been for so long that it leads nothing, and "not known" where there is no controller to hear anybody. `free_bytes`
    is None where it is not known."""

    broker_id: int
    node: str
    state: str
    partitions: int
    data_dir: str
    free_bytes: int | None
    pid: int
    controller: bool
    rack: str = ""


@dataclass(frozen=True)
class ClientQuota:
    """What clients of one id may move on each node, in bytes per second; None: as much as they like. The client id ""
    stands for every id that has no quota of its own."""

    client_id: str
    produce_bytes_per_s: int | None
    fetch_bytes_per_s: int | None


@dataclass(frozen=True)
class Health:
    """Whether everything is served. `problems` holds a sentence for each thing that is not."""

    ok: bool
    brokers: int
    topics: int
    partitions: int
    offline_partitions: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class WriteResult:
    """What `cluster.write` or `send_frame` did: rows, and the half-open offset range per partition.

    Other producers' records may lie between a range's ends.
    """

    topic: str
    rows: int
    offsets: Mapping[int, tuple[int, int]]

    def __len__(self) -> int:
        return self.rows
