"""What a fetch brought, as batches in memory: spans are mapped or read, bytes are taken as they are.

A span is mapped by itself, from its first page to its last byte, so nothing past the length given can be touched and
the mapping goes when the last Arrow buffer over it goes. Small spans are copied: a mapping costs a file descriptor.
Headers are read here, rows are not: `columns.py` checks and decodes them in the thread that wants them.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa

from raystream import messages as m
from raystream.batch import BatchHeader, Bytes, row_count, walk
from raystream.errors import CorruptBatch

COPY_BELOW_BYTES: Final = 128 * 1024
MAX_LIVE_MAPPINGS: Final = 512
"""Beyond that many mappings still in use, spans are copied, so that a reader never runs out of file descriptors."""


class SpanGone(Exception):
    """The file is not there, or shorter than the span: it was replaced meanwhile. Fetch again."""


class SpanUnreadable(Exception):
    """The file is there and this process may not read it: ask for bytes."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Whole batches of one schema, in offset order, with their bytes; those without rows and the aborted are left out.

    `next_offset` is where the next fetch goes on; rows below `first_offset` and from `end_offset` on were not asked
    for.
    """

    schema: pa.Schema
    entries: list[tuple[BatchHeader, memoryview]]
    first_offset: int
    next_offset: int
    size_bytes: int
    high_watermark: int
    end_offset: int | None = None
    last_epoch: int = m.NO_EPOCH
    """The leader epoch of the last batch, also of one that was left out."""


def join_head(queue: deque[Any], up_to_bytes: int) -> None:
    """Makes one run of those at the head of a queue that follow each other in one schema, `up_to_bytes` at most."""
    parts: list[Fetched] = []
    size_bytes = 0
    for part in queue:
        if not isinstance(part, Fetched) or (parts and part.schema is not parts[0].schema):
            break
        size_bytes += part.size_bytes
        if parts and size_bytes > up_to_bytes:
            break
        parts.append(part)
    if len(parts) < 2:
        return
    for _ in parts:
        queue.popleft()
    queue.appendleft(
        replace(
            parts[-1],
            entries=[entry for part in parts for entry in part.entries],
            first_offset=parts[0].first_offset,
            size_bytes=sum(part.size_bytes for part in parts),
        )
    )


class _LiveMappings:
    count = 0

    @classmethod
    def released(cls) -> None:
        cls.count -= 1


def pieces(reply: m.FetchReply) -> Iterator[tuple[int, Bytes]]:
    """The reply's memory, run by run, with the schema id of each. Raises SpanGone or SpanUnreadable."""
    for span in reply.spans:
        yield span.schema_id, read_span(span)
    yield from zip(reply.schema_ids, reply.chunks, strict=True)


def read_span(span: m.Span) -> Bytes:
    """The bytes of a span, mapped where that pays."""
    try:
        fd = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SpanGone(str(error)) from None
    except OSError as error:
        raise SpanUnreadable(str(error)) from None
    try:
        if os.fstat(fd).st_size < span.position + span.length:
            raise SpanGone(f"{span.path} ends before byte {span.position + span.length}")
        if span.length < COPY_BELOW_BYTES or _LiveMappings.count >= MAX_LIVE_MAPPINGS:
            return _copied(fd, span)
        return _mapped(fd, span)
    except OSError as error:
        raise SpanUnreadable(f"{span.path}: {error}") from None
    finally:
        os.close(fd)


def _copied(fd: int, span: m.Span) -> bytes:
    read = []
    position, left = span.position, span.length
    while left:
        data = os.pread(fd, min(left, 1 << 30), position)
        if not data:
            raise SpanGone(f"{span.path} ends before byte {span.position + span.length}")
        read.append(data)
        position += len(data)
        left -= len(data)
    return read[0] if len(read) == 1 else b"".join(read)


def _mapped(fd: int, span: m.Span) -> memoryview:
    into_page = span.position % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(
        fd, into_page + span.length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=span.position - into_page
    )
    _LiveMappings.count += 1
    weakref.finalize(mapped, _LiveMappings.released).atexit = False
    return memoryview(mapped)[into_page:]


def batches_from(
    data: Bytes,
    schema: pa.Schema,
    offset: int,
    *,
    end_offset: int | None = None,
    high_watermark: int = -1,
    aborted: Sequence[tuple[int, int, int]] = (),
) -> Fetched | None:
    """Reads the headers of a run of batches; None where every one lies below `offset`. Those of transactions that were
    aborted, (producer id, first offset, last offset) each, are left out.

    Raises CorruptBatch where the bytes are no run of batches that go on from `offset`.
    """
    entries = []
    next_offset, last_epoch = offset, m.NO_EPOCH
    ranges: dict[int, list[tuple[int, int]]] = {}
    for producer_id, first, last in aborted:
        ranges.setdefault(producer_id, []).append((first, last))
    for header, message in walk(data):
        if header.base_offset < 0 or header.last_offset_delta < 0:
            raise CorruptBatch(f"a batch states base offset {header.base_offset} and delta {header.last_offset_delta}")
        if header.next_offset <= offset:
            continue
        if header.base_offset < next_offset and next_offset != offset:
            raise CorruptBatch(f"the batch at offset {header.base_offset} stands behind offset {next_offset}")
        next_offset, last_epoch = header.next_offset, header.leader_epoch
        taken_back = header.is_transactional and any(
            first <= header.base_offset <= last for first, last in ranges.get(header.producer_id, ())
        )
        empty = header.is_control or (header.is_explicit and row_count(message, header) == 0)
        if not empty and not taken_back:
            entries.append((header, message))
    if next_offset == offset:
        return None
    if end_offset is not None:
        next_offset = min(next_offset, max(end_offset, offset))
    return Fetched(schema, entries, offset, next_offset, len(data), high_watermark, end_offset, last_epoch)
