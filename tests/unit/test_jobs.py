"""What a job of consumers is asked for, before anything is started."""

from __future__ import annotations

from typing import Any

import pytest

from raystream.cluster import Cluster
from raystream.errors import InvalidArgument


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"each_batch": len}, "either group= or share="),
        ({"each_batch": len, "group": "g", "share": "s"}, "either group= or share="),
        ({"group": "g"}, "either each_batch= or each_record="),
        ({"share": "s", "each_batch": len, "each_record": len}, "either each_batch= or each_record="),
        ({"share": "s", "each_record": len, "workers": 0}, "at least one"),
    ],
)
def test_what_makes_no_job_is_refused_with_a_sentence(how: dict[str, Any], said: str) -> None:
    cluster = Cluster(lambda: pytest.fail("nobody connects"))
    with pytest.raises(InvalidArgument, match=said):
        cluster.run_consumers("t", **how)
