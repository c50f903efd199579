"""Batches as they stand in segment files, for whoever passes them on as they are."""

from __future__ import annotations

from dataclasses import dataclass

from raystream.errors import OffsetOutOfRange, StorageError
from raystream.messages import Span
from raystream.storage.files import Files


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes of some spans. Both ways to get at them raise OffsetOutOfRange where they were deleted meanwhile."""

    files: Files
    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return sum(span.length for span in self.spans)

    def read(self) -> bytes:
        """All of them, in this process."""
        return b"".join([read_span(self.files, span) for span in self.spans])

    def send(self, descriptor: int) -> None:
        """All of them into a socket, by the kernel. Raises OSError as well, as the socket does."""
        for span in self.spans:
            try:
                self.files.send(span.path, span.position, span.length, descriptor)
            except FileNotFoundError:
                raise OffsetOutOfRange(f"{span.path} was deleted: fetch again") from None


def read_span(files: Files, span: Span) -> bytes:
    """The bytes of a span. Raises OffsetOutOfRange where they were deleted meanwhile, and StorageError."""
    try:
        data = files.read(span.path, span.position, span.length)
    except FileNotFoundError:
        raise OffsetOutOfRange(f"{span.path} was deleted: fetch again") from None
    if len(data) != span.length:
        raise StorageError(f"{span.path} has lost bytes past {span.position + len(data)}", path=span.path)
    return data
