"""Every setting, with its default, its range and its unit. Unknown keys are refused with the nearest one named."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from raystream.errors import InvalidArgument, InvalidConfig

KIB: Final = 1 << 10
MIB: Final = 1 << 20
MIN_FREE_BYTES: Final = 64 * MIB
"""Of every disk so much is kept free for metadata and deletions."""
DAY_MS: Final = 86_400_000

INLINE_LIMIT_BYTES: Final = 90 * KIB
"""Ray passes arguments up to 100 KB inside the call; above, through the object store, which pays from 1 MB on."""
MAX_PARTITIONS: Final = 10_000
SCRUB_BYTES_PER_S: Final = 20 * MIB
"""So fast a disk's logs are read through to find bytes that have gone bad, all of its actors together."""
SCRUB_INTERVAL_MS: Final = DAY_MS
"""A log is read through once in so long, or less often where the rate does not allow it."""


def setting(default: Any, low: float | None = None, high: float | None = None, choices: tuple[Any, ...] = ()) -> Any:
    """A dataclass field with the range or the choices it is checked against. Where the default is None, None is allowed
    too: the setting is off."""
    return field(default=default, metadata={"low": low, "high": high, "choices": choices, "off": default is None})


@dataclass(frozen=True, kw_only=True)
class TopicConfig:
    """What `create_topic(config={…})` and `alter_topic` take."""

    flush: Literal["fsync", "os"] = setting("fsync", choices=("fsync", "os"))
    """"fsync": acknowledged means on the disk. "os": in the page cache; a power cut may lose the last records."""
    min_insync_replicas: int = setting(0, 0, 16)
    """acks="all" needs so many replicas in sync, or waits. 0: two where there are three replicas or more, else one."""
    segment_bytes: int = setting(256 * MIB, 1 * MIB, 2**31)
    segment_ms: int = setting(7 * DAY_MS, 1000, 10 * 365 * DAY_MS)
    max_batch_bytes: int = setting(16 * MIB, 1 * KIB, 256 * MIB)
    timestamp_type: Literal["create", "append"] = setting("create", choices=("create", "append"))
    max_timestamp_ahead_ms: int = setting(3_600_000, 0, 10 * 365 * DAY_MS)
    """A record's timestamp may be this far in the future; one further ahead is refused."""
    retention_ms: int | None = setting(None, 1, 100 * 365 * DAY_MS)
    """Segments of which the last record was appended so long ago are deleted, whatever the records' own timestamps say.
    None: never. Shorter than `segment_ms`, it also ends the segment that is being written."""
    retention_bytes: int | None = setting(None, 1, 2**60)
    """A partition's oldest segments are deleted as long as so much is left without them. None: never."""
    cleanup_policy: Literal["delete", "compact", "compact,delete"] = setting(
        "delete", choices=("delete", "compact", "compact,delete")
    )
    """"compact" keeps at least the last record of every key, and no retention applies; "compact,delete": both do."""
    min_cleanable_dirty_ratio: float = setting(0.5, 0, 1)
    """Compaction begins once so much of a log, by bytes, was not compacted yet."""
    min_compaction_lag_ms: int = setting(0, 0, 10 * 365 * DAY_MS)
    """Records appended so recently are not compacted."""
    max_compaction_lag_ms: int | None = setting(None, 1, 10 * 365 * DAY_MS)
    """A record that was appended so long ago is compacted whatever the dirty ratio. None: no bound."""
    delete_retention_ms: int = setting(DAY_MS, 0, 10 * 365 * DAY_MS)
    """A tombstone (a key without a value) is kept so long after it was first compacted."""

    @property
    def compacts(self) -> bool:
        return self.cleanup_policy != "delete"

    @property
    def deletes(self) -> bool:
        return self.cleanup_policy != "compact"


@dataclass(frozen=True, kw_only=True)
class ProducerConfig:
    """What `cluster.producer(…)` takes besides serializers and the partitioner."""

    acks: Literal[0, 1, "all"] = setting("all", choices=(0, 1, "all"))
    linger_ms: float = setting(5.0, 0, 60_000)
    max_batch_bytes: int = setting(1 * MIB, 1 * KIB, 64 * MIB)
    max_buffered_bytes: int = setting(64 * MIB, 64 * KIB, 64 * 1024 * MIB)
    max_block_ms: int = setting(60_000, 0, 3_600_000)
    max_in_flight: int = setting(5, 1, 5)
    request_timeout_ms: int = setting(10_000, 100, 600_000)
    delivery_timeout_ms: int = setting(120_000, 100, 3_600_000)
    transaction_timeout_ms: int = setting(60_000, 1_000, 900_000)
    """A transaction that is open for longer is aborted."""
    compression: Literal["lz4", "zstd"] | None = setting(None, choices=(None, "lz4", "zstd"))


@dataclass(frozen=True, kw_only=True)
class ConsumerConfig:
    """What `cluster.consumer(…)` takes besides topic, group, start and deserializers."""

    assignor: Literal["sticky", "range", "roundrobin"] = setting("sticky", choices=("sticky", "range", "roundrobin"))
    """How the group deals out partitions. Members that differ get what most of them name."""
    auto_commit: bool = setting(True, choices=(True, False))
    auto_commit_interval_ms: int = setting(1_000, 10, 3_600_000)
    """How often positions inside a batch are committed."""
    commit_each_batch: bool = setting(True, choices=(True, False))
    """A partition's next batch is handed out once the end of the one before is committed: a killed consumer repeats at
    most one batch of each partition. False: only `auto_commit_interval_ms` counts, and a batch never waits."""
    session_timeout_ms: int = setting(10_000, 1_000, 3_600_000)
    heartbeat_interval_ms: int = setting(1_000, 50, 600_000)
    rebalance_timeout_ms: int = setting(60_000, 1_000, 3_600_000)
    max_fetch_bytes: int = setting(8 * MIB, 1 * KIB, 256 * MIB)
    max_buffered_bytes: int = setting(64 * MIB, 64 * KIB, 64 * 1024 * MIB)
    fetch_max_wait_ms: int = setting(1_000, 0, 60_000)
    request_timeout_ms: int = setting(10_000, 100, 600_000)
    check_crcs: bool = setting(True, choices=(True, False))
    mmap: bool = setting(True, choices=(True, False))
    isolation: Literal["read_committed", "read_uncommitted"] = setting(
        "read_committed", choices=("read_committed", "read_uncommitted")
    )
    """"read_committed": records of transactions that are open or aborted are not seen."""

    @property
    def committed(self) -> bool:
        """Whether only what is committed is read."""
        return self.isolation == "read_committed"


@dataclass(frozen=True, kw_only=True)
class ShareConfig:
    """What `cluster.consumer(…, share="…")` takes besides topic, start, dead_letter and deserializers. The first three
    are the group's: those of the member that joined last count."""

    max_deliveries: int = setting(5, 1, 10_000)
    """A record that is released, or whose lock runs out, at so many deliveries is not delivered again."""
    lock_timeout_ms: int = setting(30_000, 100, 3_600_000)
    """So long a record is one member's; then others get it."""
    max_in_flight: int = setting(2_000, 1, 100_000)
    """So many offsets of a partition may lie between the first that is not settled and the last that was acquired."""
    max_poll_records: int = setting(500, 1, 100_000)
    """A batch has so many records at most, and so many are acquired at a time where they are handled quickly."""
    session_timeout_ms: int = setting(10_000, 1_000, 3_600_000)
    heartbeat_interval_ms: int = setting(1_000, 50, 600_000)
    max_fetch_bytes: int = setting(8 * MIB, 1 * KIB, 256 * MIB)
    fetch_max_wait_ms: int = setting(1_000, 0, 60_000)
    request_timeout_ms: int = setting(10_000, 100, 600_000)
    check_crcs: bool = setting(True, choices=(True, False))
    mmap: bool = setting(True, choices=(True, False))


Config = TypeVar("Config", TopicConfig, ProducerConfig, ConsumerConfig, ShareConfig)


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that names what may have been meant, "" where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def check_names(given: Iterable[str], known: Collection[str], what: str) -> None:
    """Raises InvalidArgument for a keyword argument that is none of `known`."""
    for name in given:
        if name not in known:
            hint = nearest(name, known) or f"there are: {', '.join(known)}"
            raise InvalidArgument(f"{what} takes no {name}=; {hint}")


def build(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A checked config of `kind`. Raises InvalidConfig: unknown key (the nearest is named) or value out of range."""
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in known:
            hint = nearest(name, known) or f"there are: {', '.join(sorted(known))}"
            raise InvalidConfig(f"there is no setting {name!r}; {hint}")
        _check(name, value, known[name].metadata)
    return kind(**values)


def changed(config: TopicConfig, values: Mapping[str, Any]) -> TopicConfig:
    """The config with some settings changed; None puts a setting back to its default."""
    merged = {**dataclasses.asdict(config), **values}
    defaults = dataclasses.asdict(TopicConfig())
    return build(TopicConfig, {k: defaults.get(k) if v is None and k in defaults else v for k, v in merged.items()})


def _check(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    choices, low, high = limits["choices"], limits["low"], limits["high"]
    if value is None and limits["off"]:
        return
    if choices:
        if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
            raise InvalidConfig(f"{name}={value!r} is none of {', '.join(map(repr, choices))}")
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidConfig(f"{name}={value!r} is not a number")
    if not low <= value <= high:
        raise InvalidConfig(f"{name}={value!r} lies outside {low} to {high}")
