from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, insert, select

from pe_triage.domain import StudyState
from pe_triage.store.schema import metadata, quarantine
from pe_triage.store.studies import study_state
from pe_triage.store.types import StrictJson, clean_text, storable

ZONES = st.integers(-12 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))


@given(st.text())
def test_clean_text_can_be_stored(value: str) -> None:
    cleaned = clean_text(value)
    cleaned.encode("utf-8")
    assert "\x00" not in cleaned
    assert clean_text(cleaned) == cleaned


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_clean_text_leaves_good_text_alone(value: str) -> None:
    assert clean_text(value) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_storable_is_always_json(value: object) -> None:
    cleaned = storable(value)
    json.dumps(cleaned, allow_nan=False)
    assert storable(cleaned) == cleaned


def test_nan_is_refused_where_it_matters() -> None:
    with pytest.raises(ValueError, match="JSON"):
        StrictJson().process_bind_param({"x": math.nan}, create_engine("sqlite://").dialect)


@given(
    st.lists(
        st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=ZONES),  # noqa: DTZ001
        min_size=2,
        max_size=6,
    )
)
def test_times_come_back_and_sort_as_they_are(times: list[datetime]) -> None:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    base = {"path": "x", "kind": "OTHER", "reason": "why", "state": "HELD"}
    with engine.begin() as connection:
        connection.execute(insert(quarantine), [base | {"created_at": at} for at in times])
        column = quarantine.c.created_at
        found = list(connection.execute(select(column).order_by(column)).scalars())
        since = list(connection.execute(select(column).where(column >= times[0])).scalars())
    engine.dispose()
    assert found == sorted(times)
    assert all(at.tzinfo is UTC for at in found)
    assert len(since) == sum(at >= times[0] for at in times)


def test_running_is_derived_from_the_newest_job() -> None:
    table = {
        ("QUEUED", "RUNNING"): StudyState.RUNNING,
        ("QUEUED", "QUEUED"): StudyState.QUEUED,
        ("RECEIVING", "RUNNING"): StudyState.RECEIVING,
        ("RECEIVING", None): StudyState.RECEIVING,
        ("QUARANTINED", "RUNNING"): StudyState.QUARANTINED,
        ("DONE", "DONE"): StudyState.DONE,
    }
    for (stored, job), wanted in table.items():
        assert study_state(stored, job) is wanted


def test_the_room_never_imports_torch_or_pydicom_files() -> None:
    from pe_triage import store

    for path in Path(store.__file__).parent.glob("*.py"):
        source = path.read_text()
        assert "import torch" not in source
        assert "pydicom" not in source
