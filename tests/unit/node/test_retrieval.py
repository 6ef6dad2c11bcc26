"""Fetching, with an archive and a store that are scripted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pe_triage.deliver.find_scu import PacsSeries, PacsStudy
from pe_triage.deliver.retrieve_scu import (
    Course,
    Part,
    Progress,
    Retrieved,
    Sent,
    parts_of,
)
from pe_triage.domain import PatientIdentity
from pe_triage.errors import InputError, QueryUnavailableError, StudyNotFoundError
from pe_triage.node.retrieval import (
    RetrievalError,
    RetrievalLaterError,
    Retriever,
    ask_archive,
    clean_scratch,
)

STUDY, CT = "2.25.7", "1.2.840.10008.5.1.4.1.1.2"
PATIENT = PatientIdentity(patient_id="SECRET", issuer="")
OTHER = PatientIdentity(patient_id="OTHER", issuer="")
DONE = Retrieved(course=Course.DONE)


class Archive:
    """Series UID to (modality, number of instances)."""

    def __init__(self, *patients: PatientIdentity, **series: tuple[str, int]) -> None:
        self.patients = patients or (PATIENT,)
        self.content = series or {"a": ("CT", 3)}
        self.down = False

    def study(self, study_uid: str) -> tuple[PacsStudy, ...]:
        if self.down:
            raise QueryUnavailableError("PACS: connection refused")
        return tuple(
            PacsStudy(
                study_uid=study_uid, identity=patient, name="", birth_date="", study_date="",
                study_time="", description="", modalities=(), series=None, instances=None,
            )
            for patient in self.patients
        )  # fmt: skip

    def series(self, _study_uid: str) -> tuple[PacsSeries, ...]:
        return tuple(
            PacsSeries(series_uid=uid, modality=modality, description="", instances=count)
            for uid, (modality, count) in self.content.items()
        )

    def instances(self, _study_uid: str, series_uid: str) -> dict[str, str]:
        return {f"{series_uid}.{n}": CT for n in range(self.content[series_uid][1])}


class Studies:
    def __init__(self, identity: PatientIdentity | None = None) -> None:
        self.identity = identity
        self.held: set[str] = set()
        self.quarantine: str | None = None

    def get(self, study_uid: str) -> Any:
        if self.identity is None:
            raise StudyNotFoundError(study_uid)
        return SimpleNamespace(identity=self.identity, quarantine_reason=self.quarantine)

    def instances(self, _study_uid: str) -> list[Any]:
        return [SimpleNamespace(sop_instance_uid=uid) for uid in self.held]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def retriever(
    archive: Archive,
    studies: Studies,
    move: Callable[[Part, Callable[[Progress], None]], Retrieved],
) -> Retriever:
    clock = Clock()
    return Retriever(
        archive=archive,
        studies=studies,  # type: ignore[arg-type]
        modality="CT",
        attempts=2,
        index_wait_s=5.0,
        move=move,
        monotonic=clock,
        sleep=clock.sleep,
    )


def sends(studies: Studies, archive: Archive, *, but: Sequence[str] = ()) -> Any:
    """A C-MOVE that sends all but these, and says success whatever it did."""
    parts: list[Part] = []

    def move(part: Part, _on: Callable[[Progress], None]) -> Retrieved:
        parts.append(part)
        asked = part.sop_instance_uids or tuple(archive.instances(STUDY, part.series_uid))
        studies.held |= set(asked) - set(but)
        return DONE

    move.parts = parts  # type: ignore[attr-defined]
    return move


def test_all_of_it() -> None:
    studies, archive = Studies(), Archive(a=("CT", 3), b=("CT", 2), c=("SR", 1))
    move = sends(studies, archive)
    assert retriever(archive, studies, move).fetch(STUDY) == 5
    assert [part.series_uid for part in move.parts] == ["a", "b"]
    assert retriever(archive, studies, move).fetch(STUDY) == 5
    assert len(move.parts) == 2, "what is held is not asked for"


def test_only_what_is_missing() -> None:
    studies, archive = Studies(PATIENT), Archive(a=("CT", 3))
    studies.held = {"a.0"}
    move = sends(studies, archive)
    retriever(archive, studies, move).fetch(STUDY)
    assert [part.sop_instance_uids for part in move.parts] == [("a.1", "a.2")]


def test_success_is_not_believed() -> None:
    studies, archive = Studies(), Archive(a=("CT", 3))
    move = sends(studies, archive, but=["a.1"])
    with pytest.raises(RetrievalError, match="1 of the 3 instances"):
        retriever(archive, studies, move).fetch(STUDY)
    assert [part.sop_instance_uids for part in move.parts] == [(), ("a.1",)]


@pytest.mark.parametrize(
    ("course", "error"),
    [(Course.REFUSED, RetrievalError), (Course.AGAIN, RetrievalLaterError)],
)
def test_what_the_archive_says_is_said(course: Course, error: type[Exception]) -> None:
    ended = Retrieved(course=course, error="PACS: A801: words")
    with pytest.raises(error, match="A801"):
        retriever(Archive(), Studies(), lambda *_: ended).fetch(STUDY)


def test_an_archive_that_is_away() -> None:
    archive = Archive()
    archive.down = True
    with pytest.raises(RetrievalLaterError, match="refused"):
        retriever(archive, Studies(), lambda *_: DONE).fetch(STUDY)


@pytest.mark.parametrize(
    ("archive", "studies", "words"),
    [
        (Archive(PATIENT, OTHER), Studies(), "several patients"),
        (Archive(OTHER), Studies(PATIENT), "another patient"),
        (Archive(a=("MR", 3)), Studies(), "no CT series"),
    ],
)
def test_whose_it_is(archive: Archive, studies: Studies, words: str) -> None:
    move = sends(studies, archive)
    with pytest.raises(RetrievalError, match=words) as caught:
        retriever(archive, studies, move).fetch(STUDY)
    assert move.parts == []
    assert "SECRET" not in str(caught.value)


def test_a_study_in_quarantine_is_not_fetched() -> None:
    studies = Studies(PATIENT)
    studies.quarantine = "two patients"
    with pytest.raises(InputError, match="in quarantine"):
        retriever(Archive(), studies, lambda *_: DONE).fetch(STUDY)


@pytest.mark.parametrize("named", [0, 2])
def test_a_series_of_which_the_archive_names_a_part_is_not_the_study(named: int) -> None:
    """A chest of which the archive cannot list the images is not left out in silence."""
    studies, archive = Studies(), Archive(a=("CT", 3), b=("CT", 2))
    every = archive.instances
    archive.instances = (
        lambda study, series: dict(  # type: ignore[method-assign]
            list(every(study, series).items())[: named if series == "a" else None]
        )
    )
    move = sends(studies, archive)
    with pytest.raises(RetrievalError, match=f"has 3 instances of a series, and names {named}"):
        retriever(archive, studies, move).fetch(STUDY)
    assert move.parts == []


def test_a_study_that_grows_at_the_archive_is_fetched_on() -> None:
    """A backfill of today meets studies that the scanner is still sending there."""
    studies, archive = Studies(), Archive(a=("CT", 2))
    plain = sends(studies, archive)

    def move(part: Part, on: Callable[[Progress], None]) -> Retrieved:
        ended = plain(part, on)
        if archive.content["a"][1] < 3:
            archive.content["a"] = ("CT", 3)
        return ended

    assert retriever(archive, studies, move).fetch(STUDY) == 3
    assert studies.held == {"a.0", "a.1", "a.2"}


def test_a_study_that_never_stops_growing_is_left_for_later() -> None:
    studies, archive = Studies(), Archive(a=("CT", 2))
    plain = sends(studies, archive)

    def move(part: Part, on: Callable[[Progress], None]) -> Retrieved:
        ended = plain(part, on)
        archive.content["a"] = ("CT", archive.content["a"][1] + 1)
        return ended

    with pytest.raises(RetrievalLaterError, match="still receiving it"):
        retriever(archive, studies, move).fetch(STUDY)


def test_a_class_that_is_not_stated_is_a_ct() -> None:
    archive = Archive(a=("CT", 1))
    archive.instances = lambda *_: {"a.0": ""}  # type: ignore[method-assign,assignment]
    assert CT in ask_archive(archive, STUDY, modality="CT").sop_classes


def test_long_lists_are_asked_for_in_parts() -> None:
    uids = [f"1.2.3.{n}" for n in range(250)]
    parts = list(parts_of(STUDY, {"1.2.3": uids, "1.2.4": ["1.2.4.0"]}, set(uids[1:])))
    assert [len(part.sop_instance_uids) for part in parts] == [100, 100, 49]
    assert {part.identifier().QueryRetrieveLevel for part in parts} == {"IMAGE"}


class Notes:
    """What was written down, and how much had come then."""

    def __init__(self, studies: Studies) -> None:
        self.studies = studies
        self.said: list[tuple[str, Any, int]] = []

    def begin(self, study_uid: str, wanted: Any) -> None:
        self.said.append(("begin", dict(wanted), len(self.studies.held)))

    def end(self, study_uid: str) -> None:
        self.said.append(("end", None, len(self.studies.held)))


@pytest.mark.parametrize("but", [[], ["a.1"]])
def test_what_is_to_come_is_written_down_before_it_is_asked_for(but: list[str]) -> None:
    studies, archive = Studies(), Archive(a=("CT", 3), b=("CT", 1))
    fetching = retriever(archive, studies, sends(studies, archive, but=but))
    notes = fetching._retrievals = Notes(studies)  # type: ignore[assignment]
    begun = ("begin", {"a": 3, "b": 1}, 0)
    if but:
        with pytest.raises(RetrievalError):
            fetching.fetch(STUDY)
        assert notes.said == [begun]
    else:
        fetching.fetch(STUDY)
        assert notes.said == [begun, ("end", None, 4)]


class KilledError(BaseException):
    """As kill -9: nobody catches it."""


@pytest.mark.parametrize("killed", [False, True])
def test_what_enters_the_spool_by_get_is_written_down_before_the_first_of_it(
    tmp_path: Path, killed: bool
) -> None:
    """A command that is killed between two images leaves a part, and nobody who knows of it."""
    studies, archive = Studies(), Archive(a=("CT", 3))

    def get(part: Part, store: Callable[[Sent], int], _classes: Sequence[str]) -> Retrieved:
        for uid in archive.instances(STUDY, part.series_uid):
            store(
                Sent(sop_class_uid=CT, sop_instance_uid=uid, transfer_syntax_uid="1.2", data=b"x")
            )
        return DONE

    def hand_over(objects: Sequence[tuple[Sent, Path]]) -> None:
        for sent, _ in objects:
            if killed and sent.sop_instance_uid == "a.2":
                raise KilledError
            studies.held.add(sent.sop_instance_uid)

    fetching = retriever(archive, studies, lambda *_: DONE)
    fetching._get, fetching._hand_over, fetching._scratch = get, hand_over, tmp_path
    notes = fetching._retrievals = Notes(studies)  # type: ignore[assignment]
    begun = ("begin", {"a": 3}, 0)
    if killed:
        with pytest.raises(KilledError):
            fetching.fetch(STUDY)
        assert notes.said == [begun]
    else:
        fetching.fetch(STUDY)
        assert notes.said == [begun, ("end", None, 3)]


def test_what_a_killed_command_had_fetched_is_removed(tmp_path: Path) -> None:
    old, young = tmp_path / "retrieving-old", tmp_path / "retrieving-young"
    for folder in (old, young, tmp_path / "spool"):
        folder.mkdir()
        (folder / "000000").write_bytes(b"x")
    for path in (old, tmp_path / "spool"):
        os.utime(path, (1e9, 1e9))
    clean_scratch(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["retrieving-young", "spool"]
