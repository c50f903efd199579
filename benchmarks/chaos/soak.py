"""Real clients on three Ray nodes while things die; what they saw is checked for anomalies.

python -m benchmarks.chaos.soak --fault leader --seconds 120 --runs 3
python -m benchmarks.chaos.soak --fault mixed --seconds 600 --runs 3

Faults: SIGKILL of a leader, follower, broker, coordinator, controller (its broker), raylet (its workers follow it) or
a whole node; pause (SIGSTOP past the lease); rpc (Ray itself loses a share of its calls); cut, cut-head and one-way
(nodes in network namespaces, routes cut); mixed (all of them), and none, for comparison.

Prints a line of JSON for each run, and exits with 1 where one shows an anomaly, a client that gave up, or a hang; the
history and all logs are then kept where `kept` says.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from typing import Final

from benchmarks.chaos.runs import FAULTS, Plan, impossible, run

STOP: Final = 130


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=FAULTS, default="mixed")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--every", type=float, default=None, help="seconds from one fault to the next (12; cuts 30)")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--keep", action="store_true", help="keep the files of every run")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOP))  # so that everything is cleaned up
    why = impossible(args.fault)
    if why is not None:
        print(f"skipped: {why}")
        return 0
    fine = True
    for turn in range(args.runs):
        outcome = run(Plan(args.fault, args.seconds, turn, args.every, args.data_dir, args.keep))
        print(json.dumps(asdict(outcome)), flush=True)
        fine = fine and outcome.ok
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
