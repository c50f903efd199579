"""The recovery checkpoint: what opening a log may take for granted, in one small file.

    raystream-checkpoint/1 <CRC32C, 8 hex digits> <JSON>\\n

The CRC covers the line without the CRC itself, so that a flipped version is damage and not a later version.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from raystream.checksum import crc32c
from raystream.errors import CorruptBatch, NewerFormat

CHECKPOINT_NAME: Final = "checkpoint"
_NAME: Final = b"raystream-checkpoint/"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything below the recovery point is on the disk and was checked.

    The recovery point is `offset`, which begins at `position` of the segment whose base offset is `segment` (-1: the
    log has no segment). `epochs` are the leader epochs up to there, each with the offset where it begins. `producers`
    is the offset that names the producer snapshot taken there (-1: there was none). `clean` says that
    the log was closed in order; recovery does not rely on it. Compaction has gone up to `cleaned_to`; `compacted` says
    that some batch may hold less rows than offsets.
    """

    topic_id: str
    partition: int
    segment: int
    position: int
    offset: int
    high_watermark: int
    start_offset: int
    producers: int
    epochs: tuple[tuple[int, int], ...]
    clean: bool = False
    cleaned_to: int = 0
    compacted: bool = False
    aborted: int = -1
    """Where the marker of the last aborted transaction up to there stands (-1: there is none in the log)."""

    def to_bytes(self) -> bytes:
        text = json.dumps(asdict(self), separators=(",", ":")).encode()
        head = _NAME + b"%d " % _VERSION
        return head + b"%08x " % crc32c(text, crc32c(head)) + text + b"\n"


def read_checkpoint(data: bytes) -> Checkpoint:
    """A checkpoint file's content. Raises CorruptBatch where it is damaged, NewerFormat for a later version's."""
    if not data.startswith(_NAME):
        raise CorruptBatch("the checkpoint does not begin as one")
    version, _, rest = data[len(_NAME) :].partition(b" ")
    crc, _, text = rest.partition(b" ")
    text = text.removesuffix(b"\n")
    if crc != b"%08x" % crc32c(text, crc32c(_NAME + version + b" ")):
        raise CorruptBatch("the checkpoint fails its CRC")
    if not version.isdigit() or int(version) != _VERSION:
        if version.isdigit() and int(version) > _VERSION:
            raise NewerFormat(
                f"the checkpoint has format version {int(version)}; this raystream reads up to {_VERSION}: upgrade it"
            )
        raise CorruptBatch("the checkpoint states an impossible version")
    try:
        return Checkpoint(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise CorruptBatch(f"the checkpoint lacks a field: {error}") from None
