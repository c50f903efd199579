"""Both file systems keep the same contract; the double loses what was not synced."""

from __future__ import annotations

import errno
import os
import random
import sys
from pathlib import Path

import pytest

from raystream.errors import DataDirectoryInUse, DiskFull, StorageError
from raystream.storage import files as files_module
from raystream.storage.files import DiskFiles, Files
from raystream.storage.memory_files import MemoryFiles


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Files, str]:
    files: Files = DiskFiles() if request.param == "disk" else MemoryFiles()
    directory = f"{tmp_path}/a/b"
    files.makedirs(directory)
    files.makedirs(directory)
    return files, directory


def test_appends_reads_and_maps(place: tuple[Files, str]) -> None:
    files, directory = place
    path = f"{directory}/x"
    handle = files.open_append(path)
    handle.writev([b"ab", memoryview(b"cd"), bytearray(b"ef")])
    handle.sync()
    handle.close()
    handle = files.open_append(path)
    assert handle.size == 6
    handle.writev([b"gh"])
    assert files.size(path) == handle.size == 8
    assert files.read(path) == bytes(files.map(path)) == b"abcdefgh"
    assert files.read(path, 2, 3) == b"cde"
    assert files.read(path, 6, 100) == b"gh"
    assert files.read(path, 8) == b""
    handle.drop_cached()
    assert files.read(path) == b"abcdefgh"
    handle.truncate(3)
    handle.writev([b"Z"])
    assert files.read(path) == b"abcZ"
    handle.close()
    handle.drop_cached()
    with pytest.raises(StorageError, match=path):
        handle.writev([b"late"])
    files.truncate(path, 1)
    assert files.read(path) == b"a"
    files.truncate(path, 0)
    assert files.map(path).tobytes() == b""


def test_a_map_stays_as_it_was_taken_when_the_file_grows_or_goes(place: tuple[Files, str]) -> None:
    files, directory = place
    handle = files.open_append(f"{directory}/x")
    handle.writev([b"abc"])
    view = files.map(f"{directory}/x")
    handle.writev([b"def"])
    files.unlink(f"{directory}/x")
    assert bytes(view) == b"abc"
    with pytest.raises(TypeError):
        view[0] = 0
    handle.close()


def test_more_pieces_than_one_call_takes(place: tuple[Files, str]) -> None:
    files, directory = place
    pieces = [b"%04d" % i for i in range(5_000)]
    handle = files.open_append(f"{directory}/x")
    handle.writev(pieces)
    handle.close()
    assert files.read(f"{directory}/x") == b"".join(pieces)


def test_atomic_writes_and_directory_entries(place: tuple[Files, str]) -> None:
    files, directory = place
    files.write_atomically(f"{directory}/b", b"1")
    files.write_atomically(f"{directory}/b", b"22")
    files.write_atomically(f"{directory}/a", b"333", durable=False)
    assert files.listdir(directory) == ["a", "b"]
    assert files.read(f"{directory}/b") == b"22"
    files.unlink(f"{directory}/b")
    files.unlink(f"{directory}/b")
    files.sync_dir(directory)
    assert files.listdir(directory) == ["a"]
    for missing in (files.read, files.map, files.size):
        with pytest.raises(FileNotFoundError):
            missing(f"{directory}/b")
    assert files.free_bytes(directory) > 0


def test_a_lock_is_held_by_one(place: tuple[Files, str]) -> None:
    files, directory = place
    lock = files.lock(f"{directory}/lock")
    with pytest.raises(DataDirectoryInUse, match=f"{directory}/lock"):
        files.lock(f"{directory}/lock")
    lock.release()
    lock.release()
    files.lock(f"{directory}/lock").release()


def test_a_lock_names_its_holder_and_ends_in_a_forked_child(tmp_path: Path) -> None:
    files = DiskFiles()
    lock = files.lock(f"{tmp_path}/lock")
    with pytest.raises(DataDirectoryInUse, match=f"pid {os.getpid()}"):
        files.lock(f"{tmp_path}/lock")
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    lock.release()
    files.lock(f"{tmp_path}/lock").release()  # the child lives, and does not hold it
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    for end in (*ready, *done):
        os.close(end)


def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def short(descriptor: int, pieces: list[bytes]) -> int:
        return real(descriptor, b"".join(pieces)[:3])

    monkeypatch.setattr(os, "writev", short)
    handle = DiskFiles().open_append(f"{tmp_path}/x")
    handle.writev([b"ab", b"cdefghij", b"", b"k"])
    assert DiskFiles().read(f"{tmp_path}/x") == b"abcdefghijk"
    handle.close()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_is_said_so_and_the_handle_goes_on() -> None:
    handle = DiskFiles().open_append("/dev/full")
    for _ in range(2):
        with pytest.raises(DiskFull, match="/dev/full"):
            handle.writev([b"x"])
    handle.close()


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_failed_sync_poisons_the_handle(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: Files = DiskFiles() if kind == "disk" else MemoryFiles()
    files.makedirs(str(tmp_path))
    handle = files.open_append(f"{tmp_path}/x")
    handle.writev([b"x"])

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if isinstance(files, MemoryFiles):
        files.fail_at(1, errno.EIO)
    else:
        monkeypatch.setattr(files_module, "_sync_descriptor", fail)
    with pytest.raises(StorageError, match=f"{tmp_path}/x"):
        handle.sync()
    monkeypatch.undo()
    for again in (handle.sync, lambda: handle.writev([b"y"])):
        with pytest.raises(StorageError, match="no more writes"):
            again()
    handle.close()


def test_the_errors_of_the_operating_system_name_the_file(tmp_path: Path) -> None:
    files = DiskFiles()
    (tmp_path / "file").touch()
    for call in (
        lambda: files.makedirs(f"{tmp_path}/file/sub"),
        lambda: files.listdir(f"{tmp_path}/file"),
        lambda: files.open_append(f"{tmp_path}/file/x"),
        lambda: files.write_atomically(f"{tmp_path}/file/x", b""),
        lambda: files.read(str(tmp_path)),
        lambda: files.unlink(str(tmp_path)),
    ):
        with pytest.raises(StorageError, match=str(tmp_path)):
            call()


def test_a_crash_keeps_what_was_synced_and_may_lose_the_rest() -> None:
    seen = set()
    for seed in range(60):
        files = MemoryFiles()
        files.makedirs("d")
        handle = files.open_append("d/x")
        handle.writev([b"abc"])
        handle.sync()
        files.sync_dir("d")
        handle.writev([b"defg"])
        handle.writev([b"hi"])
        files.open_append("d/new").writev([b"1"])
        lock = files.lock("d/lock")
        files.crash(random.Random(seed))
        content = files.read("d/x")
        assert content.startswith(b"abc")
        seen.add((content, "new" in files.listdir("d")))
        files.lock("d/lock")
        lock.release()  # of an earlier life: does not free the new one
        with pytest.raises(DataDirectoryInUse):
            files.lock("d/lock")
        with pytest.raises(StorageError):
            handle.writev([b"from the dead"])
    contents = {content for content, _ in seen}
    assert {b"abc", b"abcdefghi", b"abcde"} <= contents  # lost, kept, torn
    assert any(b"\0" in content for content in contents)  # a hole before what was kept
    assert {True, False} == {new for _, new in seen}


def test_a_renamed_file_may_come_back_as_it_was() -> None:
    found = set()
    for seed in range(30):
        files = MemoryFiles()
        files.makedirs("d")
        files.write_atomically("d/x", b"old")
        files.write_atomically("d/x", b"new", durable=False)
        files.crash(random.Random(seed))
        found.add(files.read("d/x"))
    assert {b"old", b"new", b""} <= found


def test_directories_are_listed_moved_and_removed(place: tuple[Files, str]) -> None:
    files, directory = place
    files.makedirs(f"{directory}/x/y")
    files.makedirs(f"{directory}/z")
    files.write_atomically(f"{directory}/x/one", b"1")
    files.write_atomically(f"{directory}/x/y/two", b"2")
    assert files.directories(directory) == ["x", "z"]
    files.move_directory(f"{directory}/x", f"{directory}/z/moved")
    files.move_directory(f"{directory}/gone", f"{directory}/z/gone")
    assert files.directories(directory) == ["z"]
    assert files.directories(f"{directory}/z") == ["moved"]
    assert files.read(f"{directory}/z/moved/y/two") == b"2"
    files.remove_directory(f"{directory}/z/moved")
    files.remove_directory(f"{directory}/z/moved")
    assert files.directories(f"{directory}/z") == []
    with pytest.raises(FileNotFoundError):
        files.read(f"{directory}/z/moved/one")


def test_a_moved_directory_stays_moved_after_a_power_cut() -> None:
    for seed in range(10):
        files = MemoryFiles()
        files.makedirs("d/x")
        files.write_atomically("d/x/one", b"1")
        files.move_directory("d/x", "d/y")
        files.crash(random.Random(seed))
        assert files.read("d/y/one") == b"1"
        assert files.directories("d") == ["y"]
