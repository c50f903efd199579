"""What raystream's actors log: warnings by default, more where $RAYSTREAM_LOG_LEVEL asks for it ("INFO", "DEBUG")."""

from __future__ import annotations

import logging
import os


def begin() -> None:
    """Sets this process's logging up."""
    level = os.environ.get("RAYSTREAM_LOG_LEVEL", "WARNING").upper()
    if level in logging.getLevelNamesMapping():
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("raystream").setLevel(level)
