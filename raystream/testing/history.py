"""Recording a history, and everything one does with one: `Recorder`, `History`, `Operation`, `check`."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Any, Self

from raystream.errors import Closed, InvalidArgument
from raystream.testing.checker import check
from raystream.testing.operations import FIELDS, KINDS, TYPES, History, Kind, Operation, Type, to_line
from raystream.testing.report import Anomaly, Report

__all__ = ["Anomaly", "History", "Operation", "Recorder", "Report", "check"]


class Recorder:
    """Appends operations to a file as lines of JSON. Thread-safe; a context manager.

    Lines stand in order of time. Each is with the operating system when the call returns, so a process that is killed
    loses none. Recorders of several processes write a file each; `History` merges them by the monotonic clock, which
    is one for all processes of a machine.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()

    def record(self, process: str, type: Type, kind: Kind, **fields: Any) -> None:
        """Writes one operation, whose time is now. `fields` are those of `Operation`. Raises InvalidArgument, Closed.

        To be called before a call goes out (`invoke`) and after its outcome is known, never the other way round.
        """
        if type not in TYPES or kind not in KINDS or not fields.keys() <= FIELDS:
            unknown = sorted({type} - TYPES | {kind} - KINDS | fields.keys() - FIELDS)
            raise InvalidArgument(f"a history knows no {', '.join(unknown)}")
        line = to_line({"process": process, "type": type, "kind": kind, **fields})[1:]
        with self._lock:
            if self._file is None:
                raise Closed("the recorder is closed")
            data = f'{{"time":{time.monotonic_ns()},{line}'.encode()
            written = os.write(self._file, data)
            while written < len(data):
                written += os.write(self._file, data[written:])

    def invoke(self, process: str, kind: Kind, **fields: Any) -> None:
        """A call is about to go out."""
        self.record(process, "invoke", kind, **fields)

    def ok(self, process: str, kind: Kind, **fields: Any) -> None:
        """The call did what it should."""
        self.record(process, "ok", kind, **fields)

    def fail(self, process: str, kind: Kind, **fields: Any) -> None:
        """The call surely did nothing."""
        self.record(process, "fail", kind, **fields)

    def info(self, process: str, kind: Kind, **fields: Any) -> None:
        """Nobody knows whether the call did anything: a timeout, a lost connection."""
        self.record(process, "info", kind, **fields)

    def close(self) -> None:
        """Closes the file; recording then raises Closed."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
