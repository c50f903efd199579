"""`cluster.pipeline(…)`: in this process, or as Ray tasks that are watched and stopped as one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raystream.client.transforming import PipelineWorker, Transform
from raystream.errors import InvalidArgument
from raystream.jobs import ConsumerJob
from raystream.types import EARLIEST, Position

if TYPE_CHECKING:
    from raystream.cluster import Cluster


class Pipeline:
    """Reads `source`, hands each batch to `transform` and writes what that returns to `sink`. Nothing runs before
    `run` or `start`. See `client.transforming.PipelineWorker` for what `transform` returns."""

    def __init__(
        self,
        cluster: Cluster,
        source: str | Sequence[str],
        transform: Transform,
        sink: str,
        *,
        group: str,
        exactly_once: bool = True,
        start: Position = EARLIEST,
        consumer_options: Mapping[str, Any] | None = None,
        producer_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(transform):
            raise InvalidArgument(f"transform={transform!r} cannot be called: give a function of a batch")
        self._cluster = cluster
        self._source = source
        self._transform = transform
        self._sink = sink
        self._group = group
        self._exactly_once = exactly_once
        self._consumer_options = {"start": start, **(consumer_options or {}), "auto_commit": False}
        self._producer_options = dict(producer_options or {})

    def worker(self, number: int = 0, label: str = "") -> PipelineWorker:
        """One worker. Its number makes its transactional id: a later one of the same number takes its place, and ends
        what it left open."""
        identity = f"{self._group}/{number}" if self._exactly_once else None
        producer = self._cluster.producer(transactional_id=identity, **self._producer_options)
        consumer = self._cluster.consumer(self._source, group=self._group, client_id=label, **self._consumer_options)
        return PipelineWorker(consumer, producer, self._transform, self._sink, exactly_once=self._exactly_once)

    def run(self, max_batches: int | None = None) -> None:
        """Works in this thread, without end or until so many batches are committed. Raises what `transform` raises,
        once its batch's transaction is aborted."""
        with self.worker() as worker:
            worker.run(max_batches)

    def start(self, workers: int = 1, name: str | None = None, num_cpus: float = 0, **ray_args: Any) -> ConsumerJob:
        """Works as so many Ray tasks. Raises PlacementFailed when Ray has no room within 10 s."""
        return ConsumerJob.start_loops(
            self._group,
            self._open,
            _run,
            workers=workers,
            name=name,
            options={"num_cpus": num_cpus, "max_retries": 0, **ray_args},
        )

    def _open(self, label: str) -> PipelineWorker:
        number = int(label.partition(" ")[0].rpartition("/")[2])
        return self.worker(number, label)


def _run(worker: PipelineWorker) -> None:
    worker.run()
