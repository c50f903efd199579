"""How far one follower is, as its leader knows it, and what may be sent to it next.

probe       the leader does not know where the logs part: one message at a time, until one is accepted
replicate   the logs agree: messages follow each other without waiting, up to a bound
snapshot    the follower needs what was compacted: the snapshot is on its way, and only heartbeats go beside it
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from raystream.core.raft_log import RaftLog
from raystream.core.raft_messages import AppendEntriesReply, Voter

Mode = Literal["probe", "replicate", "snapshot"]


@dataclass(slots=True)
class Progress:
    """One follower or observer. `match_index` is what it holds durably as the leader does; it never moves back."""

    voter: Voter
    next_index: int
    match_index: int = 0
    mode: Mode = "probe"
    probe_sent: bool = False
    in_flight: deque[int] = field(default_factory=deque)
    """The last index of each append under way, in `replicate`."""
    answered_ms: float = -math.inf
    """When the latest message that was answered was sent, by the leader's clock."""
    snapshot_index: int = 0
    snapshot_sent_ms: float = -math.inf

    def sent(self, last_index: int) -> None:
        """Entries up to `last_index` are under way."""
        if self.mode == "probe":
            self.probe_sent = True
        else:
            self.in_flight.append(last_index)
            self.next_index = last_index + 1

    def sent_snapshot(self, index: int, now_ms: float) -> None:
        """A snapshot up to `index` is under way."""
        self.mode = "snapshot"
        self.in_flight.clear()
        self.snapshot_index = index
        self.snapshot_sent_ms = now_ms

    def accepted(self, match_index: int) -> None:
        """The follower holds all up to `match_index`."""
        self.match_index = max(self.match_index, match_index)
        while self.in_flight and self.in_flight[0] <= match_index:
            self.in_flight.popleft()
        agreed = (
            self.match_index >= self.snapshot_index if self.mode == "snapshot" else match_index >= self.next_index - 1
        )
        if self.mode != "replicate" and agreed:
            self.mode = "replicate"
            self.next_index = self.match_index + 1
        self.next_index = max(self.next_index, self.match_index + 1)

    def refused(self, reply: AppendEntriesReply, log: RaftLog) -> bool:
        """Goes back to where the logs may agree, by the hint; says whether the refusal was news."""
        previous = reply.previous_index
        stale = previous <= self.match_index or previous >= self.next_index
        if stale or self.mode == "snapshot" or (self.mode == "probe" and previous != self.next_index - 1):
            return False
        agreed = min(log.last_index_not_after(reply.hint_term, reply.hint_index), reply.hint_index, previous - 1)
        self.next_index = max(agreed, self.match_index) + 1
        self.mode = "probe"
        self.probe_sent = False
        self.in_flight.clear()
        return True
