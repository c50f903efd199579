"""Wrong usage of `raystream consume` that is seen before anything is asked of a cluster."""

from __future__ import annotations

import pytest

from raystream.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--group", ""], "--group: a group has a name"),
        (["-o", "flights.xlsx"], "-o: .xlsx names no format"),
    ],
)
def test_wrong_usage(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a named cluster's environment is left as it is
    with pytest.raises(SystemExit) as ended:
        main(["consume", "flights", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
