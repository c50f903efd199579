"""The full check of a log that is open: every byte of every segment, and what its other files say about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from raystream.errors import CorruptBatch, NewerFormat, RaystreamError
from raystream.storage.checkpoint import CHECKPOINT_NAME, read_checkpoint
from raystream.storage.files import Files
from raystream.storage.segment import Segment

_PROGRESS_BYTES: Final = 16 << 20


def verify(
    files: Files, directory: str, segments: tuple[Segment, ...], progress: Callable[[int, int], None] | None
) -> list[str]:
    """A sentence for each problem found. Checks what was published when it began; appends may go on meanwhile."""
    problems: list[str] = []
    tails = [segment.tail for segment in segments]
    total = sum(tail.size for tail in tails)
    done = 0
    for place, (segment, tail) in enumerate(zip(segments, tails, strict=True)):
        try:
            data = files.map(segment.path)[: tail.size]
            end = _verify_segment(segment, data, partial(_report, progress, total, done))
            expected = segments[place + 1].base_offset if place + 1 < len(segments) else tail.end_offset
            if end != expected:
                problems.append(f"{segment.path} ends at offset {end}; {expected} comes next")
        except (RaystreamError, FileNotFoundError) as error:
            problems.append(str(error))
        done += tail.size
        problems += _verify_index(segment) if place + 1 < len(segments) else []
    try:
        read_checkpoint(files.read(f"{directory}/{CHECKPOINT_NAME}"))
    except FileNotFoundError:
        pass
    except (CorruptBatch, NewerFormat) as error:
        problems.append(f"{directory}/{CHECKPOINT_NAME}: {error}")
    _report(progress, total, total, 0)
    return problems


def _verify_segment(segment: Segment, data: memoryview, report: Callable[[int], None]) -> int:
    """The end offset that the batches themselves lead to."""
    position = segment.read_head(data)
    end_offset = segment.base_offset
    reported = 0
    for placed in segment.walk(position, end_offset, check_bodies_from=0, data=data):
        end_offset = placed.header.next_offset
        if placed.position - reported >= _PROGRESS_BYTES:
            reported = placed.position
            report(reported)
    return end_offset


def _verify_index(segment: Segment) -> list[str]:
    if not segment.index_saved:
        return []
    loaded = segment.load_index_file()
    if loaded is None:
        return [f"{segment.index_path} is missing or damaged; it is rebuilt when it is needed"]
    index, coverage = loaded
    if coverage.log_bytes != segment.tail.size or not len(index):
        return [f"{segment.index_path} covers {coverage.log_bytes} bytes of {segment.tail.size}"]
    return []


def _report(progress: Callable[[int, int], None] | None, total: int, before: int, position: int) -> None:
    if progress is not None:
        progress(before + position, total)
