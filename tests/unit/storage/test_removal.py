"""Large files go bit by bit, and never under somebody who has them mapped."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raystream.storage import removal
from raystream.storage.files import DiskFiles
from tests.fakes.log import eventually

LARGE = removal.SMALL_BYTES + 5_000_000


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "GRACE_S", 0.1)
    monkeypatch.setattr(removal, "LOOK_S", 0.02)


linux = pytest.mark.skipif(sys.platform != "linux", reason="whether a file is used elsewhere is asked of Linux")


def large(tmp_path: Path) -> str:
    path = tmp_path / "large"
    path.write_bytes(b"x" * LARGE)
    return str(path)


def opened(path: str) -> list[int]:
    """The sizes of what this process has open of a file that has no name any more."""
    sizes = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == f"{path} (deleted)":
                sizes.append(os.stat(f"/proc/self/fd/{name}").st_size)
        except FileNotFoundError:
            pass
    return sizes


@linux
def test_the_name_goes_at_once_and_the_space_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    shorten = os.ftruncate

    def step(file: int, size: int) -> None:
        steps.append(size)
        shorten(file, size)

    monkeypatch.setattr(os, "ftruncate", step)
    path = large(tmp_path)
    DiskFiles().unlink(path)
    assert not os.path.exists(path)
    eventually(lambda: steps and steps[-1] == 0 and not opened(path))
    assert steps == sorted(steps, reverse=True) and len(steps) == -(-LARGE // removal.STEP_BYTES)


@contextlib.contextmanager
def reader(path: str) -> Iterator[Callable[[], str]]:
    """Another process that has the file mapped; what is given has it say how many bytes it sees, and ends it."""
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "print('mapped', flush=True)\n"
        "input()\n"
        "print(mapped[:].count(b'x'))\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, path], text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == "mapped\n"
            yield lambda: str(process.communicate("\n", timeout=30)[0])
        finally:
            process.kill()


@linux
def test_a_directory_goes_so_too(tmp_path: Path) -> None:
    directory = tmp_path / "topic"
    directory.mkdir()
    path = large(directory)
    (directory / "small").write_bytes(b"x")
    DiskFiles().remove_directory(str(directory))
    assert not directory.exists() and opened(path) == [LARGE]
    eventually(lambda: not opened(path))


@linux
def test_what_is_mapped_stays_whole_until_it_is_let_go(tmp_path: Path) -> None:
    path = large(tmp_path)
    with reader(path) as seen:
        DiskFiles().unlink(path)
        time.sleep(0.2)
        assert opened(path) == [LARGE]
        assert seen() == f"{LARGE}\n"
    eventually(lambda: not opened(path))


@linux
def test_what_others_keep_is_given_up_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "LET_GO_S", 0.2)
    path = large(tmp_path)
    with reader(path) as seen:
        DiskFiles().unlink(path)
        eventually(lambda: not opened(path))
        assert seen() == f"{LARGE}\n"


@linux
def test_what_has_another_name_stays_whole(tmp_path: Path) -> None:
    path = large(tmp_path)
    os.link(path, tmp_path / "backup")
    DiskFiles().unlink(path)
    eventually(lambda: not opened(path))
    time.sleep(0.2)
    assert (tmp_path / "backup").stat().st_size == LARGE


@linux
def test_where_no_more_may_be_open_they_go_as_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "MAX_HELD", 1)
    monkeypatch.setattr(removal, "GRACE_S", 60.0)
    files = DiskFiles()
    first = large(tmp_path)
    files.unlink(first)
    second = tmp_path / "second"
    second.write_bytes(b"x" * LARGE)
    files.unlink(str(second))
    assert opened(first) == [LARGE] and not opened(str(second)) and not second.exists()


def test_a_file_that_is_not_there_and_small_ones(tmp_path: Path) -> None:
    files = DiskFiles()
    files.unlink(str(tmp_path / "nothing"))
    small = tmp_path / "small"
    small.write_bytes(b"x")
    files.unlink(str(small))
    assert not small.exists()


def test_where_the_system_does_not_tell_a_file_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("fcntl.F_SETLEASE", raising=False)
    file = os.open(large(tmp_path), os.O_RDWR)
    assert removal._used_by_others(file)
    os.close(file)
