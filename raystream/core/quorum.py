"""The arithmetic of majorities: what a majority has reached, who has won, which voter set may follow which."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from raystream.core.raft_messages import Voter, Voters
from raystream.errors import InvalidArgument


def majority(count: int) -> int:
    """How many of `count` voters overlap with every other majority."""
    return count // 2 + 1


def reached(values: Iterable[float]) -> float:
    """The highest value that a majority of voters has reached, one value for each voter. There is at least one."""
    ordered = sorted(values, reverse=True)
    return ordered[majority(len(ordered)) - 1]


class VoteTally:
    """The votes of one election, or of one pre-election, among fixed voters."""

    def __init__(self, voters: Voters) -> None:
        self._voters = frozenset(voters)
        self._granted: dict[Voter, bool] = {}

    def record(self, voter: Voter, granted: bool) -> None:
        """Counts a voter's first answer; nobody else's."""
        if voter in self._voters:
            self._granted.setdefault(voter, granted)

    @property
    def won(self) -> bool:
        """A majority has voted for the candidate."""
        return sum(self._granted.values()) >= majority(len(self._voters))

    @property
    def lost(self) -> bool:
        """A majority can no longer be had."""
        refused = len(self._granted) - sum(self._granted.values())
        return len(self._voters) - refused < majority(len(self._voters))


def check_change(before: Collection[Voter], after: Collection[Voter]) -> None:
    """Raises InvalidArgument unless exactly one voter is added or removed, which makes old and new majorities overlap.

    A broker has one disk: to replace a wiped one, remove the voter with the old directory id before adding the new.
    """
    if not after:
        raise InvalidArgument("the last voter cannot be removed")
    if len({voter.id for voter in after}) != len(after):
        raise InvalidArgument("a broker can be a voter with one directory only: remove the old one first")
    changed = set(before) ^ set(after)
    if len(changed) != 1:
        raise InvalidArgument(f"voters change one at a time, and this would change {len(changed)}")
