"""Questions to an archive: C-FIND in the Study Root model (PS3.4 Annex C.6.2).

What a peer leaves out is None here and never guessed. Counts are optional keys (PS3.4 Section
C.3.4): an archive that does not give them at one level is asked at the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING, TypeVar

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.presentation import build_context

from pe_triage.deliver.requestor import RequestorOptions, open_association
from pe_triage.domain import Destination, PatientIdentity
from pe_triage.errors import (
    PermanentDeliveryError,
    QueryRefusedError,
    QueryUnavailableError,
    RetryableDeliveryError,
)
from pe_triage.identity import comparable, identity_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynetdicom.association import Association

T = TypeVar("T")

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)

STUDY_KEYS = (
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "ModalitiesInStudy",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
)
"""Return keys at STUDY level beside the UID."""
SERIES_KEYS = ("Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances")
"""Return keys at SERIES level beside the UIDs."""
INSTANCE_KEYS = ("SOPInstanceUID", "SOPClassUID", "InstanceAvailability")
"""Return keys at IMAGE level."""
GONE = "UNAVAILABLE"
"""Instance Availability (0008,0056) of what the peer lists and cannot give (PS3.3 C.4.23.1.1)."""

_PENDING = (0xFF00, 0xFF01)

WILD = frozenset("*?\\")
"""Characters by which one value matches several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindRule:
    """Statuses that end a C-FIND (PS3.4 Table C.4-1), both ends included, and what they mean."""

    first: int
    last: int
    again: bool
    """Whether the same question may be answered later."""
    words: str


def _rule(first: int, last: int, again: bool, words: str) -> FindRule:
    return FindRule(first=first, last=last, again=again, words=words)


FIND_RULES: tuple[FindRule, ...] = (
    _rule(0x0110, 0x0110, True, "processing failure"),
    _rule(0x0122, 0x0122, False, "SOP class not supported"),
    _rule(0x0124, 0x0124, False, "not authorised"),
    _rule(0x0213, 0x0213, True, "resource limitation"),
    _rule(0xA700, 0xA7FF, True, "out of resources"),
    _rule(0xA900, 0xA9FF, False, "identifier does not match SOP class"),
    _rule(0xC000, 0xCFFF, False, "unable to process"),
    _rule(0xFE00, 0xFE00, True, "matching was cancelled"),
)
"""The first rule that holds decides; any other failure is asked again later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryOptions:
    """Bounds of one question."""

    timeout_s: float = 10.0
    """To connect, for the association, and between two responses."""
    total_s: float = 120.0
    """For all responses to one question: a peer may not trickle for ever."""
    max_matches: int = 20_000
    """More matches than this to one question are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PacsStudy:
    """One study as an archive describes it; the patient's name and date never reach a repr."""

    study_uid: str
    identity: PatientIdentity = field(repr=False)
    name: str = field(repr=False)
    birth_date: str = field(repr=False)
    study_date: str
    study_time: str
    description: str = field(repr=False)
    modalities: tuple[str, ...]
    """Empty where the archive does not say."""
    series: int | None
    instances: int | None
    sex: str = field(default="", repr=False)
    accession_number: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PacsSeries:
    """One series as an archive describes it."""

    series_uid: str
    modality: str
    description: str = field(repr=False)
    instances: int | None


class QueryScu:
    """Asks one peer; each question is an association of its own.

    Parameters
    ----------
    peer
        Who answers.
    calling_aet
        Our AE title.
    options
        Bounds.
    """

    def __init__(
        self, peer: Destination, calling_aet: str, options: QueryOptions | None = None
    ) -> None:
        self.peer = peer
        self._calling_aet = calling_aet
        self._options = options or QueryOptions()

    def study(self, study_uid: str) -> tuple[PacsStudy, ...]:
        """Every entry that the peer has of one study: none, one, or one for each patient.

        Raises
        ------
        QueryUnavailableError, QueryRefusedError
            No usable answer.
        """
        with self._association() as association:
            found = self._find(association, "STUDY", {"StudyInstanceUID": study_uid}, STUDY_KEYS)
        studies = self._read(_study, found)
        return self._only(studies, [s.study_uid for s in studies], study_uid)

    def series(self, study_uid: str) -> tuple[PacsSeries, ...]:
        """Series of one study, each with its number of instances.

        A series whose number the peer leaves out is counted by asking for its instances.

        Raises
        ------
        QueryUnavailableError, QueryRefusedError
            No usable answer.
        """
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": ""}
        with self._association() as association:
            found = self._find(association, "SERIES", keys, SERIES_KEYS)
            uids = self._read(lambda ds: comparable(ds.get("StudyInstanceUID", study_uid)), found)
            series = self._read(_series, self._only(found, uids, study_uid))
            return tuple(
                item if item.instances is not None else self._counted(association, study_uid, item)
                for item in series
            )

    def instances(self, study_uid: str, series_uid: str) -> dict[str, str]:
        """Every instance that the peer has of one series: SOP Instance UID to SOP Class UID.

        The class is empty where the peer does not say it. What it lists as unavailable it has not.

        Raises
        ------
        QueryUnavailableError, QueryRefusedError
            No usable answer.
        """
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        with self._association() as association:
            found = self._find(association, "IMAGE", keys, INSTANCE_KEYS)

        def read(ds: Dataset) -> tuple[str, str, str, str, str]:
            return (
                comparable(ds.get("StudyInstanceUID", study_uid)),
                comparable(ds.get("SeriesInstanceUID", series_uid)),
                comparable(ds.get("SOPInstanceUID", "")),
                comparable(ds.get("SOPClassUID", "")),
                comparable(ds.get("InstanceAvailability", "")),
            )

        # A peer that ignored a key is no witness.
        mine = [
            (uid, sop_class)
            for study, series, uid, sop_class, availability in self._read(read, found)
            if (study, series) == (study_uid, series_uid) and uid and availability != GONE
        ]
        return dict(mine)

    def studies(
        self, first: date, last: date, *, modality: str | None = None
    ) -> tuple[PacsStudy, ...]:
        """Studies of these days (both included), by Study Date (0008,0020).

        Parameters
        ----------
        modality
            Modalities in Study (0008,0061) to match. A peer need not match it (it is an optional
            key), so the caller looks at `PacsStudy.modalities`, which may be empty.

        Raises
        ------
        QueryUnavailableError, QueryRefusedError
            No usable answer.
        """
        days = f"{first:%Y%m%d}" if first == last else f"{first:%Y%m%d}-{last:%Y%m%d}"
        keys = {"StudyInstanceUID": "", "StudyDate": days, "ModalitiesInStudy": modality or ""}
        with self._association() as association:
            return self._read(_study, self._find(association, "STUDY", keys, STUDY_KEYS))

    def studies_of(
        self, identity: PatientIdentity, *, modality: str | None = None
    ) -> tuple[PacsStudy, ...]:
        """Studies that the peer finds for a Patient ID (0010,0020); it may find others' too.

        Matching is the peer's (some ignore case, or the issuer), so the caller compares each.

        Raises
        ------
        QueryUnavailableError, QueryRefusedError
            No usable answer, or a Patient ID that cannot be asked for without matching others.
        """
        if not identity.patient_id or WILD & set(identity.patient_id):
            # PS3.4 Section C.2.2.2: empty matches everybody, these match many.
            raise QueryRefusedError("the Patient ID is empty or holds one of * ? \\")
        keys = {
            "StudyInstanceUID": "",
            "PatientID": identity.patient_id,
            "IssuerOfPatientID": "" if WILD & set(identity.issuer) else identity.issuer,
            "ModalitiesInStudy": modality or "",
        }
        with self._association() as association:
            return self._read(_study, self._find(association, "STUDY", keys, STUDY_KEYS))

    def _counted(self, association: Association, study_uid: str, item: PacsSeries) -> PacsSeries:
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": item.series_uid}
        found = self._find(association, "IMAGE", keys, ("SOPInstanceUID",))
        uids = {comparable(ds.get("SOPInstanceUID", "")) for ds in found} - {""}
        return replace(item, instances=len(uids))

    @contextmanager
    def _association(self) -> Iterator[Association]:
        timeout_s = self._options.timeout_s
        try:
            association = open_association(
                self.peer,
                calling_aet=self._calling_aet,
                contexts=[build_context(STUDY_ROOT_FIND, list(SYNTAXES))],
                options=RequestorOptions(
                    connect_timeout_s=timeout_s, acse_timeout_s=timeout_s, dimse_timeout_s=timeout_s
                ),
            )
        except RetryableDeliveryError as error:
            raise QueryUnavailableError(error.message) from None
        except PermanentDeliveryError as error:
            raise QueryRefusedError(f"{error.message} (Study Root C-FIND)") from None
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _find(
        self,
        association: Association,
        level: str,
        keys: Mapping[str, str],
        wanted: Iterable[str],
    ) -> list[Dataset]:
        identifier = Dataset()
        identifier.QueryRetrieveLevel = level
        for keyword in wanted:
            setattr(identifier, keyword, "")
        for keyword, value in keys.items():
            setattr(identifier, keyword, value)
        deadline = time.monotonic() + self._options.total_s
        matches: list[Dataset] = []
        try:
            for status, match in association.send_c_find(identifier, STUDY_ROOT_FIND):
                code = status.get("Status")
                if code is None:
                    raise self._unanswered(association)
                if code == 0:
                    return matches
                if code not in _PENDING:
                    raise self._failed(int(code))
                if match is None:
                    raise QueryRefusedError(f"{self.peer}: a match of the C-FIND cannot be decoded")
                matches.append(match)
                if len(matches) > self._options.max_matches:
                    raise QueryRefusedError(
                        f"{self.peer}: more than {self._options.max_matches} matches"
                    )
                if time.monotonic() > deadline:
                    raise QueryUnavailableError(
                        f"{self.peer}: the C-FIND took longer than {self._options.total_s:g} s"
                    )
        except (QueryUnavailableError, QueryRefusedError):
            _abort(association)
            raise
        except (RuntimeError, ValueError) as error:
            _abort(association)
            raise QueryUnavailableError(f"{self.peer}: connection lost during C-FIND") from error
        raise QueryUnavailableError(f"{self.peer}: the C-FIND ended without a status")

    def _unanswered(self, association: Association) -> QueryUnavailableError:
        aborted = association.is_aborted or association.acse.is_aborted()
        if aborted and not association._sent_abort:
            # Orthanc, for one, accepts the association of a caller that may not ask.
            return QueryUnavailableError(
                f"{self.peer}: aborted the association at our C-FIND; may AE title "
                f"{self._calling_aet} ask it?"
            )
        return QueryUnavailableError(
            f"{self.peer}: no answer to C-FIND within {self._options.timeout_s:g} s, "
            "or an invalid one"
        )

    def _failed(self, code: int) -> QueryUnavailableError | QueryRefusedError:
        for rule in FIND_RULES:
            if rule.first <= code <= rule.last:
                kind = QueryUnavailableError if rule.again else QueryRefusedError
                return kind(
                    f"{self.peer}: C-FIND ended with status {code:04X}: {rule.words}", status=code
                )
        return QueryUnavailableError(
            f"{self.peer}: C-FIND ended with status {code:04X}: unknown status", status=code
        )

    def _read(self, read: Callable[[Dataset], T], found: Sequence[Dataset]) -> tuple[T, ...]:
        try:
            return tuple(read(ds) for ds in found)
        except QueryRefusedError as error:
            raise QueryRefusedError(f"{self.peer}: {error.message}") from None
        except Exception as error:  # pydicom decodes late, and raises many kinds on bad bytes
            raise QueryRefusedError(f"{self.peer}: a match of the C-FIND cannot be read") from error

    def _only(self, found: Sequence[T], uids: Sequence[str], study_uid: str) -> tuple[T, ...]:
        """Matches that are of the study asked for; a peer that ignored the key is no witness."""
        mine = tuple(item for item, uid in zip(found, uids, strict=True) if uid == study_uid)
        if found and not mine:
            raise QueryRefusedError(f"{self.peer}: answered with other studies than was asked for")
        return mine


def _abort(association: Association) -> None:
    """End an association on which answers may still be on their way."""
    if association.is_established:
        association.abort()


def _study(ds: Dataset) -> PacsStudy:
    uid = comparable(ds.get("StudyInstanceUID", ""))
    if not uid:
        raise QueryRefusedError("a match of the C-FIND has no Study Instance UID")
    modalities = comparable(ds.get("ModalitiesInStudy")).split("\\")
    return PacsStudy(
        study_uid=uid,
        identity=identity_of(ds.get("PatientID"), ds.get("IssuerOfPatientID")),
        name=comparable(str(ds.get("PatientName") or "")),
        birth_date=comparable(ds.get("PatientBirthDate")),
        study_date=comparable(ds.get("StudyDate")),
        study_time=comparable(ds.get("StudyTime")),
        description=comparable(ds.get("StudyDescription")),
        modalities=tuple(m for m in modalities if m),
        series=_number(ds.get("NumberOfStudyRelatedSeries")),
        instances=_number(ds.get("NumberOfStudyRelatedInstances")),
        sex=comparable(ds.get("PatientSex")),
        accession_number=comparable(ds.get("AccessionNumber")),
    )


def _series(ds: Dataset) -> PacsSeries:
    uid = comparable(ds.get("SeriesInstanceUID", ""))
    if not uid:
        raise QueryRefusedError("a match of the C-FIND has no Series Instance UID")
    return PacsSeries(
        series_uid=uid,
        modality=comparable(ds.get("Modality")),
        description=comparable(ds.get("SeriesDescription")),
        instances=_number(ds.get("NumberOfSeriesRelatedInstances")),
    )


def _number(value: object) -> int | None:
    """Integer string (VR IS), or None where it is absent, empty or none."""
    text = comparable(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
