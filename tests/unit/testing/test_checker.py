"""Every anomaly in a history made by hand, beside a clean twin; the report and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystream.errors import InvalidArgument
from raystream.testing import checker
from raystream.testing.history import Operation, Recorder, check
from raystream.testing.report import ANOMALIES
from tests.unit.testing.exactly_once_cases import EXACTLY_ONCE
from tests.unit.testing.script import Script, T


def found(script: Script) -> dict[str, int]:
    return script.check().counts


def two(process: str, **fields: object) -> Script:
    return Script().call(process, "ok", "assign", **fields)


BAD: dict[str, tuple[str, Script, Script]] = {
    "two values read at one offset": (
        "inconsistent-offsets",
        Script().send("a", None, type="info").send("b", None, type="info").poll((0, "a")).poll((0, "b"), by="d"),
        Script().send("a", None, type="info").send("b", None, type="info").poll((0, "a")).poll((1, "b"), by="d"),
    ),
    "another value read than acknowledged": (
        "inconsistent-offsets",
        Script().send("a", 0).send("b", None, type="info").poll((0, "b")),
        Script().send("a", 0).send("b", None, type="info").poll((0, "a"), (1, "b")),
    ),
    "one value at two offsets": (
        "duplicate",
        Script().sends("a").poll((0, "a"), (1, "a")),
        Script().sends("a").poll((0, "a")).poll((0, "a"), by="d"),
    ),
    "one value in two partitions": (
        "duplicate",
        Script().sends("a").poll((1, 0, "a")),
        Script().send("a", 0, 1).poll((1, 0, "a")),
    ),
    "a hole under what was read": (
        "lost-write",
        Script().sends("a", "b", "c").poll((0, "a")).poll((2, "c"), by="d"),
        Script().sends("a", "b", "c").poll((0, "a")).poll((1, "b"), (2, "c"), by="d"),
    ),
    "the first record is gone": (
        "lost-write",
        Script().sends("a", "b").poll((1, "b")),
        Script().sends("a", "b").poll((0, "a")),
    ),
    "read once and gone in the end": (
        "lost-write",
        Script().send("a", None, type="info").send("b", 1).poll((0, "a")).drain((1, "b")),
        Script().send("a", None, type="info").send("b", 1).poll((0, "a")).drain((0, "a"), (1, "b")),
    ),
    "deleted before the final read began": (
        "lost-write",
        Script().sends("a", "b").drain((1, "b")),
        Script().sends("a", "b").drain((1, "b"), starts=(1,)),
    ),
    "a lost tail": (
        "unseen",
        Script().sends("a", "b").drain((0, "a")),
        Script().sends("a", "b").drain((0, "a"), (1, "b")),
    ),
    "a whole partition lost": (
        "unseen",
        Script().sends("a").drain(),
        Script().sends().send("a", None, type="info").send("b", 0, 1).drain((1, 0, "b"), starts=(0, 0)),
    ),
    "acknowledged without an offset and lost": (
        "unseen",
        Script().send("a", None).drain(),
        Script().send("a", None).drain((0, "a")),
    ),
    "lost after the final read began": (
        "unseen",
        Script().sends("a").drain(),
        Script().add("r", "invoke", "drain").sends("a").add("r", "ok", "drain", offsets=[(T, 0, 0)]),
    ),
    "a failed send was read": (
        "aborted-read",
        Script().send("a", None, type="fail").poll((0, "a")),
        Script().send("a", None, type="info").poll((0, "a")),
    ),
    "an aborted transaction was read": (
        "aborted-read",
        Script().send("a", 0, txn="x").end("x", "abort").poll((0, "a")),
        Script().send("a", 0, txn="x").end("x", "abort").send("b", 1).drain((1, "b")),
    ),
    "a refused commit was read": (
        "aborted-read",
        Script().send("a", 0, txn="x").end("x", type="fail").poll((0, "a")),
        Script().send("a", 0, txn="x").end("x", type="info").poll((0, "a")),
    ),
    "an abort that may have come too late": (
        "aborted-read",
        Script().send("a", 0, txn="x").end("x", "abort", type="info").poll((0, "a")),
        Script().send("a", 0, txn="x").end("x", type="info").end("x", "abort", type="info").poll((0, "a")),
    ),
    "its own uncommitted write": (
        "uncommitted-read",
        Script().send("a", 0, txn="x").poll((0, "a"), by="p", txn="x").end("x"),
        Script().send("a", 0, txn="x").end("x").poll((0, "a"), by="p", txn="y"),
    ),
    "somebody else's uncommitted write": (
        "uncommitted-read",
        Script().send("a", 0, txn="x").poll((0, "a")).end("x"),
        Script()
        .send("a", 0, txn="x")
        .add("p", "invoke", "end", txn="x", outcome="commit")
        .poll((0, "a"))
        .add("p", "ok", "end", txn="x", outcome="commit"),
    ),
    "a value out of nowhere": (
        "unwritten-read",
        Script().sends("a").poll((0, "a"), (1, "z")),
        Script().poll((0, "z")),
    ),
    "a skip inside a poll": (
        "poll-skip",
        Script().sends("a", "b", "c").poll((0, "a"), (2, "c")).poll((1, "b"), by="d"),
        Script().sends("a").send("b", None, type="fail").send("c", 2).poll((0, "a"), (2, "c")),
    ),
    "a skip between polls": (
        "poll-skip",
        Script().sends("a", "b", "c").poll((0, "a")).poll((2, "c")).poll((1, "b"), by="d"),
        Script()
        .sends("a", "b", "c")
        .poll((0, "a"))
        .add("c", "ok", "assign", partitions=[(T, 0)])
        .poll((2, "c"))
        .poll((1, "b"), by="d"),
    ),
    "a skip of a committed transaction": (
        "poll-skip",
        Script().sends("a").send("b", 1, txn="x").end("x").send("c", 2).poll((0, "a"), (2, "c")).poll((1, "b"), by="d"),
        Script().sends("a").send("b", 1, txn="x").end("x", "abort").send("c", 2).poll((0, "a"), (2, "c")),
    ),
    "a skip at the beginning": (
        "poll-skip",
        two("c", offsets=[(T, 0, 0)]).sends("a", "b").poll((1, "b")).poll((0, "a"), by="d"),
        two("c", offsets=[(T, 0, 1)]).sends("a", "b").poll((1, "b")).poll((0, "a"), by="d"),
    ),
    "back inside a poll": (
        "nonmonotonic-poll",
        Script().sends("a", "b").poll((1, "b"), (0, "a")),
        Script().sends("a").send("b", 0, 1).poll((1, 0, "b"), (0, 0, "a")),
    ),
    "back between polls": (
        "nonmonotonic-poll",
        Script().sends("a").poll((0, "a")).poll((0, "a")),
        Script().sends("a").poll((0, "a")).call("c", "ok", "seek", offsets=[(T, 0, 0)]).poll((0, "a")),
    ),
    "back while another partition moved": (
        "nonmonotonic-poll",
        Script().sends("a").poll((0, "a")).call("c", "ok", "revoke", partitions=[(T, 1)]).poll((0, "a")),
        Script().sends("a").poll((0, "a")).call("c", "ok", "revoke", partitions=[(T, 0)]).poll((0, "a")),
    ),
    "before where it was to begin": (
        "nonmonotonic-poll",
        two("c", offsets=[(T, 0, 1)]).sends("a", "b").poll((0, "a")),
        two("c", offsets=[(T, 0, 1)]).sends("a", "b").poll((1, "b")).call("c", "ok", "crash").poll((0, "a")),
    ),
    "a group passes over a record": (
        "group-skip",
        Script()
        .sends("a", "b", "c")
        .poll((0, "a"), group="g")
        .poll((2, "c"), by="d", group="g")
        .drain((0, "a"), (1, "b"), (2, "c")),
        Script()
        .sends("a", "b", "c")
        .poll((0, "a"), group="g")
        .poll((1, "b"), (2, "c"), by="d", group="g")
        .drain((0, "a"), (1, "b"), (2, "c")),
    ),
    "a producer's records change places": (
        "nonmonotonic-send",
        Script().send("a", 1).send("b", 0),
        Script().send("a", 1).send("b", 0, by="q").send("c", 0, 1),
    ),
    "a producer's unknown record overtakes": (
        "nonmonotonic-send",
        Script().send("a", None, type="info").send("b", 0).poll((0, "b"), (1, "a")),
        Script().send("a", None, type="info").add("p", "ok", "crash").send("b", 0).poll((0, "b"), (1, "a")),
    ),
    "a commit moves back": (
        "position-moved-back",
        Script()
        .call("c", "ok", "commit", group="g", offsets=[(T, 0, 5)])
        .call("d", "ok", "commit", group="g", offsets=[(T, 0, 4)]),
        Script()
        .add("d", "invoke", "commit", group="g", offsets=[(T, 0, 4)])
        .call("c", "ok", "commit", group="g", offsets=[(T, 0, 5)])
        .add("d", "ok", "commit", group="g", offsets=[(T, 0, 4)]),
    ),
    "a committed position is forgotten": (
        "position-moved-back",
        Script()
        .call("c", "ok", "commit", group="g", offsets=[(T, 0, 5)])
        .call("c", "ok", "committed", group="g", offsets=[(T, 0, 3)]),
        Script()
        .call("c", "info", "commit", group="g", offsets=[(T, 0, 5)])
        .call("c", "ok", "committed", group="g", offsets=[(T, 0, 3)]),
    ),
    "a commit moves back without a seek": (
        "position-moved-back",
        Script()
        .call("c", "ok", "commit", group="g", offsets=[(T, 0, 5)])
        .call("c", "ok", "commit", group="g", offsets=[(T, 0, 1)]),
        Script()
        .call("c", "ok", "commit", group="g", offsets=[(T, 0, 5)])
        .call("c", "ok", "seek", offsets=[(T, 0, 1)])
        .call("c", "ok", "commit", group="g", offsets=[(T, 0, 1)]),
    ),
    "two owners": (
        "two-owners",
        two("c", partitions=[(T, 0)], group="g", epoch=3).call(
            "d", "ok", "assign", partitions=[(T, 0)], group="g", epoch=3
        ),
        two("c", partitions=[(T, 0)], group="g", epoch=3).call(
            "d", "ok", "assign", partitions=[(T, 0)], group="g", epoch=4
        ),
    ),
    **EXACTLY_ONCE,
    "a circle of writes": (
        "write-cycle",
        Script()
        .send("a", 0, 0, txn="x")
        .send("b", 1, 0, txn="y", by="q")
        .send("c", 0, 1, txn="y", by="q")
        .send("d", 1, 1, txn="x")
        .end("x")
        .end("y"),
        Script()
        .send("a", 0, 0, txn="x")
        .send("b", 1, 0, txn="y", by="q")
        .send("c", 1, 1, txn="y", by="q")
        .send("d", 0, 1, txn="x")
        .end("x")
        .end("y"),
    ),
    "a circle of reads": (
        "information-cycle",
        Script()
        .send("a", 0, 0, txn="x")
        .send("b", 0, 1, txn="y", by="q")
        .add("p", "invoke", "end", txn="x", outcome="commit")
        .add("q", "invoke", "end", txn="y", outcome="commit")
        .poll((0, 0, "a"), by="q", txn="y")
        .poll((1, 0, "b"), by="p", txn="x")
        .add("p", "ok", "end", txn="x", outcome="commit")
        .add("q", "ok", "end", txn="y", outcome="commit"),
        Script()
        .send("a", 0, 0, txn="x")
        .send("b", 0, 1, txn="y", by="q")
        .end("x")
        .poll((0, 0, "a"), by="q", txn="y")
        .end("y", by="q")
        .poll((1, 0, "b"), by="p", txn="z"),
    ),
    "two workers accept one record": (
        "accepted-twice",
        Script().sends("0").deliver(0).deliver(0, by="v").settle(0).settle(0, by="v"),
        Script().sends("0").deliver(0).deliver(0, by="v").settle(0, type="info").settle(0, by="v"),
    ),
    "a record comes again after it was accepted": (
        "delivered-after-accept",
        Script().sends("0").deliver(0).settle(0).deliver(0, by="v", delivery=2),
        Script().sends("0").deliver(0).settle(0, word="release").deliver(0, by="v", delivery=2).settle(0, delivery=2),
    ),
    "a late word counts after another delivery has begun": (
        "delivered-after-accept",
        Script().sends("0").deliver(0).deliver(0, by="v", delivery=2).settle(0),
        Script().sends("0").deliver(0).deliver(0, by="v", delivery=2).settle(0, type="fail").settle(0, delivery=2),
    ),
    "a queue is done with a record that nobody accepted": (
        "settled-unhandled",
        Script().sends("0", "1").deliver(0, 1).settle(0).settle(1, word="release").settled(2),
        Script().sends("0", "1").deliver(0, 1).settle(0).settle(1, word="release").settled(1),
    ),
    "a record was rejected and is no dead letter": (
        "settled-unhandled",
        Script().sends("0", "1").deliver(0, 1).settle(0).settle(1, word="reject").settled(2),
        Script().sends("0", "1").deliver(0, 1).settle(0).settle(1, word="reject").bury(1).settled(2),
    ),
    "the only word of a record was refused": (
        "settled-unhandled",
        Script().sends("0").deliver(0).settle(0, type="fail").settled(1),
        Script().sends("0").deliver(0).settle(0, type="info").settled(1),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_anomaly_is_found_and_its_clean_twin_passes(case: str) -> None:
    name, bad, clean = BAD[case]
    report = bad.check()
    assert report.counts.get(name) == 1, report
    (anomaly,) = report.named(name)
    assert anomaly.sentence and anomaly.operations
    assert all(operation in bad.operations for operation in anomaly.operations)
    assert found(clean) == {}, clean.check()


def test_every_anomaly_has_a_case() -> None:
    assert {name for name, _, _ in BAD.values()} == ANOMALIES.keys()


@pytest.mark.parametrize("case", BAD)
def test_an_ignored_anomaly_does_not_count(case: str) -> None:
    name, bad, _ = BAD[case]
    assert name not in bad.check(ignore=[name]).counts


def test_write_dependencies_do_not_count_where_write_cycles_are_ignored() -> None:
    history = (
        Script()
        .send("a", 0, 0, txn="x")
        .send("b", 1, 0, txn="y", by="q")
        .send("c", 0, 1, txn="y", by="q")
        .end("y", by="q")
        .poll((1, 0, "c"), by="p", txn="x")
        .end("x")
    )
    assert found(history) == {"information-cycle": 1}
    assert history.check(ignore=["write-cycle"]).ok


def test_a_reader_of_everything_may_see_what_is_open_or_aborted_and_nothing_twice() -> None:
    history = Script().send("a", 0, txn="x").poll((0, "a"), isolation="read_uncommitted").end("x", "abort")
    assert history.send("b", 2).drain((2, "b")).check().ok
    assert found(history.poll((0, "b"), by="d", isolation="read_uncommitted")) == {
        "inconsistent-offsets": 1, "duplicate": 1,
    }  # fmt: skip


def test_a_read_only_transaction_closes_no_circle() -> None:
    history = Script().send("a", 0, txn="x").end("x").poll((0, "a"), by="q", txn="y").end("y", by="q")
    assert history.check().ok


def test_a_transaction_whose_commit_is_unknown_may_be_absent_or_there() -> None:
    def unknown() -> Script:
        return Script().send("a", 0, txn="x").end("x", type="info")

    assert found(unknown().drain()) == {}
    assert found(unknown().drain((0, "a"))) == {}
    assert found(unknown().poll((0, "a")).drain()) == {"unseen": 1}


def test_without_a_final_read_the_report_says_what_is_unchecked() -> None:
    report = Script().sends("a").check()
    assert report.ok
    assert "no final read of t-0" in report.notes[0]
    assert Script().sends("a").drain((0, "a")).check().notes == ()


def test_two_final_reads_at_once_do_not_disturb_each_other() -> None:
    history = Script().sends("a", "b").add("r", "invoke", "drain").add("s", "invoke", "drain")
    history.poll((0, "a"), (1, "b"), by="r").poll((0, "a"), (1, "b"), by="s")
    history.add("r", "ok", "drain", offsets=[(T, 0, 0)]).add("s", "ok", "drain", offsets=[(T, 0, 0)])
    assert history.check().ok


def test_the_report_counts_everything_and_writes_out_a_few() -> None:
    history = Script().sends(*map(str, range(100))).drain()
    report = history.check(examples=3)
    assert report.counts == {"unseen": 100}
    assert len(report.named("unseen")) == 3
    assert report.operations == {
        "drain invoke": 1, "drain ok": 1, "poll invoke": 1, "poll ok": 1, "send invoke": 100, "send ok": 100,
    }  # fmt: skip
    assert "204 operations" in str(report) and "unseen" in str(report) and "'0' was acknowledged" in str(report)


def test_an_iterator_is_checked_like_a_list() -> None:
    operations = Script().sends("a").drain().operations
    assert check(iter(operations)) == check(operations)


@pytest.mark.parametrize(
    ("operations", "sentence"),
    [
        (Script().sends("a").send("a", 1).operations, "was sent before"),
        (Script().sends("a").operations[::-1], "earlier than the one before"),
        (Script().add("r", "ok", "drain").operations, "did not begin"),
        (Script().add("p", "invoke", "send", topic=T).operations, "needs topic and value"),
        (Script().add("p", "ok", "end", txn="x").operations, "needs txn and outcome"),
        (Script().add("p", "ok", "begin", txn="x").operations, "needs txn and transactional_id"),
        (Script().add("r", "invoke", "drain").operations * 64, None),
    ],
)
def test_what_is_no_history_is_refused(operations: list[Operation], sentence: str | None) -> None:
    with pytest.raises(InvalidArgument, match=sentence or "at most 63"):
        check(operations)


def test_an_anomaly_that_does_not_exist_cannot_be_ignored() -> None:
    with pytest.raises(InvalidArgument, match="there is no anomaly unsen"):
        check([], ignore=["unsen"])


def write(path: Path, operations: list[Operation]) -> str:
    with Recorder(path) as recorder:
        for operation in operations:
            given = {n: v for n, v in operation._asdict().items() if v is not None and v != ()}
            recorder.record(**{n: v for n, v in given.items() if n != "time"})
    return str(path)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = write(tmp_path / "clean", Script().sends("a").drain((0, "a")).operations)
    bad = write(tmp_path / "bad", Script().sends("a").drain().operations)
    assert checker.main([clean]) == 0
    assert "no anomaly" in capsys.readouterr().out
    assert checker.main([bad]) == 1
    assert "unseen: 'a' was acknowledged at t-0 offset 0" in capsys.readouterr().out
    assert checker.main([bad, "--ignore", "unseen"]) == 0
    assert checker.main([str(tmp_path / "none")]) == 2
    (tmp_path / "bad").write_text("{}\n")
    assert checker.main([bad]) == 2
    assert "line 1" in capsys.readouterr().err
