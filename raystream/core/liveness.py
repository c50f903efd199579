"""Which brokers are heard of, as the controller sees it, and until when a broker can be sure that it is.

It is no state of the cluster: each controller begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable


def lease_until_ms(sent_ms: float, lease_ms: float) -> float:
    """Until when, by its own clock, a broker cannot have been fenced for not being heard: until then it serves reads.

    It counts from the *sending* of the heartbeat that was answered, which is no later than when the controller heard
    it. `lease_ms` is less than the session timeout, by more than clocks may differ in rate meanwhile.
    """
    return sent_ms + lease_ms


class Grants:
    """The leases that a broker is granted, each as of a version of the metadata: what the controller had decided when
    it answered. One counts once all replicas here have been told what that version says, so that none goes on serving
    what has been taken from it. Not safe between threads."""

    def __init__(self) -> None:
        self._told_version = -1
        self._granted: list[tuple[int, float]] = []
        self.until_ms = 0.0
        """Until when this broker's replicas may serve reads, by its own clock."""

    def granted(self, version: int, until_ms: float) -> None:
        """A heartbeat was answered."""
        self._granted.append((version, until_ms))
        self.told(self._told_version)

    def told(self, version: int) -> None:
        """All replicas here go by the metadata of that version, or a later one."""
        self._told_version = max(self._told_version, version)
        due_ms = [until_ms for granted, until_ms in self._granted if granted <= self._told_version]
        self._granted = [grant for grant in self._granted if grant[0] > self._told_version]
        self.until_ms = max([self.until_ms, *due_ms])

    def end(self) -> None:
        """Another life begins: what was granted to this one counts no more."""
        self._granted.clear()
        self.until_ms = 0.0


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
