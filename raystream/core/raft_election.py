"""One election, or one pre-election, as its candidate sees it."""

from __future__ import annotations

from raystream.core.quorum import VoteTally
from raystream.core.raft_log import RaftLog
from raystream.core.raft_messages import RequestVote, RequestVoteReply, Voter


class Election:
    """Held among the voters that the candidate's log names when it begins; the candidate has a vote if it is one.

    Its own vote counts like anybody else's: once it is durable. (A pre-vote is no vote, and counts at once.)
    """

    def __init__(self, candidate: Voter, term: int, log: RaftLog, *, pre_vote: bool, transfer: bool = False) -> None:
        self._candidate = candidate
        self._term = term
        self._voters = log.voters
        self._last_log_index = log.last_index
        self._last_log_term = log.last_term
        self.is_pre_vote = pre_vote
        self._transfer = transfer
        self._tally = VoteTally(log.voters)
        if pre_vote:
            self.vote_for_itself()

    def vote_for_itself(self) -> None:
        """The candidate's own vote is durable. More than once is the same as once."""
        self._tally.record(self._candidate, True)

    def requests(self) -> list[RequestVote]:
        """What the other voters are asked."""
        return [
            RequestVote(
                source=self._candidate,
                to=voter,
                term=self._term,
                last_log_index=self._last_log_index,
                last_log_term=self._last_log_term,
                pre_vote=self.is_pre_vote,
                transfer=self._transfer,
            )
            for voter in self._voters
            if voter != self._candidate
        ]

    def record(self, reply: RequestVoteReply) -> None:
        """Counts an answer; not one to another election's question."""
        if (reply.requested_term, reply.pre_vote) == (self._term, self.is_pre_vote):
            self._tally.record(reply.source, reply.granted)

    @property
    def is_won(self) -> bool:
        """A majority of the voters has voted for the candidate."""
        return self._tally.won

    @property
    def is_lost(self) -> bool:
        """So many have refused that no majority can be had."""
        return self._tally.lost
