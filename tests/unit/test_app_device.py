"""A device that is not here stops the start, before anything is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pe_triage import app, startup
from pe_triage.config import Settings
from pe_triage.errors import ConfigurationError


def test_a_device_that_is_not_here_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        pytest.fail("the node went on to listen")

    monkeypatch.setattr(app, "open_listener", never)
    data_dir = tmp_path / "data"
    with pytest.raises(ConfigurationError, match="device"):
        app.run_node(Settings(data_dir=data_dir, device="cuda:99", port=0))
    assert not data_dir.exists()


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_what_is_always_here_costs_no_process(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup.subprocess, "run", None)
    startup.check_device(device)
