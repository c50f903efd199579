"""The command line against a cluster that is only pretended: parsing, rendering, exit codes, sentences."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pytest

import raystream
from raystream.cli import main
from raystream.commands import localray
from raystream.errors import ClusterGone, InvalidTopicName, TopicNotFound
from raystream.schema import RAW_READ_SCHEMA
from raystream.types import (
    GroupDescription,
    OffsetMove,
    PartitionDescription,
    PartitionLag,
    Rows,
    TopicDescription,
    WriteResult,
)


class Sent:
    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self, timeout: float | None = None) -> Any:
        return self._result


class FakeProducer:
    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, topic: str, value: Any, key: Any = None) -> Sent:
        self._cluster.sent.append((topic, value, key))
        return Sent(None)

    def send_frame(self, topic: str, frame: pa.RecordBatch) -> Sent:
        self._cluster.frames.append((topic, frame))
        return Sent(WriteResult(topic, frame.num_rows, {0: (0, frame.num_rows)}))


class FakeBatch:
    partition = 0

    def __init__(self, rows: pa.Table, first: int) -> None:
        self._rows = rows
        self.offsets = range(first, first + rows.num_rows)

    def to_arrow(self) -> pa.Table:
        return self._rows


class FakeConsumer:
    """One partition of three batches of two rows each."""

    def __init__(self, cluster: FakeCluster, start: Any) -> None:
        self._cluster = cluster
        self._at = start.get(0, 0) if isinstance(start, dict) else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def commit(self) -> None:
        self._cluster.committed = self._at

    def position(self) -> dict[str, dict[int, int]]:
        return {"flights": {0: self._at}}

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self._at = offset

    def poll(self, timeout: float) -> FakeBatch | None:
        first, self._at = self._at, min(self._at + 2, FLIGHTS.num_rows)
        return FakeBatch(FLIGHTS.slice(first, self._at - first), first) if self._at > first else None


class FakeView:
    def __init__(self, first: int, end: int) -> None:
        self._range = range(first, end)

    def ranges(self) -> dict[int, range]:
        return {0: self._range}

    def offsets(self) -> dict[int, int]:
        return {0: self._range.stop}

    def to_arrow(self) -> pa.Table:
        return FLIGHTS.slice(self._range.start, len(self._range))


FLIGHTS = pa.table(
    {"carrier": ["UA", "AA", "B6", "UA", "DL", "[b]"], "delay": [2.0, None, float("nan"), 1.5, 0.0, 3.0]}
)


def described(name: str, *, kind: Any = "typed", records: int = 6, partitions: int = 1) -> TopicDescription:
    rows = Rows(PartitionDescription(name, p, 0, 0, (0,), (0,), 0, records, 2048, 1) for p in range(partitions))
    schema = FLIGHTS.schema if kind == "typed" else None
    return TopicDescription(name, kind, partitions, 1, records, 2048, schema=schema, partition_list=rows)


class FakeCluster:
    def __init__(self) -> None:
        self.there = {"flights": described("flights"), "lines": described("lines", kind="raw")}
        self.sent: list[tuple[str, Any, Any]] = []
        self.frames: list[tuple[str, pa.RecordBatch]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.committed: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def topics(self) -> Rows[TopicDescription]:
        return Rows(self.there.values())

    def describe_topic(self, name: str) -> TopicDescription:
        if name not in self.there:
            raise TopicNotFound(f"there is no topic {name!r}")
        return self.there[name]

    def create_topic(self, name: str, *, partitions: int = 1, **options: Any) -> TopicDescription:
        if "/" in name:
            raise InvalidTopicName(f"{name!r} is no topic name")
        self.calls.append(("create_topic", name, partitions, options))
        kind = "raw" if options.get("schema") is None else "typed"
        self.there[name] = described(name, kind=kind, partitions=partitions, records=0)
        return self.there[name]

    def delete_topic(self, name: str) -> None:
        self.describe_topic(name)
        del self.there[name]

    def groups(self) -> Rows[GroupDescription]:
        raise ClusterGone("the process that owned this cluster has exited")

    def lag(self, group: str) -> Rows[PartitionLag]:
        return Rows([PartitionLag("flights", 0, 4, 6, 2, None)])

    def reset_offsets(self, group: str, topic: str, to: Any, dry_run: bool, *, shift: int | None) -> Rows[OffsetMove]:
        self.calls.append(("reset_offsets", group, topic, to, dry_run, shift))
        return Rows([OffsetMove("flights", 0, None, 4)])

    def producer(self, **_: Any) -> FakeProducer:
        return FakeProducer(self)

    def consumer(self, topic: str, group: str | None, start: Any, *, isolation: str) -> FakeConsumer:
        self.calls.append(("consumer", isolation))
        return FakeConsumer(self, start)

    def read(
        self, topic: str, start: Any = "earliest", end: Any = None, order: str = "partition", *, isolation: str
    ) -> FakeView:
        self.calls.append(("read", start, order, isolation))
        return FakeView(0 if start == "earliest" else start[0], 6 if end is None else end[0])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    fake, logger = FakeCluster(), logging.getLogger("raystream")
    level = logger.level
    monkeypatch.setattr(localray, "use_token", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(vars(raystream), "connect", lambda address, data_dir: fake)
    yield fake
    logger.setLevel(level)


def given(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


def refused(*words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


# Topics and groups --------------------------------------------------------------------------------------------------


def test_topic_list_is_a_table(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topic", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["topic", "kind", "partitions", "replicas", "records", "size", "key"]
    assert lines[1].split() == ["flights", "typed", "1", "1", "6", "2.0", "KiB", "–"]


@pytest.mark.parametrize("words", [["--json", "topic", "list"], ["topic", "list", "--json"]])
def test_topic_list_for_programs(words: list[str], cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [topic["name"] for topic in found] == ["flights", "lines"]
    assert found[0]["schema"] == {"carrier": "string", "delay": "double"}


def test_topic_create_passes_what_was_said(cluster: FakeCluster) -> None:
    words = ["topic", "create", "t", "--partitions", "4", "--schema", "a:string", "--key", "a", "--config", "flush=os"]
    assert main(words) == 0
    _, name, partitions, options = cluster.calls[0]
    assert (name, partitions, options["key"], options["config"]) == ("t", 4, "a", {"flush": "os"})
    assert options["schema"] == pa.schema([("a", pa.string())])
    assert options["exist_ok"] is False


def test_a_wrong_value_is_wrong_usage(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topic", "create", "a/b"]) == 2
    assert capsys.readouterr().err == "raystream: 'a/b' is no topic name\n"


def test_a_missing_topic_fails_in_one_sentence(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topic", "delete", "nowhere"]) == 1
    assert capsys.readouterr() == ("", "raystream: there is no topic 'nowhere'\n")


def test_a_lost_cluster_fails_in_one_sentence(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["group", "list"]) == 1
    assert capsys.readouterr().err == "raystream: the process that owned this cluster has exited\n"


def test_an_address_where_nobody_answers(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topic", "list", "--address", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("raystream: nobody answers at 127.0.0.1:1")


def test_group_reset(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["group", "reset", "g", "flights", "--to", "0:4"]) == 0
    assert main(["group", "reset", "g", "flights", "--shift", "-5", "--dry-run"]) == 0
    assert main(["group", "reset", "g", "flights", "--to-time", "2h"]) == 0
    assert cluster.calls == [
        ("reset_offsets", "g", "flights", {0: 4}, False, None),
        ("reset_offsets", "g", "flights", None, True, -5),
        ("reset_offsets", "g", "flights", dt.timedelta(hours=2), False, None),
    ]
    assert capsys.readouterr().out.splitlines()[1].split() == ["flights", "0", "–", "4"]
    for bad in (["--to-time", "earliest"], ["--shift", "x"], ["--to", "latest", "--shift", "1"], []):
        with pytest.raises(SystemExit):
            main(["group", "reset", "g", "flights", *bad])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["topic"],
        ["topic", "create", "t", "--partitions", "0"],
        ["topic", "alter", "t"],
        ["topic", "reassign", "t"],
        ["topic", "reassign", "t", "--replicas", "0"],
        ["broker", "drain", "first"],
        ["group", "reset", "g", "t"],
        ["group", "reset", "g", "t", "--to", "noon"],
        ["consume", "flights", "--tail", "3", "--group", "g"],
        ["consume", "flights", "--tail", "3", "--start", "1h"],
        ["consume", "flights", "--format", "xml"],
        ["consume", "flights", "--format", "table", "--follow"],
        ["produce", "lines", "--key", "carrier"],
        ["produce", "flights", "f.csv", "--follow"],
        ["demo", "--resume"],
        ["demo", "--address", "auto"],
        ["frobnicate"],
    ],
)
def test_wrong_usage(words: list[str], cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    refused(*words)
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: raystream" in err
    assert "Traceback" not in err


# Interruptions ------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_quietly(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "topics", interrupted)
    assert main(["topic", "list"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe_ends_quietly(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["consume", "flights", "--format", "json"]) == 0
    assert capsys.readouterr().err == ""


# Producing ----------------------------------------------------------------------------------------------------------


def test_lines_from_stdin(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, b"one\r\ntwo\n\nlast")
    assert main(["produce", "lines"]) == 0
    assert cluster.sent == [("lines", value, None) for value in (b"one", b"two", b"", b"last")]


def test_a_missing_topic_is_created(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, b"one\n")
    assert main(["produce", "new", "--partitions", "3"]) == 0
    assert cluster.calls == [("create_topic", "new", 3, {})]


def test_csv_becomes_a_typed_topic(cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.csv").write_text("carrier,delay,empty\nUA,2,\nAA,,\n")
    assert main(["produce", "new", str(tmp_path / "f.csv"), "--key", "carrier", "--json"]) == 0
    _, _, _, options = cluster.calls[0]
    assert options["key"] == "carrier"
    assert options["schema"].field("empty").type == pa.string()
    assert [frame.to_pylist() for _, frame in cluster.frames] == [
        [{"carrier": "UA", "delay": 2, "empty": None}, {"carrier": "AA", "delay": None, "empty": None}]
    ]
    assert json.loads(capsys.readouterr().out)["records"] == 2


def test_csv_is_read_with_the_topics_types(cluster: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("carrier,delay\n12,2\n")
    assert main(["produce", "flights", str(tmp_path / "f.csv")]) == 0
    assert cluster.frames[0][1].schema == FLIGHTS.schema


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "arrows", "jsonl"])
def test_files_of_rows(suffix: str, cluster: FakeCluster, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path, rows = tmp_path / f"f.{suffix}", FLIGHTS.slice(0, 2)
    if suffix == "parquet":
        pq.write_table(rows, path)
    elif suffix == "jsonl":
        path.write_text('{"carrier": "UA", "delay": 2.0}\n{"carrier": "AA", "delay": null}\n')
    else:
        make = pa.ipc.new_file if suffix == "arrow" else pa.ipc.new_stream
        with make(path, rows.schema) as writer:
            writer.write_table(rows)
    assert main(["produce", "flights", str(path)]) == 0
    assert pa.Table.from_batches([frame for _, frame in cluster.frames]).equals(rows)


def test_json_lines_into_a_raw_topic_stay_as_they_are(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, b'{"user": 7, "b":1}\n\n{"user": "x"}\n')
    assert main(["produce", "lines", "--format", "json", "--key", "user"]) == 0
    assert cluster.sent == [("lines", b'{"user": 7, "b":1}', "7"), ("lines", b'{"user": "x"}', "x")]


def test_json_lines_make_a_typed_topic(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, b'{"user": 7}\n{"user": 8}\n')
    assert main(["produce", "new", "--format", "json", "--key", "user"]) == 0
    _, _, _, options = cluster.calls[0]
    assert (options["schema"], options["key"]) == (pa.schema([("user", pa.int64())]), "user")
    assert cluster.frames[0][1].to_pylist() == [{"user": 7}, {"user": 8}]


def test_json_lines_into_a_typed_topic_come_one_by_one(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, b'{"carrier": "UA", "delay": 1.5}\n')
    assert main(["produce", "flights", "--format", "json"]) == 0
    assert cluster.sent == [("flights", {"carrier": "UA", "delay": 1.5}, None)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"{nope}\n", "line 1 is not JSON"),
        (b'{"user": 1}\n[1]\n', "line 2 is not a JSON object"),
        (b'{"u": 1}\n', "line 1 has no 'user'"),
    ],
)
def test_wrong_json(
    text: bytes,
    sentence: str,
    cluster: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given(monkeypatch, text)
    assert main(["produce", "lines", "--format", "json", "--key", "user"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [("f.parquet", b"no"), ("f.arrow", b"no"), ("f.csv", b""), ("f.csv", b"a,b\n1\n"), ("f.jsonl", b"{")],
)
def test_a_file_that_is_not_what_it_says(
    name: str, content: bytes, cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["produce", "new", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert name in err
    assert err.count("\n") == 1
    assert cluster.frames == []


def test_a_missing_file(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["produce", "lines", "nowhere.csv"]) == 2
    assert capsys.readouterr().err == "raystream: there is no file nowhere.csv\n"


def test_a_missing_key_column(cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.csv").write_text("a,b\n1,2\n")
    assert main(["produce", "new", str(tmp_path / "f.csv"), "--key", "c"]) == 2
    assert "there is no column 'c'; there are: a, b" in capsys.readouterr().err


# Consuming ----------------------------------------------------------------------------------------------------------


def test_json_lines_hold_no_nan(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consume", "flights"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["delay"] for row in rows] == [2.0, None, None, 1.5, 0.0, 3.0]


def test_max_leaves_the_rest_to_the_group(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consume", "flights", "--group", "g", "--max", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert cluster.committed == 3


def test_max_ends_a_read_alone(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consume", "flights", "--max", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_group_reads_to_the_end(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consume", "flights", "--group", "g", "--start", "0:1", "--isolation", "read_uncommitted"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert {call[-1] for call in cluster.calls} == {"read_uncommitted"}


def test_tail(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consume", "flights", "--tail", "2", "--format", "csv"]) == 0
    assert cluster.calls[-1] == ("read", {0: 4}, "time", "read_committed")
    assert capsys.readouterr().out == '"carrier","delay"\n"DL",0\n"[b]",3\n'


def test_table(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["consume", "flights", "--format", "table"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["carrier", "delay"]
    assert lines[-1] == ["[b]", "3.0"]


def test_a_table_of_raw_records(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record: dict[str, object] = {"offset": 7, "key": None, "value": b"a\x1b[31m\n", "topic": "lines", "partition": 1}
    record |= {"timestamp": 1_400_000_000_123, "timestamp_type": 0, "headers": []}
    monkeypatch.setattr(FakeView, "to_arrow", lambda view: pa.Table.from_pylist([record], RAW_READ_SCHEMA))
    assert main(["consume", "lines", "--format", "table"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["partition", "offset", "timestamp", "key", "value"]
    assert lines[1] == ["1", "7", "2014-05-13", "16:53:20.123", r"a\x1b[31m\n"]


def test_parquet(cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    assert main(["consume", "flights", "-o", str(tmp_path / "f.parquet")]) == 0
    assert pq.read_table(tmp_path / "f.parquet").drop(["delay"]).equals(FLIGHTS.drop(["delay"]))
    assert "6 records into" in capsys.readouterr().err


def test_an_output_that_cannot_be_written(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["consume", "flights", "-o", str(tmp_path / "no" / "f.csv")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
