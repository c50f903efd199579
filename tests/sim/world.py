"""What both simulated worlds are made of: events in simulated milliseconds, a network, faults; and how a run is told.

Everything follows from the seed of `rng`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import heapq
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from raystream.errors import RaystreamError

Run = Callable[..., "Outcome"]
"""A simulator's `run(seed, *, shell=None, focus=(), verbose=False)`; raises one of `WRONG`."""
WRONG = (AssertionError, RaystreamError)


class Violation(AssertionError):
    """An invariant is broken."""


def require(holds: bool, message: str) -> None:
    """Raises Violation unless it holds."""
    if not holds:
        raise Violation(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    events: int
    simulated_ms: float
    done: int
    """What users asked for and got."""
    happened: Counter[str]
    healed_after_ms: float


class World:
    """Events, and a network that loses, repeats, delays and overtakes until it is `calm`.

    `focus` names the only kinds of faults that shall happen.
    """

    slowest_ms = 1_000.0

    def __init__(self, seed: int, *, focus: tuple[str, ...] = (), verbose: bool = False) -> None:
        self.rng = random.Random(seed)
        self.focus = focus
        self.verbose = verbose
        self.now_ms = 0.0
        self.events = 0
        self.calm = False
        self.cut: set[tuple[int, int]] = set()
        """Links that are down, by direction."""
        self.loss = self.repeats = self.slow = self.slow_sync = 0.0
        """How often."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0

    def at(self, time_ms: float, event: Callable[[], None]) -> None:
        """Has something happen."""
        self._serial += 1
        heapq.heappush(self._queue, (time_ms, self._serial, event))

    def run_until(self, end_ms: float, *, until: Callable[[], bool] = lambda: False) -> bool:
        """Runs events up to a time, or until something holds; says whether it came to hold."""
        while self._queue and self._queue[0][0] <= end_ms:
            self.now_ms, _, event = heapq.heappop(self._queue)
            event()
            self.events += 1
            if until():
                return True
        self.now_ms = end_ms
        return until()

    def note(self, text: str) -> None:
        """For whoever reads the run."""
        if self.verbose:
            print(f"{self.now_ms:10.2f}  {text}")

    def carry(
        self, link: tuple[int, int], arrive: Callable[[], None], *, slow: float | None = None, repeats: bool = True
    ) -> None:
        """A message: it may be lost, come twice, late, and before those that were sent earlier."""
        rng = self.rng
        if not self.calm:
            if link in self.cut or rng.random() < self.loss:
                return
            if repeats and rng.random() < self.repeats:
                self.at(self.now_ms + rng.uniform(0.2, 1_000), arrive)
            if rng.random() < (self.slow if slow is None else slow):
                self.at(self.now_ms + rng.uniform(5, self.slowest_ms), arrive)
                return
        self.at(self.now_ms + rng.uniform(0.2, 3), arrive)

    def sync_ms(self) -> float:
        """How long a disk takes now."""
        slow = not self.calm and self.rng.random() < self.slow_sync
        return self.rng.uniform(10, 150) if slow else self.rng.uniform(0.2, 3)


Fault = Callable[[], None]


class Mixture:
    """Faults one after the other, some kinds more often than others, as the run's seed says; `repairs` never seldom."""

    def __init__(
        self,
        world: World,
        rng: random.Random,
        kinds: Sequence[tuple[Fault, float]],
        *,
        repairs: Sequence[Fault],
        pause_ms: float,
    ) -> None:
        self._world = world
        self._rng = rng
        self._pause_ms = pause_ms
        self._kinds = [kind for kind, _ in kinds]
        weights = [weight * rng.choice([0, 1, 1, 3]) for _, weight in kinds]
        self._weights = [
            max(weight, 4 if kind in repairs else 0) for kind, weight in zip(self._kinds, weights, strict=True)
        ]
        if world.focus:
            self._weights = [float(kind.__name__ in world.focus) for kind in self._kinds]

    def happen(self) -> None:
        """The next one, and the one after it."""
        world = self._world
        if not world.calm:
            kind = self._rng.choices(self._kinds, self._weights)[0]
            world.note(kind.__name__)
            kind()
            world.at(world.now_ms + self._rng.expovariate(1 / self._pause_ms), self.happen)


def how_to_repeat(module: str, seed: int, error: BaseException) -> str:
    """What is said of a seed that fails."""
    return f"seed {seed}: {error}\nrepeat it with: python -m {module} --seed {seed} --verbose"


def main(module: str, run: Run, done: str, description: str | None, *, seeds_per_process: int = 100) -> int:
    """Runs what the command line asks for; `done` names what the outcomes count."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="so many seeds at a time")
    parser.add_argument("--keep-going", action="store_true", help="tell of every seed that fails")
    parser.add_argument("--focus", nargs="*", default=(), help="the only kinds of faults that shall happen")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    outcomes = []
    failed = 0
    seeds = range(options.seed, options.seed + options.seeds)
    one = partial(_outcome, module, run, tuple(options.focus), options.verbose)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        results: Iterable[Outcome | str] = map(one, seeds)
        if options.jobs > 1:
            gc.collect()
            gc.freeze()  # what is shared by all seeds is no seed's garbage
            pool = multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=seeds_per_process)
            results = stack.enter_context(pool).imap(one, seeds)
        for result in results:
            if isinstance(result, Outcome):
                outcomes.append(result)
                continue
            failed += 1
            print(result, flush=True)
            if not options.keep_going:
                return 1
    took_s = time.perf_counter() - started
    happened = sum((outcome.happened for outcome in outcomes), Counter[str]())
    simulated_s = sum(outcome.simulated_ms for outcome in outcomes) / 1e3
    print(
        f"{len(outcomes)} seeds{f', and {failed} that failed' if failed else ''},"
        f" {sum(outcome.events for outcome in outcomes):,} events,"
        f" {sum(outcome.done for outcome in outcomes):,} {done}; {dict(happened)};"
        f" healed after at most {max((outcome.healed_after_ms for outcome in outcomes), default=0):.0f} ms;"
        f" {simulated_s:.0f} s simulated in {took_s:.1f} s: {simulated_s / took_s:.0f} per second"
    )
    return 1 if failed else 0


def _outcome(module: str, run: Run, focus: tuple[str, ...], verbose: bool, seed: int) -> Outcome | str:
    try:
        return run(seed, focus=focus, verbose=verbose)
    except WRONG as error:
        return how_to_repeat(module, seed, error)
