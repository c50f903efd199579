"""What a producer counts. Read by whoever publishes metrics; written on the client's loop only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ProducerStats:
    """Sums since the producer was made. `bytes` counts encoded batches, `latency_ms` from a call to its reply.

    `errors` counts records that failed, `retries` batches that were sent again. Reading one number is safe from any
    thread; two of them may be a batch apart.
    """

    records: int = 0
    bytes: int = 0
    batches: int = 0
    retries: int = 0
    errors: int = 0
    latency_ms: float = 0.0
    buffered_bytes: int = 0
    blocked_ms: float = 0.0
