"""Running a notebook cell again replaces the consumer that it made before, instead of leaving two in the group."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Protocol

log = logging.getLogger("raystream")


class Closable(Protocol):
    """What a cell made: closed when the cell runs again."""

    def replaced(self) -> None: ...


_made: dict[Hashable, list[tuple[int, Callable[[], Closable | None]]]] = {}


def running_cell() -> tuple[str, int] | None:
    """The notebook cell that runs now and the number of its execution; None outside IPython."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return None
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    cell = parent.get("metadata", {}).get("cellId") if isinstance(parent, dict) else None
    if cell is None:  # the front end names no cells: the same source counts as the same cell
        history = getattr(getattr(shell, "history_manager", None), "input_hist_raw", None) or [""]
        cell = history[-1]
    return str(cell), int(getattr(shell, "execution_count", 0))


def replace_earlier(consumer: Closable, what: Hashable) -> None:
    """Closes the consumers of `what` that earlier runs of this cell made, and remembers this one."""
    cell = running_cell()
    if cell is None:
        return
    name, execution = cell
    entries = _made.setdefault((name, what), [])
    for made_in, reference in entries:
        earlier = reference()
        if earlier is not None and made_in != execution:
            earlier.replaced()
            log.info("this cell ran before: its earlier consumer is closed and this one takes its place")
    entries[:] = [entry for entry in entries if entry[0] == execution]
    entries.append((execution, weakref.ref(consumer)))
