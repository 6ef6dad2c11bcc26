"""One UID, one object: whatever changes the bytes of a result object changes its UID."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta, timezone
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from pe_triage.domain import ResultSet
from pe_triage.report import ReportSettings
from pe_triage.report.edition import edition_of
from tests.unit.report.conftest import NOW, Scene, make_scene


def _renamed(scene: Scene) -> dict[str, Dataset]:
    headers: dict[str, Dataset] = {}
    for uid, ds in scene.headers.items():
        headers[uid] = pydicom.dcmread(BytesIO(_file(ds)), force=True)
        headers[uid].PatientName = "Corrected^Patient"
    return headers


def _file(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def _other_heat(scene: Scene) -> Any:
    result = scene.result()
    first, *others = result.key_slices
    heat = np.array(first.heatmap_yx)
    heat[3, 5] = np.nextafter(heat[3, 5], np.float32(2))
    return replace(result, key_slices=(replace(first, heatmap_yx=heat), *others))


def _earlier(scene: Scene) -> list[Dataset]:
    report = scene.build(scene.result("NEGATIVE")).objects[0]
    return [pydicom.dcmread(BytesIO(report.encoded))]


CHANGES: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "time": lambda _: {"now": NOW + timedelta(microseconds=1)},
    "zone": lambda _: {"now": NOW.astimezone(timezone(timedelta(hours=2)))},
    "program": lambda _: {"settings": ReportSettings(software_version="9.9")},
    "a setting": lambda _: {"settings": ReportSettings(institution_name="Other")},
    "patient corrected": lambda scene: {"headers": _renamed(scene)},
    "a word of the answer": lambda scene: {
        "result": replace(scene.result(), series_choice="another reason")
    },
    "a bit of a heatmap": lambda scene: {"result": _other_heat(scene)},
    "another answer": lambda scene: {"result": scene.result("INDETERMINATE")},
    "an earlier report": lambda scene: {"predecessors": _earlier(scene)},
    "the run": lambda scene: {"study": replace(scene.study, run=2)},
}


@pytest.fixture(scope="module")
def first() -> ResultSet:
    scene = make_scene()
    return scene.build(scene.result())


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_bytes_changes_the_uid(
    scene: Scene, first: ResultSet, change: str
) -> None:
    """A run that is repeated after a restore meets objects that an archive has already."""
    arguments = {"result": scene.result()} | CHANGES[change](scene)
    other = scene.build(**arguments)
    assert [o.kind for o in other.objects][:2] == [o.kind for o in first.objects][:2]
    known = {o.sop_instance_uid: o.encoded for o in first.objects}
    again = {o.sop_instance_uid: o.encoded for o in other.objects}
    assert not known.keys() & again.keys()
    series = {o.series_uid for o in first.objects}
    assert not series & {o.series_uid for o in other.objects}


def test_the_same_run_made_twice_makes_the_same_objects(scene: Scene, first: ResultSet) -> None:
    again = scene.build(scene.result())
    assert [(o.sop_instance_uid, o.encoded) for o in again.objects] == [
        (o.sop_instance_uid, o.encoded) for o in first.objects
    ]


def test_objects_of_one_run_name_each_other_by_their_uids(first: ResultSet) -> None:
    report = pydicom.dcmread(BytesIO(first.objects[0].encoded))
    summary = next(o for o in first.objects if o.label == "summary")
    assert summary.sop_instance_uid.startswith("2.25.")
    assert report.SOPInstanceUID == first.objects[0].sop_instance_uid


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        ((1,), (1.0,)),
        ((0,), (False,)),
        ((None,), ("None",)),
        (([1, 2], 3), ([1], 2, 3)),
        (({"a": 1, "b": 2},), ({"a": 2, "b": 1},)),
        ((np.zeros((2, 3)),), (np.zeros((3, 2)),)),
        ((np.zeros(2, np.float32),), (np.zeros(2, np.int32),)),
    ],
)
def test_unlike_values_are_told_apart(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert edition_of(*one) != edition_of(*other)
    assert edition_of(*one) == edition_of(*one)


def test_order_counts_where_there_is_one() -> None:
    assert edition_of({"a": 1, "b": 2}) == edition_of({"b": 2, "a": 1})
    assert edition_of(frozenset("abc")) == edition_of(frozenset("cab"))
    assert edition_of([1, 2]) != edition_of([2, 1])


def test_what_has_no_certain_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        edition_of(object())
