"""`docs/log-format.md` is enough to read a log: its reader is run, and its figures are the code's."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from raystream import batch as b
from raystream.storage import index, producer_state
from raystream.storage.files import DiskFiles
from tests.fakes.compacting import clean, keyed, rows_in
from tests.fakes.logs import append, commit, log_files, message, open_log

DOC = (Path(__file__).parents[3] / "docs" / "log-format.md").read_text()


@pytest.fixture
def directory(tmp_path: Path) -> str:
    path = f"{tmp_path}/p"
    log = open_log(DiskFiles(), path, segment_bytes=4_000)
    for i in range(0, 40, 2):
        codec = "zstd" if i % 3 else None
        append(log, message([b"%d" % i, b"%d" % (i + 1)], producer=(5, 1, i), compression=codec))
    commit(log)
    log.close()
    return path


def reader() -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "log-format.md", "exec"), names)
    return names["read_segment"]


def test_the_documented_reader_reads_every_segment(directory: str) -> None:
    read_segment = reader()
    rows = [row for path in log_files(directory) for row in read_segment(path)]
    assert [(offset, row["value"]) for offset, row in rows] == [(i, b"%d" % i) for i in range(40)]


def test_the_documented_reader_reads_what_compaction_wrote(tmp_path: Path) -> None:
    path = f"{tmp_path}/p"
    log = open_log(DiskFiles(), path, segment_bytes=4_000)
    for i in range(30):
        append(log, keyed([(b"k%d" % (i % 4), b"%d" % i), (b"other", b"x")]))
    commit(log)
    clean(log)
    read_segment = reader()
    rows = [(offset, row["key"], row["value"]) for path in log_files(path) for offset, row in read_segment(path)]
    assert rows == rows_in(log) and len(rows) < 60
    log.close()


def test_the_documented_reader_notices_damage(directory: str) -> None:
    read_segment = reader()
    path = Path(log_files(directory)[0])
    content = path.read_bytes()
    for place in range(700, len(content), 531):
        damaged = bytearray(content)
        damaged[place] ^= 2
        path.write_bytes(damaged)
        with pytest.raises((AssertionError, ValueError)):
            list(read_segment(path))


def test_the_zone_table_has_the_codes_places() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \|.*\| (?:producer|leader) \|$", DOC, re.MULTILINE)
    at = 0
    for place, width in rows:
        assert int(place) == at
        at += int(width)
    assert at == b.ZONE_BYTES == 340
    assert index.HEADER_BYTES == 84 and index.ENTRY_BYTES == 24


def test_index_checkpoint_and_snapshot_are_as_documented(directory: str) -> None:
    first = Path(log_files(directory)[0]).with_suffix(".index").read_bytes()
    magic, version, schema_id, count, base, end, covered, newest, _ = struct.unpack_from(">7sBIIqqqqq", first)
    assert (magic, version, schema_id, count, base, newest) == (b"RSINDEX", 1, 1, 1, 0, 1_000)
    assert covered == Path(log_files(directory)[0]).stat().st_size and end > 0
    assert struct.unpack_from(">I", first, 80)[0] == crc32c(first[:80] + first[84:])
    assert struct.unpack_from(">qqq", first, 84)[0::2] == (0, -(2**63))

    line = Path(directory, "checkpoint").read_bytes()
    name, crc, text = line.rstrip(b"\n").split(b" ", 2)
    assert name == b"raystream-checkpoint/1" and crc == b"%08x" % crc32c(name + b" " + text)
    stated = json.loads(text)
    assert stated["offset"] == stated["high_watermark"] == stated["producers"] == 40 and stated["clean"]
    assert set(re.findall(r"`(\w+)`", DOC.split("## 6.")[1].split("It is replaced")[0])) >= set(stated)

    snapshot = Path(directory, f"{40:020d}.producers").read_bytes()
    assert struct.unpack_from(">8sIqI", snapshot) == (b"RSPRODUC", 2, 40, 1)
    assert struct.unpack_from(">qhHq", snapshot, 24) == (5, 1, producer_state.REMEMBERED_BATCHES, -1)
    assert struct.unpack_from(">iiq", snapshot, 24 + 28 + 4 * 24) == (38, 39, 38)
    assert struct.unpack(">I", snapshot[-4:])[0] == crc32c(snapshot[:-4])
