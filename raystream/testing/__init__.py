"""Finding out whether a log keeps its promises: record what clients saw, and check it.

`history.py` records operations, `checker.py` finds anomalies in a recorded history, `workload.py` runs real producers
and group members that record, `faults.py` injects faults meanwhile. The model is Jepsen's Kafka workload.
"""
