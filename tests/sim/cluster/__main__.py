"""`python -m tests.sim.cluster`; see run.py."""

from __future__ import annotations

import os
import sys

from tests.sim.cluster import run as runs
from tests.sim.world import main

if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names have the same order in every run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.cluster", *sys.argv[1:]])
    sys.exit(main("tests.sim.cluster", runs.run, "sends acknowledged", runs.__doc__, seeds_per_process=1))
