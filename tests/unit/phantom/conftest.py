"""Studies that several tests look at, generated once."""

from __future__ import annotations

import pytest

from pe_triage.phantom import PhantomStudy, generate_study


@pytest.fixture(scope="session")
def acute() -> PhantomStudy:
    """An acute study of 60 thick slices at 128 x 128."""
    return generate_study(27, "pe-acute", size=128, n_slices=60)


@pytest.fixture(scope="session")
def small() -> PhantomStudy:
    """Few, small slices, for what concerns headers and files."""
    return generate_study(4, "pe-chronic", size=64, n_slices=6)
