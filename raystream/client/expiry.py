"""What a record that was not acknowledged in time is told: that nothing of it was written, or that nobody knows."""

from __future__ import annotations

from raystream.errors import DeliveryTimeout, RaystreamError, RequestTimeout


def never_sent(delivery_timeout_ms: int, cause: BaseException | None) -> DeliveryTimeout:
    """For records that waited until it was too late; `cause`: what those before them, or all, waited for."""
    why = "" if cause is None else f": {cause}"
    error = DeliveryTimeout(
        f"the record was not sent within {delivery_timeout_ms:,} ms (delivery_timeout_ms); nothing of it was "
        f"written{why}",
        retriable=True,
    )
    error.__cause__ = cause
    return error


def not_acknowledged(delivery_timeout_ms: int, timeout: RequestTimeout, *, unknown: bool) -> DeliveryTimeout:
    """For a batch whose tries failed until it was too late.

    `unknown`: one of the tries ended without an answer. Otherwise each was refused, and nothing written.
    """
    last = timeout.__cause__
    outcome = "whether it is in the log is unknown" if unknown else "nothing of it was written"
    error = DeliveryTimeout(
        f"the record was not acknowledged within {delivery_timeout_ms:,} ms (delivery_timeout_ms); {outcome}: "
        f"{timeout}",
        retriable=not unknown,
    )
    error.__cause__ = last if isinstance(last, RaystreamError) else timeout
    return error
