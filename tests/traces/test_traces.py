"""Golden scripts: commands in, the whole trace out. One learns the protocol by reading the .txt files beside this one.

A script is a run of commands, each followed by `----` and what it led to. `RAYSTREAM_REWRITE=1 pytest tests/traces`
writes the files anew from what the code does now; read the difference before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.traces.script import GroupScript

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))
REWRITE = os.environ.get("RAYSTREAM_REWRITE") == "1"


def parse(text: str) -> list[tuple[str, str, str]]:
    """(comment before, command, expected output) of each step."""
    steps = []
    for block in text.strip().split("\n\n"):
        head, _, expected = block.partition("\n----")
        *comment, command = head.splitlines()
        assert all(line.startswith("#") for line in comment), f"not a comment: {comment}"
        steps.append(("\n".join(comment), command, expected.strip()))
    return steps


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_trace(path: Path) -> None:
    script = GroupScript()
    blocks = []
    for comment, command, _ in parse(path.read_text()):
        output = "\n".join(script.run(command)) or "(nothing)"
        blocks.append("\n".join([*([comment] if comment else []), command, "----", output]))
    trace = "\n\n".join(blocks) + "\n"
    if REWRITE:
        path.write_text(trace)
    assert trace == path.read_text()


def test_there_are_scripts_to_run() -> None:
    assert {"join", "rebalance", "expiry", "restart"} <= {path.stem for path in SCRIPTS}
