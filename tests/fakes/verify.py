"""The full check of a log that is open: every byte of every segment, and what its other files say about it."""

from __future__ import annotations

from raystream.errors import CorruptBatch, NewerFormat, RaystreamError
from raystream.storage.checkpoint import CHECKPOINT_NAME, read_checkpoint
from raystream.storage.log import Log
from raystream.storage.segment import Segment


def verify(log: Log) -> list[str]:
    """A sentence for each problem found."""
    problems: list[str] = []
    files, directory, segments = log._files, log._directory, log.segments
    for place, segment in enumerate(segments):
        tail = segment.tail
        try:
            end = _end_of(segment, files.map(segment.path)[: tail.size])
            expected = segments[place + 1].base_offset if place + 1 < len(segments) else tail.end_offset
            if end != expected:
                problems.append(f"{segment.path} ends at offset {end}; {expected} comes next")
        except (RaystreamError, FileNotFoundError) as error:
            problems.append(str(error))
        problems += _index_problems(segment) if place + 1 < len(segments) else []
    try:
        read_checkpoint(files.read(f"{directory}/{CHECKPOINT_NAME}"))
    except FileNotFoundError:
        pass
    except (CorruptBatch, NewerFormat) as error:
        problems.append(f"{directory}/{CHECKPOINT_NAME}: {error}")
    return problems


def _end_of(segment: Segment, data: memoryview) -> int:
    """The end offset that the batches themselves lead to."""
    end_offset = segment.base_offset
    for placed in segment.walk(segment.read_head(data), end_offset, check_bodies_from=0, data=data):
        end_offset = placed.header.next_offset
    return end_offset


def _index_problems(segment: Segment) -> list[str]:
    if not segment.index_saved:
        return []
    loaded = segment.load_index_file()
    if loaded is None:
        return [f"{segment.index_path} is missing or damaged; it is rebuilt when it is needed"]
    index, coverage = loaded
    if coverage.log_bytes != segment.tail.size or not len(index):
        return [f"{segment.index_path} covers {coverage.log_bytes} bytes of {segment.tail.size}"]
    return []
