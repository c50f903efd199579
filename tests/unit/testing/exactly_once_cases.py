"""What exactly once forbids, in histories made by hand: anomaly, a history that has it, and a clean twin."""

from __future__ import annotations

from tests.unit.testing.script import Script, T

EXACTLY_ONCE: dict[str, tuple[str, Script, Script]] = {
    "a position of a transaction is forgotten": (
        "position-moved-back",
        Script()
        .call("c", "ok", "commit", group="g", offsets=[(T, 0, 5)], txn="x")
        .end("x")
        .call("c", "ok", "committed", group="g", offsets=[(T, 0, 3)]),
        Script()
        .call("c", "ok", "commit", group="g", offsets=[(T, 0, 5)], txn="x")
        .end("x", "abort")
        .call("c", "ok", "committed", group="g", offsets=[(T, 0, 3)]),
    ),
    "half a transaction is there": (
        "half-transaction",
        Script()
        .send("a", 0, txn="x")
        .send("b", 0, 1, txn="x")
        .end("x", type="info")
        .poll((0, "a"))
        .drain((0, "a"), starts=(0, 0)),
        Script()
        .send("a", 0, txn="x")
        .send("b", 0, 1, txn="x")
        .end("x", type="info")
        .poll((0, "a"))
        .drain((0, "a"), (1, 0, "b"), starts=(0, 0)),
    ),
    "a fenced producer commits": (
        "zombie-write",
        Script().begin("x").send("a", 0, txn="x").begin("y", by="q").end("x"),
        Script()
        .begin("x")
        .send("a", 0, txn="x")
        .add("p", "invoke", "end", txn="x", outcome="commit")
        .begin("y", by="q")
        .add("p", "ok", "end", txn="x", outcome="commit"),
    ),
    "a fenced producer's transaction is read": (
        "zombie-write",
        Script().begin("x").send("a", 0, txn="x").begin("y", by="q").end("x", type="info").poll((0, "a")),
        Script().begin("x").begin("y", by="q", id="j").send("a", 0, txn="x").end("x", type="info").poll((0, "a")),
    ),
    "a fenced producer's write is taken": (
        "zombie-write",
        Script().begin("x").begin("y", by="q").send("a", 0, txn="x").end("x", "abort"),
        Script()
        .add("q", "invoke", "begin", txn="y", transactional_id="i")
        .begin("x")
        .add("q", "ok", "begin", txn="y", transactional_id="i")
        .send("a", 0, txn="x")
        .end("x"),
    ),
    "a pipeline makes two of one": (
        "moved-twice",
        Script().sends("a").send("A", 0, 1, source="a", group="g").send("B", 1, 1, source="a", group="g"),
        Script()
        .sends("a")
        .send("A", 0, 1, source="a", group="g", txn="x")
        .end("x", "abort")
        .send("B", 2, 1, source="a", group="g", txn="y")
        .end("y"),
    ),
    "a pipeline passes over a record": (
        "moved-never",
        Script()
        .sends("a", "b")
        .send("A", 0, 1, source="a", group="g", txn="x")
        .call("p", "ok", "commit", group="g", offsets=[(T, 0, 2)], txn="x")
        .end("x")
        .drain((0, "a"), (1, "b"), (1, 0, "A"), starts=(0, 0)),
        Script()
        .sends("a", "b")
        .send("A", 0, 1, source="a", group="g", txn="x")
        .call("p", "ok", "commit", group="g", offsets=[(T, 0, 1)], txn="x")
        .end("x")
        .drain((0, "a"), (1, "b"), (1, 0, "A"), starts=(0, 0)),
    ),
    "a position moves although its transaction is aborted": (
        "moved-never",
        Script()
        .sends("a", "b")
        .send("A", 0, 1, source="a", group="g")
        .send("B", 1, 1, source="b", group="g", txn="x")
        .end("x", "abort")
        .call("c", "ok", "committed", group="g", offsets=[(T, 0, 2)])
        .drain((0, "a"), (1, "b"), (1, 0, "A"), starts=(0, 0)),
        Script()
        .sends("a", "b")
        .send("A", 0, 1, source="a", group="g")
        .send("B", 1, 1, source="b", group="g", txn="x")
        .end("x", "abort")
        .call("c", "ok", "committed", group="g", offsets=[(T, 0, 1)])
        .drain((0, "a"), (1, "b"), (1, 0, "A"), starts=(0, 0)),
    ),
    "a pipeline changes the order": (
        "moved-out-of-order",
        Script().sends("a", "b").send("B", 0, 1, source="b", group="g").send("A", 1, 1, source="a", group="g"),
        Script().sends("a", "b").send("A", 0, 1, source="a", group="g").send("B", 1, 1, source="b", group="g"),
    ),
}
