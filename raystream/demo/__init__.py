"""`raystream demo`: the main job on real data, and the proof that nothing was lost.

`flights.py` is the data and what is computed from it, `worker.py` a member of the group as a Ray task, `ledger.py` the
bookkeeping of what was processed, `job.py` the course of events, `show.py` what is seen of it.
"""
