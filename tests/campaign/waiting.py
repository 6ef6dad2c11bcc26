"""Time limits of the campaign, and how much longer they are on a machine that does much else."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.support import node

PATIENCE = "FAULT_CAMPAIGN_PATIENCE"
"""Environment variable: factor of every time limit; recovery is measured all the same."""


def patience() -> float:
    """Return the factor."""
    return float(os.environ.get(PATIENCE, "1"))


def wait_for(what: Callable[[], Any], timeout_s: float, message: str) -> Any:
    """Poll until `what` is truthy; its value."""
    return node.wait_for(what, timeout_s * patience(), message)
