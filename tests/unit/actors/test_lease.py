"""The lease that a broker shares with its node's actors."""

from __future__ import annotations

from pathlib import Path

from raystream.actors.lease import Lease


def test_actors_read_what_the_broker_wrote(tmp_path: Path) -> None:
    own = Lease(tmp_path / "lease", owner=True)
    read = Lease(tmp_path / "lease")
    assert read.until_ms() == 0
    own.extend(12_345.5)
    assert read.until_ms() == 12_345.5


def test_a_broker_that_starts_again_begins_without_a_lease(tmp_path: Path) -> None:
    Lease(tmp_path / "lease", owner=True).extend(1e9)
    read = Lease(tmp_path / "lease")
    assert Lease(tmp_path / "lease", owner=True).until_ms() == 0
    assert read.until_ms() == 0
