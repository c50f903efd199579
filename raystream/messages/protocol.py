"""The version of the protocol that a message was made for."""

from __future__ import annotations

from typing import Final

from raystream.errors import ProtocolMismatch

PROTOCOL: Final = 1
OLDEST_PROTOCOL: Final = 1
NO_EPOCH: Final = -1
"""In a request's `leader_epoch`: the caller does not know it and takes whatever leader answers."""
EARLIEST_TIMESTAMP: Final = -2
LATEST_TIMESTAMP: Final = -1


def check_protocol(protocol: int) -> None:
    """Raises ProtocolMismatch unless this process understands `protocol`."""
    if not OLDEST_PROTOCOL <= protocol <= PROTOCOL:
        raise ProtocolMismatch(
            f"the other side speaks protocol {protocol}, this raystream {OLDEST_PROTOCOL} to {PROTOCOL}: "
            "install the same release of raystream in the job and on the cluster"
        )
