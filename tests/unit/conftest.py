"""No unit test changes what the others run in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

_OTHERS = {"PYTEST_CURRENT_TEST", "RAY_CLIENT_MODE", "_RJEM_MALLOC_CONF"}
"""pytest sets the first, importing Ray the second, importing polars the third."""


@pytest.fixture(autouse=True)
def _the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is left in the environment is a mistake: Ray, for one, would start differently."""
    before = {name: value for name, value in os.environ.items() if name not in _OTHERS}
    yield
    monkeypatch.undo()
    assert before == {name: value for name, value in os.environ.items() if name not in _OTHERS}
