"""Which brokers vote on the metadata log: the controller brings them, one at a time, to 1, 3 or 5.

Rules, and why:

* An odd number, at most five, of the brokers that are there: another voter beside an odd number of them makes every
  change wait for one more disk and survives no further failure. For the same reason a set that is odd and complete
  grows only when two brokers are ready, so that it is even for no longer than it must be.
* A replacement is *added before* the dead voter is removed. Of three voters with one dead, both ways go through a set
  in which each live voter is needed: {A, B} needs two of two, {A, B, dead, D} three of four. The second holds every
  change on one disk more, and if another fails meanwhile, it gets its majority back with *either* of those that are
  missing. Adding a live voter never costs a majority that there was.
* Who is fenced for a moment stays a voter. Nobody is in the way, and a change in the middle of a failure is a risk.
* Dead brokers for which there is no replacement do not bring the set below three: with {A, B, dead} two disks hold each
  change, with {A} only one would. Brokers that are drained or removed do, for they go for good.
* No set without a live majority, and never none: with those the log could not be written any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from raystream.core.metadata import BrokerRecord, MetadataImage
from raystream.core.placement import rack_of
from raystream.core.raft_messages import Voter

DEAD_AFTER_MS: Final = 60_000.0
"""A broker that is fenced for so long is taken for dead: another votes in its place."""
MAX_VOTERS: Final = 5
MIN_VOTERS_KEPT: Final = 3


def next_voters(
    voters: tuple[Voter, ...],
    image: MetadataImage,
    caught_up: Collection[int],
    *,
    dead_for_ms: Mapping[int, float],
    controller: int | None = None,
) -> tuple[Voter, ...] | None:
    """The voter set with one voter more or one less, or None where it is good as it is, or has to wait.

    `caught_up` are the brokers that hold nearly all of the log, `dead_for_ms` says how long each fenced one has been
    so. The broker of the `controller` goes last: without it another would have to be elected.
    """
    choice = _Choice(voters, image, caught_up, dead_for_ms)
    return choice.without_one(controller) or choice.with_another()


class _Choice:
    def __init__(
        self,
        voters: tuple[Voter, ...],
        image: MetadataImage,
        caught_up: Collection[int],
        dead_for_ms: Mapping[int, float],
    ) -> None:
        self._voters = voters
        self._brokers = {b.broker_id: b for b in image.brokers.values() if b.directory_id}
        self._racks = {broker_id: broker.rack for broker_id, broker in self._brokers.items()}
        self._dead = {b for b, ms in dead_for_ms.items() if ms > DEAD_AFTER_MS and self._is_fenced(b)}
        staying = [b for b, broker in self._brokers.items() if not broker.draining]
        self._size = max(
            _odd(sum(b not in self._dead for b in staying)), min(_odd(len(staying)), len(voters), MIN_VOTERS_KEPT)
        )
        taken = {voter.id for voter in voters}
        self._candidates = [b for b in staying if b in caught_up and b not in taken and not self._is_fenced(b)]

    def without_one(self, controller: int | None) -> tuple[Voter, ...] | None:
        """The set without its worst voter, where there are more than are wanted."""
        if len(self._voters) <= self._size:
            return None
        worst = max(self._voters, key=lambda voter: (self._badness(voter), voter.id != controller, voter.id))
        return self._if_live(tuple(voter for voter in self._voters if voter != worst))

    def with_another(self) -> tuple[Voter, ...] | None:
        """The set with the best broker that can vote, where one is wanted."""
        good = [voter for voter in self._voters if self._stays(voter)]
        pair = len(self._voters) % 2 == 1 and len(good) == len(self._voters)
        if len(self._voters) > self._size or len(good) >= self._size or len(self._candidates) < 1 + pair:
            return None
        racks = [rack_of(voter.id, self._racks) for voter in good]
        best = min(self._candidates, key=lambda b: (racks.count(rack_of(b, self._racks)), b))
        return self._if_live((*self._voters, Voter(best, self._brokers[best].directory_id)))

    def _broker(self, voter: Voter) -> BrokerRecord | None:
        """The voter's broker; None for one that was removed, or has another disk now."""
        broker = self._brokers.get(voter.id)
        return broker if broker is not None and broker.directory_id == voter.directory_id else None

    def _stays(self, voter: Voter) -> bool:
        broker = self._broker(voter)
        return broker is not None and not broker.draining and voter.id not in self._dead

    def _badness(self, voter: Voter) -> tuple[int, ...]:
        """Gone, dead, draining, fenced, and how many are in its rack, in this order."""
        broker = self._broker(voter)
        if broker is None:
            return (1,)
        rack = rack_of(voter.id, self._racks)
        crowd = sum(rack_of(other.id, self._racks) == rack for other in self._voters)
        return 0, voter.id in self._dead, broker.draining, broker.fenced, crowd

    def _is_fenced(self, broker_id: int) -> bool:
        broker = self._brokers.get(broker_id)
        return broker is None or broker.fenced

    def _if_live(self, voters: tuple[Voter, ...]) -> tuple[Voter, ...] | None:
        live = sum(self._broker(voter) is not None and not self._is_fenced(voter.id) for voter in voters)
        return voters if live > len(voters) // 2 else None


def _odd(count: int) -> int:
    """The largest number of voters that so many brokers can give."""
    return max(1, (min(count, MAX_VOTERS) - 1) // 2 * 2 + 1)
