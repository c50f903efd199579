"""Claims on a data root: one live cluster, one broker per slot, nothing to clean up after a kill -9."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raystream.errors import DataDirectoryInUse, DataDirectoryUnusable
from raystream.storage import root as roots


@contextmanager
def other_process(script: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `script`, says "ready", and waits."""
    text = textwrap.dedent(script) + '\nimport sys\nprint("ready", flush=True)\nsys.stdin.read()\n'
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "DYING_OWNER_WAIT_S", 0.3)


def test_a_root_is_claimed_once_until_it_is_released(tmp_path: Path) -> None:
    claim = roots.claim(tmp_path)
    assert claim is not None
    assert roots.claim(tmp_path) is None
    claim.publish(cluster="c", address="127.0.0.1:1", embedded=True)
    owner = roots.read_owner(tmp_path)
    assert owner is not None
    assert owner.pid == os.getpid()
    claim.release()
    again = roots.claim(tmp_path)
    assert again is not None
    again.release()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from raystream.storage import root
        kept = root.claim(Path({str(tmp_path)!r}))
    """
    with other_process(script) as holder:
        assert roots.claim(tmp_path) is None
        holder.kill()
        holder.wait()
        claim = roots.claim(tmp_path)
        assert claim is not None
        claim.release()


def test_brokers_of_one_cluster_share_a_root_and_another_cluster_is_refused(tmp_path: Path) -> None:
    one = roots.join(tmp_path, cluster="c", address="a:1")
    two = roots.join(tmp_path, cluster="c", address="a:1")
    with pytest.raises(DataDirectoryInUse, match=f"pid {os.getpid()}"):
        roots.join(tmp_path, cluster="other", address="b:2")
    assert roots.claim(tmp_path) is None
    one.release()
    two.release()
    other = roots.join(tmp_path, cluster="other", address="b:2")
    other.release()


def test_slots_of_one_cluster_are_given_out_in_order(tmp_path: Path) -> None:
    first = roots.take_slot(tmp_path, "c")
    second = roots.take_slot(tmp_path, "c")
    assert [first.number, second.number] == [0, 1]
    os.close(first.descriptor)
    again = roots.take_slot(tmp_path, "c")
    assert again.number == 0
    os.close(again.descriptor)
    os.close(second.descriptor)


def test_a_slot_of_an_earlier_life_is_waited_for_not_passed_by(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from raystream.storage import root
        kept = root.take_slot(Path({str(tmp_path)!r}), "earlier")
    """
    with other_process(script) as holder, pytest.raises(DataDirectoryInUse, match=f"pid {holder.pid}"):
        roots.take_slot(tmp_path, "later")
    slot = roots.take_slot(tmp_path, "later")
    assert slot.number == 0
    os.close(slot.descriptor)


def test_prepare_hides_an_embedded_root_from_git_and_names_what_is_in_the_way(tmp_path: Path) -> None:
    roots.prepare(tmp_path / "data", hide_from_git=True)
    assert (tmp_path / "data" / ".gitignore").read_text() == "*\n"
    (tmp_path / "file").touch()
    with pytest.raises(DataDirectoryUnusable, match="file"):
        roots.prepare(tmp_path / "file" / "below", hide_from_git=False)


def test_this_disk_is_no_network_file_system(tmp_path: Path) -> None:
    assert roots.network_file_system(tmp_path) is None
