"""A consumer's loop as a Ray task, and the board through which a job's owner and its workers see each other."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import ray
from ray import exceptions as ray_errors

from raystream.actors.handles import translated, wait_for
from raystream.actors.launch import end_actor, start_local_actor, start_task
from raystream.errors import ActorLost, RaystreamError

BOARD_TIMEOUT_MS: Final = 10_000.0
STOP_POLL_S: Final = 0.2


class BoardActor:
    """Knows which workers have started and whether they should stop."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}
        self._stopping = False

    def arrive(self, number: int, pid: int) -> None:
        """A worker has a process."""
        self._pids[number] = pid

    def pids(self) -> dict[int, int]:
        """The process of each worker that has one."""
        return dict(self._pids)

    def stop(self) -> None:
        """Every worker should finish what it has in hand and leave."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether workers should stop."""
        return self._stopping


class Board:
    """A job's board, as its owner and its workers hold it. Can be pickled."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def start(cls) -> Board:
        return cls(start_local_actor(BoardActor))

    def arrive(self, number: int) -> None:
        wait_for(self._handle.arrive.remote(number, os.getpid()), BOARD_TIMEOUT_MS)

    def pids(self) -> dict[int, int]:
        try:
            pids: dict[int, int] = wait_for(self._handle.pids.remote(), BOARD_TIMEOUT_MS)
        except RaystreamError:
            return {}
        return pids

    def stop(self) -> None:
        with contextlib.suppress(RaystreamError):
            wait_for(self._handle.stop.remote(), BOARD_TIMEOUT_MS)

    def stopping(self) -> bool:
        """Whether the job stops; a board that is gone means that its owner is."""
        try:
            return bool(wait_for(self._handle.stopping.remote(), BOARD_TIMEOUT_MS))
        except RaystreamError:
            return True

    def end(self) -> None:
        with contextlib.suppress(Exception):
            end_actor(self._handle)


@dataclass(frozen=True)
class Loop:
    """What every worker of a job runs: `open` makes its consumer from a label, `run` is the loop over it."""

    open: Callable[[str], Any]
    run: Callable[[Any], None]


def work(loop: Loop, board: Board, job: str, number: int) -> None:
    """The body of a worker: consumes until the board says stop, or the handler fails."""
    board.arrive(number)
    consumer = loop.open(f"{job}/{number} pid {os.getpid()} on {socket.gethostname()}")
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(STOP_POLL_S):
            if board.stopping():
                consumer.stop()
                return

    threading.Thread(target=watch, name="raystream-job-watch", daemon=True).start()
    try:
        with consumer:
            loop.run(consumer)
    finally:
        ended.set()


class Task:
    """One worker as its owner sees it."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    @classmethod
    def start(cls, loop: Loop, board: Board, job: str, number: int, options: dict[str, Any]) -> Task:
        return cls(start_task(work, loop, board, job, number, options=options))

    def outcome(self) -> tuple[Literal["running", "finished", "failed"], str | None]:
        """How far the worker is, and its error's sentence if it failed."""
        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return "running", None
        failure = self.failure()
        return ("finished", None) if failure is None else ("failed", str(failure))

    def failure(self) -> Exception | None:
        """Why a worker that has ended failed."""
        try:
            ray.get(self._reference, timeout=0)
        except ray_errors.TaskCancelledError:
            return None
        except ray_errors.WorkerCrashedError as error:
            return ActorLost(f"a worker's process died: {error}")
        except Exception as error:
            return translated(error, 0)
        return None

    def cancel(self) -> None:
        """Ends the worker's process if it still runs."""
        with contextlib.suppress(Exception):
            if self.outcome()[0] == "running":
                ray.cancel(self._reference, force=True)


def unfinished(tasks: Sequence[Task], timeout_s: float | None) -> int:
    """Waits up to `timeout_s` seconds for all; answers how many still run."""
    references = [task._reference for task in tasks]
    _, left = ray.wait(references, num_returns=len(references), timeout=timeout_s)
    return len(left)


def free() -> dict[str, float]:
    """What Ray has free now, of the kinds that tasks ask for."""
    resources = ray.available_resources()
    return {kind: resources.get(kind, 0.0) for kind in ("CPU", "GPU") if kind == "CPU" or kind in resources}
