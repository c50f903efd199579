"""Running a notebook cell again replaces the consumer it made before."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest

from raystream.client import notebook
from tests.fakes.log import FakeCluster, eventually


class Shell:
    """IPython's shell, as far as we look at it."""

    def __init__(self, names_cells: bool) -> None:
        self.execution_count = 0
        self.history_manager = types.SimpleNamespace(input_hist_raw=[""])
        self._names_cells = names_cells
        self._cell = ""

    def run(self, cell: str) -> None:
        self.execution_count += 1
        self._cell = cell
        self.history_manager.input_hist_raw.append(f"# {cell}")

    def get_parent(self) -> dict[str, object]:
        return {"metadata": {"cellId": self._cell} if self._names_cells else {}}


@pytest.fixture(params=[True, False])
def shell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell(request.param)
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(notebook, "_made", {})
    return shell


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t")
        cluster.create("u")
        yield cluster


def test_the_same_cell_replaces_its_consumer(
    cluster: FakeCluster, shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "raystream")
    shell.run("one")
    first = cluster.consumer(group="g")
    eventually(first.assignment)
    shell.run("one")
    second = cluster.consumer(group="g")
    assert first.closed and not second.closed
    assert len(cluster.coordinator_port.left) == 1
    assert "this cell ran before" in caplog.text
    eventually(second.assignment)
    second.close()


def test_other_cells_groups_and_topics_are_left_alone(cluster: FakeCluster, shell: Shell) -> None:
    shell.run("one")
    kept = [cluster.consumer(group="g"), cluster.consumer(group="h"), cluster.consumer("u", group="g")]
    shell.run("two")
    kept.append(cluster.consumer(group="g"))
    shell.run("one")
    kept.append(cluster.consumer(group="other"))
    assert not any(consumer.closed for consumer in kept)
    for consumer in kept:
        consumer.close()


def test_two_consumers_of_one_run_are_both_kept(cluster: FakeCluster, shell: Shell) -> None:
    shell.run("one")
    pair = [cluster.consumer(group="g") for _ in range(2)]
    assert not any(consumer.closed for consumer in pair)
    shell.run("one")
    successor = cluster.consumer(group="g")
    assert all(consumer.closed for consumer in pair) and not successor.closed
    successor.close()


def test_outside_a_notebook_nothing_is_replaced(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert notebook.running_cell() is None
    with cluster.consumer(group="g") as first, cluster.consumer(group="g"):
        assert not first.closed
