"""Which brokers are heard of, as the controller sees it. It is no state of the cluster: each controller begins anew."""

from __future__ import annotations

from collections.abc import Iterable


class Liveness:
    """Instants are milliseconds of the controller's own monotonic clock. Not safe between threads."""

    def __init__(self, session_timeout_ms: float) -> None:
        self._session_timeout_ms = session_timeout_ms
        self._heard_ms: dict[int, float] = {}

    def started(self, broker_ids: Iterable[int], now_ms: float) -> None:
        """A new controller gives everybody a whole timeout to be heard: it cannot know when they last were."""
        self._heard_ms = dict.fromkeys(broker_ids, now_ms)

    def heard(self, broker_id: int, now_ms: float) -> None:
        """The broker lives. What arrives late takes nothing back."""
        self._heard_ms[broker_id] = max(now_ms, self._heard_ms.get(broker_id, now_ms))

    def forget(self, broker_id: int) -> None:
        """The broker is fenced, or gone: it does not expire again until it has been heard."""
        self._heard_ms.pop(broker_id, None)

    def expired(self, now_ms: float) -> list[int]:
        """The brokers that have not been heard for the timeout, in order of their ids; until they are forgotten."""
        return sorted(b for b, heard_ms in self._heard_ms.items() if now_ms - heard_ms >= self._session_timeout_ms)

    @property
    def next_deadline_ms(self) -> float | None:
        """When the next broker expires unless it is heard before; None: there is none."""
        return min(self._heard_ms.values()) + self._session_timeout_ms if self._heard_ms else None
