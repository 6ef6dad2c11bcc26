"""What a site may choose about its result objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from pydicom.sr.coding import Code

from pe_triage import __version__
from pe_triage.domain import Priority, ResultKind
from pe_triage.errors import ConfigurationError
from pe_triage.report import tables as t
from pe_triage.report.concepts import PRIORITY_CODES, PROCEDURE_REPORTED
from pe_triage.report.policy import TriagePolicy

SERIES_ORDER = (
    ResultKind.SR,
    ResultKind.SUMMARY,
    ResultKind.HEATMAP,
    ResultKind.NARRATIVE,
    ResultKind.KEY_OBJECTS,
    ResultKind.PARAMETRIC_MAP,
)
"""Kinds of objects in the order of their Series Numbers."""

UNMARKED: Literal["unmarked"] = "unmarked"

NarrativeChoice: TypeAlias = bool | Literal["unmarked"]
"""Always, never, or where the coded report marks no place on an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """Settings of this room; the defaults suit a site that has decided nothing yet.

    Attributes
    ----------
    priority_codes
        The code written as value of Priority (260870009 SCT) for each priority. The default is
        the private scheme. A site that wants ACR categories maps them here (RID49480, RID49481,
        RID49482 of RADLEX, CID 7035): a model cannot determine the category, so this program
        does not choose it.
    burned_in_annotation
        Burned In Annotation (0028,0301) of the captures. No identity is drawn into pixels, so NO
        is true; sites whose archive blocks what is not NO, or wants YES on any text, choose.
    series_number
        Series Number of the SR; the other kinds take the next five.
    narrative
        Also make the report in words: always, never, or only where the coded report marks no place
        on an image (`UNMARKED`). To send it in place of the coded report, leave that out at the
        destination.
    key_objects, parametric_map
        Also make the key object selection, the heatmaps' values.
    institution_name, station_name
        Written where given; never copied from the scanner's images, which name its own.
    """

    manufacturer: str = "pe-triage"
    model_name: str = "pe-triage"
    software_version: str = __version__
    device_serial_number: str = "0"
    institution_name: str | None = None
    station_name: str | None = None
    series_number: int = 9501
    burned_in_annotation: str = "NO"
    narrative: NarrativeChoice = False
    key_objects: bool = False
    parametric_map: bool = False
    procedure_reported: Code = PROCEDURE_REPORTED
    priority_codes: Mapping[Priority, Code] = field(
        default_factory=lambda: MappingProxyType({p: PRIORITY_CODES[p] for p in Priority})
    )
    policy: TriagePolicy = field(default_factory=TriagePolicy)

    def __post_init__(self) -> None:
        if self.narrative not in (True, False, UNMARKED):
            raise ValueError("narrative must be True, False or 'unmarked'")
        if self.burned_in_annotation not in ("YES", "NO"):
            raise ValueError("burned_in_annotation must be YES or NO")
        missing = [p.value for p in Priority if p not in self.priority_codes]
        if missing:
            raise ValueError(f"priority_codes lacks {', '.join(missing)}")

    @staticmethod
    def from_table(
        table: Mapping[str, Any], *, policy: TriagePolicy | None = None
    ) -> ReportSettings:
        """Settings from the configuration's table ``report``; absent keys take their default.

        Raises
        ------
        ConfigurationError
            One line naming the key that is unknown, malformed or out of range.
        """
        t.check_keys("report", table, tuple(_READERS))
        chosen = {
            _FIELDS.get(key, key): _READERS[key](f"report.{key}", value)
            for key, value in table.items()
        }
        return ReportSettings(**chosen, policy=policy or TriagePolicy())

    def series_number_of(self, kind: ResultKind) -> int:
        """Return the Series Number of a kind of object."""
        return self.series_number + SERIES_ORDER.index(kind)


def _priority_codes(where: str, value: Any) -> Mapping[Priority, Code]:
    names = tuple(p.value for p in Priority)
    table = t.check_keys(where, value, names)
    for name in names:
        if name not in table:
            raise ConfigurationError(f"{where}.{name}: is missing; all three priorities need one")
    return MappingProxyType({p: t.code(f"{where}.{p.value}", table[p.value]) for p in Priority})


def _narrative(where: str, value: Any) -> NarrativeChoice:
    if value == UNMARKED:
        return UNMARKED
    if not isinstance(value, bool):
        raise ConfigurationError(
            f'{where}: true, false or "{UNMARKED}" was expected, not {value!r}'
        )
    return value


def _yes_or_no(where: str, value: Any) -> str:
    return "YES" if t.flag(where, value) else "NO"


def _name(where: str, value: Any) -> str | None:
    return t.text(where, value) if value else None


def _station(where: str, value: Any) -> str | None:
    return t.text(where, value, longest=16) if value else None


_READERS: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType(
    {
        "narrative": _narrative,
        "key_objects": t.flag,
        "parametric_map": t.flag,
        "burned_in_annotation": _yes_or_no,
        "series_number": lambda where, value: t.whole(where, value, 1, 2_000_000_000),
        "institution": _name,
        "station": _station,
        "procedure_reported": t.code,
        "priority_codes": _priority_codes,
    }
)
"""Keys of the table ``report`` and how each value is read."""

_FIELDS = {"institution": "institution_name", "station": "station_name"}
