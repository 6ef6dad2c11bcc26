"""The wall clock, as it is passed in: for times that people read, never for leases."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The wall clock: aware, UTC."""
    return datetime.now(UTC)


def local_now() -> datetime:
    """The wall clock in the machine's zone: what results are dated by, as the site's scanners."""
    return datetime.now().astimezone()
