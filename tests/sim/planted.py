"""Bugs that are planted from outside, so that a simulation can show that it would notice them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

from tests.sim.world import WRONG, Run


@dataclass(frozen=True, slots=True)
class Bug:
    """A shell that does it wrong, or replacements as (owner, name, what stands there instead)."""

    shell: object = None
    replaced: tuple[tuple[object, str, Any], ...] = ()
    focus: tuple[str, ...] = ()
    """Faults that lead to it, for one that the usual mixture finds too rarely."""
    at: int = 0
    """The first seed that catches it."""

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """While it lasts, the core has the bug."""
        with contextlib.ExitStack() as stack:
            for owner, name, replacement in self.replaced:
                stack.enter_context(mock.patch.object(owner, name, replacement))
            yield


def replaced(
    owner: object, name: str, replacement: Any, *more: tuple[object, str, Any], focus: tuple[str, ...] = (), at: int = 0
) -> Bug:
    """A bug in the core."""
    return Bug(replaced=((owner, name, replacement), *more), focus=focus, at=at)


def seeds_to_catch(run: Run, bug: Bug, *, first: int = 0, at_most: int) -> tuple[int, str] | None:
    """How many seeds, from `first` on, it takes to catch a bug, and what is then said; None if more than `at_most`."""
    with bug.planted():
        for seed in range(first, first + at_most):
            try:
                run(seed, shell=bug.shell, focus=bug.focus)
            except WRONG as error:
                return seed - first + 1, str(error)
    return None


def main(run: Run, bugs: Mapping[str, Bug], *, at_most: int) -> None:
    """Prints how soon each bug is caught, from seed 0 on."""
    for name, bug in bugs.items():
        found = seeds_to_catch(run, bug, at_most=at_most)
        caught = f"not caught by {at_most} seeds" if found is None else f"{found[0]:4}  {found[1][:110]}"
        print(f"{name:60} {caught}", flush=True)


def caught(run: Run, bugs: Mapping[str, Bug], name: str, *, at_most: int) -> str:
    """A line: by how many seeds a bug is caught, and what is said then. The seed that is known to catch it
    comes first."""
    bug = bugs[name]
    found = seeds_to_catch(run, bug, first=bug.at, at_most=1) or seeds_to_catch(run, bug, at_most=at_most)
    said = f"not caught by {at_most} seeds" if found is None else f"{found[0]:4}  {found[1].splitlines()[0][:110]}"
    return f"{name:60} {said}"


def tell(line: Callable[[str], str], names: Iterable[str]) -> None:
    """Prints the line of each bug, each from a process of its own, as many at a time as there are processors."""
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        for said in pool.imap(line, names, chunksize=1):
            print(said, flush=True)
