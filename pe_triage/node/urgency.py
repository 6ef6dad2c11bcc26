"""Looks up in a study's images what the ``[[urgency]]`` rules ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path

from pydicom import Dataset, dcmread

from pe_triage.domain import InstanceRole
from pe_triage.logs import get_logger
from pe_triage.store.studies import StudyStore
from pe_triage.urgency import KEYWORDS, Place, UrgencyRule, place_of

PlaceOf = Callable[[str, Collection[str]], Place]
"""Study Instance UID and the AE titles that sent it, to its place in the queue."""


def place_finder(rules: Sequence[UrgencyRule], studies: StudyStore, data_dir: Path) -> PlaceOf:
    """Make a `PlaceOf` that reads one image of a study, and only where a rule needs it."""

    def find(study_uid: str, calling_aets: Collection[str]) -> Place:
        if not rules:
            return Place.ROUTINE

        @cache
        def header() -> Dataset:
            return _header(studies, data_dir, study_uid)

        try:
            return place_of(rules, calling_aets, lambda keyword: texts_in(header(), keyword))
        except Exception as error:  # noqa: BLE001 - a study that cannot be read is queued as usual
            get_logger().error("urgency.failed", study_uid=study_uid, error=type(error).__name__)
            return Place.ROUTINE

    return find


def texts_in(ds: Dataset, keyword: str) -> list[str]:
    """Values of an attribute in a data set and in its Request Attributes Sequence (0040,0275)."""
    found = []
    for item in (ds, *(ds.get("RequestAttributesSequence") or ())):
        value = item.get(keyword)
        if value is not None:
            found.append(str(value))
    return found


def _header(studies: StudyStore, data_dir: Path, study_uid: str) -> Dataset:
    for row in studies.instances(study_uid):
        if row.role is InstanceRole.IMAGE:
            return dcmread(
                data_dir / row.path,
                specific_tags=[
                    "SpecificCharacterSet",
                    "RequestAttributesSequence",
                    *KEYWORDS.values(),
                ],
                stop_before_pixels=True,
            )
    return Dataset()
