"""`python -m tests.sim.cluster`; see run.py."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections import Counter

from tests.sim.cluster.run import run


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.cluster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--focus", nargs="*", default=[], help="the only kinds of faults that shall happen")
    parser.add_argument("--keep-going", action="store_true", help="report every seed that fails")
    parser.add_argument("--times", action="store_true", help="print how long each took")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    outcomes, failed = [], 0
    for seed in range(options.seed, options.seed + options.seeds):
        begun = time.perf_counter()
        try:
            outcomes.append(run(seed, focus=tuple(options.focus), verbose=options.verbose))
        except Exception as error:
            failed += 1
            if options.verbose or not isinstance(error, AssertionError):
                traceback.print_exc()
            print(f"seed {seed}: {type(error).__name__}: {error}"[:3000])
            print(f"repeat it with: PYTHONHASHSEED=0 python -m tests.sim.cluster --seed {seed} --verbose", flush=True)
            if not options.keep_going:
                return 1
        if options.times:
            print(f"seed {seed}: {time.perf_counter() - begun:.1f} s", flush=True)
    took_s = time.perf_counter() - started
    happened = sum((outcome.happened for outcome in outcomes), Counter[str]())
    simulated_s = sum(outcome.simulated_s for outcome in outcomes)
    print(
        f"{len(outcomes)} seeds, {failed} failed, {sum(outcome.events for outcome in outcomes):,} events,"
        f" {sum(outcome.acknowledged for outcome in outcomes):,} sends acknowledged; {dict(happened)};"
        f" healed after at most {max((outcome.healed_after_s for outcome in outcomes), default=0):.1f} s;"
        f" {simulated_s:.0f} s simulated in {took_s:.1f} s: {simulated_s / took_s:.1f} per second"
    )
    return failed > 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names have the same order in every run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.cluster", *sys.argv[1:]])
    sys.exit(main())
