"""Bugs that are planted in the groups' rules: the random groups must notice every one."""

from __future__ import annotations

from typing import Any, Final
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from raystream.core import membership, offset_expiry
from raystream.core.group_state import Group
from raystream.core.records import removed
from tests.property.test_groups import GroupMachine

_reconciled = membership._reconciled


def _given_before_it_is_let_go(member: Any, owned: Any, group: Any, *rest: Any) -> Any:
    with mock.patch.object(group, "holder", {}):
        return _reconciled(member, owned, group, *rest)


def _expired_whoever_reads(groups: Any, wall_ms: int) -> Any:
    return tuple(removed(position) for group in groups for position in group.offsets.values())


BUGS: Final[dict[str, tuple[Any, str, Any]]] = {
    "a partition is given before it is let go": (membership, "_reconciled", _given_before_it_is_let_go),
    "a static member's old life goes on beside the new one": (Group, "seated", lambda group, member: None),
    "an old life is taken for one that may join again": (membership, "check_not_succeeded", lambda *_: None),
    "positions expire while a group reads on": (offset_expiry, "expired", _expired_whoever_reads),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str) -> None:
    often = settings(
        max_examples=150,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    owner, attribute, wrong = BUGS[name]
    with mock.patch.object(owner, attribute, wrong), pytest.raises((AssertionError, KeyError, ExceptionGroup)):
        run_state_machine_as_test(GroupMachine, settings=often)
