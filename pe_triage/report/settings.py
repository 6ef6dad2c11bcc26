"""What a site may choose about its result objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pydicom.sr.coding import Code

from pe_triage import __version__
from pe_triage.domain import Priority
from pe_triage.report.concepts import PRIORITY_CODES, PROCEDURE_REPORTED
from pe_triage.report.policy import TriagePolicy


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
        Series Number of the SR; the summary and the heatmaps take the next two.
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
    procedure_reported: Code = PROCEDURE_REPORTED
    priority_codes: Mapping[Priority, Code] = field(
        default_factory=lambda: MappingProxyType({p: PRIORITY_CODES[p] for p in Priority})
    )
    policy: TriagePolicy = field(default_factory=TriagePolicy)

    def __post_init__(self) -> None:
        if self.burned_in_annotation not in ("YES", "NO"):
            raise ValueError("burned_in_annotation must be YES or NO")
        missing = [p.value for p in Priority if p not in self.priority_codes]
        if missing:
            raise ValueError(f"priority_codes lacks {', '.join(missing)}")
