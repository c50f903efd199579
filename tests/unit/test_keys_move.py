"""Whoever gives a keyed topic more partitions is told that keys move."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from raystream.cli import main
from raystream.cluster import Cluster
from raystream.commands import shell
from raystream.errors import KeysMove
from raystream.types import TopicDescription


class Grown(Cluster):
    """A cluster whose topic has `key`, and now four partitions."""

    def __init__(self, key: str | None) -> None:
        super().__init__(lambda: pytest.fail("nobody connects"))
        self._topic = TopicDescription("t", "typed", 4, 1, 0, 0, key=key)

    @property
    def _admin(self) -> Any:
        return self

    def alter_topic(self, *_: Any, **__: Any) -> TopicDescription:
        return self._topic

    def _run(self, work: Any) -> Any:
        return work

    def describe_topic(self, name: str) -> TopicDescription:
        return self._topic


def test_more_partitions_of_a_keyed_topic_are_warned_of() -> None:
    with pytest.warns(
        KeysMove, match="key column 'carrier': with 4 partitions, new records of a key may go to another"
    ):
        Grown("carrier").add_partitions("t", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Grown(None).add_partitions("t", 4).partitions == 4


def test_the_command_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shell.Shell, "connect", lambda self: Grown("carrier"))
    assert main(["topic", "alter", "t", "--partitions", "4"]) == 0
    assert "new records of a key may go to another partition" in "".join(capsys.readouterr())
