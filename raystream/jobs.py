"""`run_consumers`: a consumer's loop as Ray tasks over the cluster, watched and stopped as one job."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from raystream.actors import tasks
from raystream.errors import InvalidArgument, PlacementFailed, RequestTimeout
from raystream.types import Rows

if TYPE_CHECKING:
    from raystream.client.consumer import Consumer
    from raystream.client.share_consumer import ShareConsumer
    from raystream.cluster import Cluster

PLACEMENT_WAIT_S: Final = 9.0
WorkerState = Literal["running", "finished", "failed"]


@dataclass(frozen=True)
class WorkerStatus:
    """One worker of a job: its process (None while Ray still starts it) and how it ended, if it did."""

    worker: int
    state: WorkerState
    pid: int | None
    error: str | None = None


class ConsumerJob:
    """Workers that run the same consumer loop as Ray tasks.

    A worker that dies is not restarted here: its partitions, or the records that it had taken from a queue, go to the
    others at once. `group` is the group, or share group, whose members they are. Thread-safe.
    """

    def __init__(self, name: str, group: str, workers: list[tasks.Task], board: tasks.Board) -> None:
        self.name = name
        self.group = group
        self._workers = workers
        self._board = board

    @classmethod
    def start(
        cls,
        cluster: Cluster,
        topics: str | Sequence[str] | re.Pattern[str],
        group: str | None,
        *,
        share: str | None = None,
        each_batch: Callable[[Any], Any] | None,
        each_record: Callable[[Any], Any] | None,
        workers: int,
        name: str | None,
        num_cpus: float,
        ray_remote_args: Mapping[str, Any],
        consumer_options: Mapping[str, Any] | None = None,
        run_options: Mapping[str, Any] | None = None,
    ) -> ConsumerJob:
        """Starts the workers and waits until each has a process. Raises PlacementFailed, within 10 s, where one gets
        none."""
        joined = group or share
        if joined is None or (group and share):
            raise InvalidArgument("run_consumers takes either group= or share=: what its workers are members of")
        if (each_batch is None) == (each_record is None):
            raise InvalidArgument("run_consumers takes either each_batch= or each_record=")
        settings = {**({"group": group} if group else {"share": share}), **(consumer_options or {})}
        how = {"each_batch": each_batch, "each_record": each_record, **(run_options or {})}

        def open_consumer(label: str) -> Consumer | ShareConsumer:
            consumer: Consumer | ShareConsumer = cluster.consumer(topics, client_id=label, **settings)
            return consumer

        def run(consumer: Consumer | ShareConsumer) -> None:
            consumer.run(**how)

        options = {"num_cpus": num_cpus, "max_retries": 0, **ray_remote_args}
        return cls.start_loops(joined, open_consumer, run, workers=workers, name=name, options=options)

    @classmethod
    def start_loops(
        cls,
        group: str,
        open_worker: Callable[[str], Any],
        run: Callable[[Any], None],
        *,
        workers: int,
        name: str | None,
        options: dict[str, Any],
    ) -> ConsumerJob:
        """Starts a loop in each worker, over what `open_worker` makes of its label, which begins with the job's name, a
        slash and the worker's number. Raises as `start`."""
        if workers < 1:
            raise InvalidArgument(f"workers={workers}: a job needs at least one")
        job_name = name or f"{group}-{uuid.uuid4().hex[:6]}"
        board = tasks.Board.start()
        loop = tasks.Loop(open_worker, run)
        try:
            started = [tasks.Task.start(loop, board, job_name, number, options) for number in range(workers)]
        except (TypeError, ValueError) as error:
            board.end()
            raise InvalidArgument(
                f"Ray does not take these options of its tasks ({', '.join(options)}): {error}"
            ) from None
        job = cls(job_name, group, started, board)
        job._await_placement(options)
        return job

    def _await_placement(self, options: Mapping[str, Any]) -> None:
        deadline = time.monotonic() + PLACEMENT_WAIT_S
        while True:
            waiting = [status for status in self.status() if status.state == "running" and status.pid is None]
            if not waiting:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        self.stop(timeout=0)
        wanted = {k: v for k, v in options.items() if k in ("num_cpus", "num_gpus", "resources", "memory") and v}
        raise PlacementFailed(
            f"Ray found no room for {len(waiting)} of {len(self._workers)} workers within {PLACEMENT_WAIT_S:.0f} s: "
            f"each asks for {wanted or 'no resources, but Ray could start no process'}; free now: {tasks.free()}"
        )

    def status(self) -> Rows[WorkerStatus]:
        """Every worker and whether it runs."""
        pids = self._board.pids()
        rows: Rows[WorkerStatus] = Rows()
        for number, worker in enumerate(self._workers):
            state, error = worker.outcome()
            rows.append(WorkerStatus(number, state, pids.get(number), error))
        return rows

    def stop(self, timeout: float | None = 30.0) -> None:
        """Asks every worker to finish what it has in hand, commit and leave; ends those that do not in `timeout` s."""
        self._board.stop()
        with contextlib.suppress(RequestTimeout):
            self._wait(timeout)
        for worker in self._workers:
            worker.cancel()
        self._board.end()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until every worker has ended. Raises the first failure, or RequestTimeout after `timeout` seconds."""
        self._wait(timeout)
        for worker in self._workers:
            failure = worker.failure()
            if failure is not None:
                raise failure

    def _wait(self, timeout: float | None) -> None:
        left = tasks.unfinished(self._workers, timeout)
        if left:
            raise RequestTimeout(f"{left} of {len(self._workers)} workers still run after {timeout} s")

    def __repr__(self) -> str:
        states = [status.state for status in self.status()]
        return f"<job {self.name!r} of group {self.group!r}: {', '.join(states)}>"
