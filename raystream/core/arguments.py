"""What a request holds came from somebody's notebook: checked here before anything is decided or written down."""

from __future__ import annotations

import operator

from raystream.errors import InvalidArgument


def whole(what: str, value: object) -> int:
    """The value as int; NumPy's integers are integers too, True, 3.0 and "3" are not. Raises InvalidArgument."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return int(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument(f"{what}={value!r} is not a whole number") from None


def text(what: str, value: object, *, at_least: int, at_most: int, printable: bool = False) -> str:
    """The value as str of so many characters. Raises InvalidArgument."""
    if not isinstance(value, str) or not at_least <= len(value) <= at_most or (printable and not value.isprintable()):
        kind = "printable characters" if printable else "characters"
        shown = repr(value) if len(repr(value)) <= 300 else repr(value)[:300] + "…"
        raise InvalidArgument(f"{what} {shown}: it has {at_least or 'up'} to {at_most:,} {kind}")
    return value
