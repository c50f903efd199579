"""What partition actors publish through `ray.util.metrics` (Prometheus, where Ray's metrics agent runs).

Calls only count; `publish` hands the sums to Ray about once a second, because one metric call costs as much as a
small append.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ray.util import metrics as ray_metrics

from raystream import messages as m
from raystream.batch import BatchHeader

if TYPE_CHECKING:
    from raystream.actors.replica import Replica

_TAGS: Final = ("topic", "partition")
_BOUNDS_MS: Final = [0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0, 10_000.0]
MAX_SAMPLES: Final = 1024


@dataclass(slots=True)
class _Sums:
    """Since they were last published."""

    records: dict[tuple[str, int], int] = field(default_factory=dict)
    bytes: dict[tuple[str, int], int] = field(default_factory=dict)
    fetched_bytes: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))


class PartitionMetrics:
    """Counts what one partition actor does, on the threads of all its callers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = _Sums()
        self._records_in = ray_metrics.Counter("raystream_records_in", "Records appended.", _TAGS)
        self._bytes_in = ray_metrics.Counter("raystream_bytes_in", "Bytes appended.", _TAGS)
        self._bytes_out = ray_metrics.Counter("raystream_bytes_out", "Bytes fetched.", ())
        self._log_bytes = ray_metrics.Gauge("raystream_log_bytes", "Size of the log on disk.", _TAGS)
        self._end_offset = ray_metrics.Gauge("raystream_end_offset", "High watermark.", _TAGS)
        self._append_ms = ray_metrics.Histogram(
            "raystream_append_latency_ms", "Append, from arrival to durable.", boundaries=_BOUNDS_MS, tag_keys=()
        )

    def appended(self, header: BatchHeader, latency_ms: float) -> None:
        key = (header.topic_id, header.partition)
        with self._lock:
            self._sums.records[key] = self._sums.records.get(key, 0) + header.last_offset_delta + 1
            self._sums.bytes[key] = self._sums.bytes.get(key, 0) + header.message_bytes
            self._sums.latencies_ms.append(latency_ms)

    def fetched(self, reply: m.FetchReply) -> None:
        size = sum(span.length for span in reply.spans) + sum(len(chunk) for chunk in reply.chunks)
        with self._lock:
            self._sums.fetched_bytes += size

    def publish(self, replicas: Mapping[tuple[str, int], Replica], statuses: Iterable[m.ReplicaStatus]) -> None:
        """Hands the sums since the last call, and the logs' sizes, to Ray, which refuses to count by 0."""
        with self._lock:
            sums, self._sums = self._sums, _Sums()
        for status in statuses:
            key = (status.topic_id, status.partition)
            replica = replicas.get(key)
            if replica is None:
                continue
            tags = {"topic": replica.spec.topic, "partition": str(status.partition)}
            self._log_bytes.set(status.size_bytes, tags)
            self._end_offset.set(status.end_offset, tags)
            if key in sums.records:
                self._records_in.inc(sums.records[key], tags)
                self._bytes_in.inc(sums.bytes[key], tags)
        if sums.fetched_bytes:
            self._bytes_out.inc(sums.fetched_bytes)
        for latency_ms in sums.latencies_ms:
            self._append_ms.observe(latency_ms)


class LagMetrics:
    """What the coordinator publishes: how far each group is behind."""

    def __init__(self) -> None:
        self._lag = ray_metrics.Gauge("raystream_group_lag", "Records behind.", ("group", *_TAGS))

    def publish(self, group: str, topic: str, partition: int, lag: int) -> None:
        self._lag.set(lag, {"group": group, "topic": topic, "partition": str(partition)})
