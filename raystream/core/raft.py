"""Raft for the metadata log: a pure state machine. Messages, ticks and proposals go in; `Ready` comes out.

It knows no clock, file, network or source of randomness: `now_ms` is an argument, election timeouts come from the
generator it is given. The same inputs give the same outputs. etcd-io/raft is the model for the shape; the rules are
the Raft paper's and Ongaro's thesis's (cited by section below), directory ids are KIP-853's.

What the shell must do
    After every call, while `has_ready`: take `ready()`, do what it says in its order, call `advance()`. Between the two
    other calls may be made (a sync may run on another thread while messages come in), but not another `ready()`.
    Call `tick` no later than `deadline_ms`. `now_ms` must not stop while the machine sleeps, and must be read *after* a
    message has arrived.

A wiped disk has forgotten its votes and the entries that it acknowledged. Were it to take its old place, two leaders of
one term could be elected, or committed entries lost. So a voter is a broker id *and* a directory id:
    * the shell writes the directory id, random, when it formats a directory, in the same file and the same atomic write
      as the first hard state. A directory with log files and no such file, or with an unreadable one, must be refused,
      never formatted over;
    * every voter set names directory ids, and every message names the one it is for. A message for another directory
      is dropped here. So nobody counts a wiped disk or asks it for its vote, and it stands in no election, being in no
      voter set. It comes back as an observer (`observe`), and as a voter once the old one is removed and it is added;
    * only the voters that create a cluster start from `first_snapshot(voters)`; all others start from `NOTHING`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from raystream.core import raft_follower
from raystream.core.raft_election import Election
from raystream.core.raft_leader import Leadership
from raystream.core.raft_log import RaftLog
from raystream.core.raft_messages import (
    AppendEntries,
    AppendEntriesReply,
    Entry,
    HardState,
    InstallSnapshot,
    Message,
    RaftSettings,
    Ready,
    RequestVote,
    RequestVoteReply,
    Role,
    Snapshot,
    Status,
    TimeoutNow,
    Voter,
    Voters,
)
from raystream.core.raft_progress import Progress
from raystream.errors import NotLeader

if TYPE_CHECKING:
    import random


class Raft:
    """One node. Starts from what its disk held: hard state, last snapshot, and whatever entries were found beside it.

    Guarantees, as long as every shell keeps the order of `Ready`: at most one leader per term; an entry in
    `Ready.committed` is at that index on every node for ever; a leader has every entry that was ever committed.
    """

    def __init__(
        self,
        identity: Voter,
        *,
        hard_state: HardState,
        snapshot: Snapshot,
        entries: Iterable[Entry],
        rng: random.Random,
        now_ms: float,
        settings: RaftSettings | None = None,
    ) -> None:
        self.identity = identity
        self.settings = settings or RaftSettings()
        self.log = RaftLog(snapshot, entries)
        self._rng = rng
        self._now_ms = now_ms
        self._hard_state = self._durable_hard_state = hard_state
        self._role: Role = "follower"
        self._leader: Voter | None = None
        self._leadership: Leadership | None = None
        self._election: Election | None = None
        self._outbox: list[Message] = []
        self._in_flight: Ready | None = None
        self._shown = Status("follower", hard_state.term, None, False)
        # It may have answered a leader's heartbeat just before it stopped: the lease that this gave must run out.
        self._leader_contact_ms = now_ms
        # A sole voter need not wait, unless a leader that it has just voted out of the voters may still lead.
        self._election_deadline_ms = now_ms
        if {*self.log.voters, *self.log.voters_before} != {identity}:
            self._reset_election_deadline()

    # What can be seen -----------------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        """The current term."""
        return self._hard_state.term

    @property
    def role(self) -> Role:
        """What this node is in its term."""
        return self._role

    @property
    def leader(self) -> Voter | None:
        """The leader of this term, if this node has heard of one."""
        return self._leader

    @property
    def voters(self) -> Voters:
        """The voter set that counts: the last one in the log, committed or not."""
        return self.log.voters

    @property
    def ready_to_lead(self) -> bool:
        """Whether this node leads, has committed an entry of its term, and its shell has applied all up to there."""
        return self._leadership is not None and self.log.applied_index >= self._leadership.term_start_index

    @property
    def lease_until_ms(self) -> float | None:
        """Until when on this node's clock it is certain that nobody else leads or commits anything; else None.

        A caller that reads its clock *after* it has read the state it will answer from, and finds it below this, has
        answered with the latest state. None unless `ready_to_lead`, and for the rest of a term in which the lead was
        offered to another. It may move back or become None when voters change.
        """
        if self._leadership is None or not self.ready_to_lead:
            return None
        return self._leadership.lease_until_ms(self._now_ms)

    @property
    def deadline_ms(self) -> float:
        """When `tick` has something to do at the latest."""
        return self._election_deadline_ms if self._leadership is None else self._leadership.next_heartbeat_ms

    def progress(self, of: Voter) -> Progress | None:
        """How far another node is, as its leader knows it; None where this node does not lead or does not send to it.

        A new voter is caught up when its `match_index` has come near to the log's last index within an election
        timeout; adding one that is far behind can stop all commits until it has come up.
        """
        return None if self._leadership is None else self._leadership.progress(of)

    def followers(self) -> Voters:
        """Everybody a leader sends its log to: the other voters and the observers."""
        return () if self._leadership is None else self._leadership.followers()

    # Inputs ---------------------------------------------------------------------------------------------------------

    def tick(self, now_ms: float) -> None:
        """Time has passed: heartbeats go out, elections begin, a leader that lost its majority steps down."""
        self._now_ms = max(self._now_ms, now_ms)
        if self._leadership is not None:
            if self._leadership.has_lost_quorum(self._now_ms):
                self._become_follower(self.term, None)
            elif self._now_ms >= self._leadership.next_heartbeat_ms:
                self._leadership.heartbeat(self._now_ms)
        elif self._now_ms >= self._election_deadline_ms:
            self._reset_election_deadline()
            if self._may_campaign():
                self._hold_election(pre_vote=True)
            else:
                self._leader = None  # nobody tells an observer that its leader is gone

    def step(self, message: Message, now_ms: float) -> None:
        """A message has arrived. One that is for another disk than this node's is dropped."""
        self._now_ms = max(self._now_ms, now_ms)
        if message.to != self.identity:
            return
        match message:
            case RequestVote():
                self._on_request_vote(message)
            case RequestVoteReply():
                self._on_request_vote_reply(message)
            case AppendEntries():
                self._on_append_entries(message)
            case AppendEntriesReply():
                self._on_append_entries_reply(message)
            case InstallSnapshot():
                self._on_install_snapshot(message)
            case TimeoutNow():
                self._on_timeout_now(message)

    def propose(self, data: bytes) -> int:
        """A leader appends `data`; its index. It is committed when `Ready.committed` holds that index with this term.

        Another term there means that it was lost, a later leadership that its outcome is not known yet. Raises
        NotLeader, Unavailable while the lead is being handed over, Overloaded at `max_uncommitted_bytes`.
        """
        return self._lead().propose(data)

    def propose_voters(self, voters: Iterable[Voter]) -> int:
        """A leader changes the voter set by one voter; the entry's index. The new set counts at once, for everything.

        Raises InvalidArgument where it is not exactly one voter, NotLeader, and Unavailable while the last change is
        not committed, before an entry of this term is committed, or while the lead is being handed over. A leader that
        removes itself leads until that is committed, then steps down. Who is removed is still sent the log, as an
        observer, until `forget`.
        """
        return self._lead().propose_voters(voters)

    def observe(self, observer: Voter) -> None:
        """A leader sends its log to a node that is no voter too, until `forget` or the end of its term."""
        self._lead().observe(observer)

    def forget(self, observer: Voter) -> None:
        """A leader stops sending to an observer. Raises InvalidArgument for a voter."""
        self._lead().forget(observer)

    def transfer_leadership(self, to: int) -> None:
        """A leader hands over to another voter: takes no more proposals, completes its log, has it stand for election.

        If that has not come about within an election timeout it leads on, without a lease. Raises InvalidArgument where
        `to` is no other voter, NotLeader, and Unavailable while the lead is being handed over already.
        """
        self._lead().transfer(to)

    def compact(self, index: int, data: bytes, *, keep_entries: int = 0) -> Snapshot:
        """The state machine's snapshot after applying `index`: entries up to there, but for the last few, may go.

        The caller writes the snapshot (whole, by rename, synced) and only then removes entries from its disk. Entries
        that are kept save followers who are a little behind from needing the snapshot.
        """
        return self.log.compact(index, data, keep_entries)

    # Output ---------------------------------------------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        """Whether `ready()` has work. False while some is under way."""
        if self._in_flight is not None:
            return False
        return bool(
            self._outbox
            or self.log.has_work
            or self._hard_state != self._durable_hard_state
            or self._status() != self._shown
        )

    def ready(self) -> Ready:
        """Takes the work there is. Its messages speak only of what this Ready, or one before it, makes durable."""
        assert self._in_flight is None, "the Ready before this one was not advanced"
        snapshot, truncate_from, entries, committed = self.log.take_work()
        status = self._status()
        ready = Ready(
            hard_state=None if self._hard_state == self._durable_hard_state else self._hard_state,
            snapshot=snapshot,
            truncate_from=truncate_from,
            entries=entries,
            messages=tuple(self._outbox),
            committed=committed,
            status=None if status == self._shown else status,
        )
        self._outbox.clear()
        self._shown = status
        self._in_flight = ready
        return ready

    def advance(self) -> None:
        """All that the last Ready said is done: it is durable, sent and applied."""
        assert self._in_flight is not None, "there is no Ready to advance"
        if self._in_flight.hard_state is not None:
            self._durable_hard_state = self._in_flight.hard_state
        self._in_flight = None
        self.log.work_done()
        if self._election is not None and self._hard_state == self._durable_hard_state:
            self._election.vote_for_itself()
            self._close_election(self._election)
        if self._leadership is not None:
            self._leadership.advance_commit()
            self._step_down_if_removed()

    def _status(self) -> Status:
        return Status(self._role, self.term, self._leader, self.ready_to_lead)

    # Terms and roles ------------------------------------------------------------------------------------------------

    def _lead(self) -> Leadership:
        if self._leadership is None:
            whom = "nobody is known to" if self._leader is None else f"broker {self._leader.id} does"
            raise NotLeader(f"broker {self.identity.id} does not lead the metadata log: {whom}")
        return self._leadership

    def _reset_election_deadline(self) -> None:
        timeout_ms = self.settings.election_timeout_ms
        self._election_deadline_ms = self._now_ms + timeout_ms * (1 + self._rng.random())

    def _become_follower(self, term: int, leader: Voter | None) -> None:
        if term > self.term:
            self._hard_state = HardState(term)
        self._role = "follower"
        self._leader = leader
        self._leadership = self._election = None
        self._reset_election_deadline()

    def _may_campaign(self) -> bool:
        """Whether the log names this node a voter. One whose removal may not be committed may still be needed for
        that: others may lack its entry, and so not get its vote (thesis, 4.2.2)."""
        return self.identity in self.log.voters or self.identity in self.log.voters_before

    def _hold_election(self, *, pre_vote: bool, transfer: bool = False) -> None:
        """A pre-vote asks whether the election could be won before a new term disturbs anybody (thesis, 9.6)."""
        self._role = "pre-candidate" if pre_vote else "candidate"
        self._leader = None
        if not pre_vote:
            self._hard_state = HardState(self.term + 1, self.identity)
        term = self.term + 1 if pre_vote else self.term
        self._election = Election(self.identity, term, self.log, pre_vote=pre_vote, transfer=transfer)
        self._outbox += self._election.requests()
        self._close_election(self._election)

    def _close_election(self, election: Election) -> None:
        if election.is_won and election.is_pre_vote:
            self._hold_election(pre_vote=False)
        elif election.is_won:
            self._become_leader()
        elif election.is_lost:
            self._become_follower(self.term, None)

    def _become_leader(self) -> None:
        self._role = "leader"
        self._leader = self.identity
        self._election = None
        self._leadership = Leadership(self.identity, self.term, self.log, self.settings, self._outbox, self._now_ms)

    def _step_down_if_removed(self) -> None:
        if self._leadership is not None and self._leadership.is_removed:
            self._become_follower(self.term, None)

    # Elections ------------------------------------------------------------------------------------------------------

    def _hears_a_leader(self) -> bool:
        """Whether a leader may still count on this node: votes for another wait until it cannot (thesis, 4.2.3, 6.4.1).

        A leader counts on itself for as long as it leads.
        """
        silence_ms = self._now_ms - self._leader_contact_ms
        return self._leadership is not None or silence_ms < self.settings.election_timeout_ms

    def _on_request_vote(self, request: RequestVote) -> None:
        """Answers whatever the voter set in this node's log says: the candidate may know a later one that names it.

        That is safe with an old disk, which remembers its votes; a wiped one was not reached (see `step`).
        """
        electable = self.log.is_up_to_date(request.last_log_index, request.last_log_term)
        if request.term < self.term or (self._hears_a_leader() and not request.transfer):
            granted = False
        elif request.pre_vote:
            granted = electable and request.term > self.term
        else:
            if request.term > self.term:
                self._become_follower(request.term, None)
            granted = electable and self._hard_state.voted_for in (None, request.source)
            if granted:
                self._hard_state = HardState(self.term, request.source)
                self._reset_election_deadline()
        self._outbox.append(
            RequestVoteReply(
                source=self.identity,
                to=request.source,
                term=self.term,
                requested_term=request.term,
                granted=granted,
                pre_vote=request.pre_vote,
            )
        )

    def _on_request_vote_reply(self, reply: RequestVoteReply) -> None:
        if reply.term > self.term:
            self._become_follower(reply.term, None)
        if self._election is not None:
            self._election.record(reply)
            self._close_election(self._election)

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        if message.term == self.term and self._leadership is None and self._may_campaign():
            self._reset_election_deadline()
            self._hold_election(pre_vote=False, transfer=True)

    # Replication ----------------------------------------------------------------------------------------------------

    def _follow(self, message: AppendEntries | InstallSnapshot) -> bool:
        """Whether the message is from this term's leader, who is then followed. One of an earlier term is told so."""
        if message.term < self.term:
            self._outbox.append(raft_follower.answer(message, self.term))
            return False
        if message.term > self.term or self._leader != message.source or self._role != "follower":
            assert self._leadership is None or message.term > self.term, f"two leaders of term {self.term}"
            self._become_follower(message.term, message.source)
        self._leader_contact_ms = self._now_ms
        self._reset_election_deadline()
        return True

    def _on_append_entries(self, request: AppendEntries) -> None:
        if self._follow(request):
            self._outbox.append(raft_follower.append(self.log, request))

    def _on_install_snapshot(self, request: InstallSnapshot) -> None:
        if self._follow(request):
            self._outbox.append(raft_follower.install(self.log, request))

    def _on_append_entries_reply(self, reply: AppendEntriesReply) -> None:
        if reply.term > self.term:
            self._become_follower(reply.term, None)
        elif self._leadership is not None and reply.requested_term == self.term:
            self._leadership.on_reply(reply, self._now_ms)
            self._step_down_if_removed()
