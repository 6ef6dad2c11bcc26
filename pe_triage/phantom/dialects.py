"""How several vendors' scanners write the same series: invented values on real patterns.

The patterns (value forms, number representation, kernel names, order) follow public headers of such
scanners; makers' and models' names say that they are imitations. No private elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pe_triage.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What differs between scanners' ways of writing the same series."""

    name: str
    manufacturer: str
    model_name: str
    kernels: tuple[tuple[str, str], ...]
    """The vendor's names of `effects.KERNELS`."""
    image_type: tuple[str, ...]
    kvp: str
    rescale_intercept: int
    """HU = stored + intercept."""
    scan_options: str
    bits_stored: int = 12
    signed: bool = False
    padding_hu: int | None = None
    """Value outside the circle of reconstruction, where the scanner marks it."""
    patient_position: str = "HFS"
    head_first: bool = False
    """Whether instance numbers run from head to foot."""
    transfer_syntax: UID = ExplicitVRLittleEndian
    series_description: str = "CTPA {thickness:.1f} {kernel}"
    protocol: str = "CTPA (synthetic)"
    study_description: str = "CT pulmonary angiography (synthetic phantom)"
    contrast_agent: str = "IODINATED CONTRAST (SIMULATED)"
    windows: tuple[tuple[str, str, str], ...] = (("100", "700", "PULMONARY EMBOLISM"),)
    """Centre, width, explanation."""
    omit: tuple[str, ...] = ()
    """Keywords that this vendor leaves out."""
    more: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """Keywords that only this vendor writes."""

    def kernel(self, name: str) -> str:
        """Return the vendor's name of a kernel."""
        return dict(self.kernels)[name]


PLAIN = Dialect(
    name="plain",
    manufacturer="pe-triage phantom",
    model_name="Synthetic CTPA generator",
    kernels=(("soft", "B26f"), ("medium", "B30f"), ("sharp", "B46f")),
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    kvp="100",
    rescale_intercept=-1024,
    scan_options="HELICAL MODE",
)

DIALECTS: Mapping[str, Dialect] = MappingProxyType({
    dialect.name: dialect
    for dialect in (
        PLAIN,
        Dialect(
            name="siemens",
            manufacturer="SIEMENS-like (phantom)",
            model_name="SOMATOM-like",
            kernels=(("soft", "Bv36d"), ("medium", "Bv40d"), ("sharp", "Bv49d")),
            image_type=("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"),
            kvp="100",
            rescale_intercept=-8192,
            bits_stored=16,
            scan_options="",
            series_description="Thx PE  {thickness:.1f}  {kernel}",
            protocol="Thorax_PE (synthetic)",
            study_description="Thorax^PE_Synthetic (Adult)",
            windows=(("100", "700", "WINDOW1"), ("-600", "1200", "WINDOW2")),
            omit=("SpacingBetweenSlices", "ScanOptions"),
            more={"FilterType": "0", "ExposureTime": "500", "XRayTubeCurrent": "210",
                  "Exposure": "88"},
        ),
        Dialect(
            name="ge",
            manufacturer="GE-like (phantom)",
            model_name="LightSpeed-like",
            kernels=(("soft", "SOFT"), ("medium", "STANDARD"), ("sharp", "DETAIL")),
            image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
            kvp="120",
            rescale_intercept=-1024,
            bits_stored=16,
            signed=True,
            padding_hu=-3024,
            patient_position="FFS",
            head_first=True,
            scan_options="HELICAL MODE",
            series_description="CHEST {thickness:.2f} MM",
            protocol="5.10 PE (SYNTHETIC)",
            study_description="CT CHEST PULMONARY ANGIO (SYNTHETIC)",
            contrast_agent="NON IONIC (SIMULATED)",
            windows=(("40", "350", ""),),
            more={"FilterType": "BODY FILTER", "ExposureTime": "500", "XRayTubeCurrent": "502",
                  "SpiralPitchFactor": 1.375, "RevolutionTime": 0.5},
        ),
        Dialect(
            name="philips",
            manufacturer="Philips-like (phantom)",
            model_name="Brilliance-like",
            kernels=(("soft", "A"), ("medium", "B"), ("sharp", "C")),
            image_type=("ORIGINAL", "PRIMARY", "AXIAL", "HELIX"),
            kvp="120",
            rescale_intercept=-1024,
            scan_options="HELIX",
            transfer_syntax=ImplicitVRLittleEndian,
            series_description="{thickness:.0f}mm CTPA",
            protocol="2 Chest PE/Thorax (synthetic)",
            study_description="Chest PE (synthetic)",
            contrast_agent="CE (simulated)",
            windows=(("00100", "00700", ""), ("00060", "00350", "")),
            omit=("RescaleType",),
            more={"FilterType": "B", "Exposure": "150", "XRayTubeCurrent": "188"},
        ),
        Dialect(
            name="canon",
            manufacturer="CANON-like (phantom)",
            model_name="Aquilion-like",
            kernels=(("soft", "FC07"), ("medium", "FC08"), ("sharp", "FC18")),
            image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
            kvp="100",
            rescale_intercept=0,
            bits_stored=16,
            signed=True,
            head_first=True,
            scan_options="HELICAL_CT",
            series_description="Vol. CTPA {thickness:.1f} CE",
            protocol="PE SURESTART (SYNTHETIC)",
            study_description="CHEST/PE (SYNTHETIC)",
            windows=(("100", "700", ""),),
            omit=("SpacingBetweenSlices",),
            more={"ExposureTime": "350", "XRayTubeCurrent": "300"},
        ),
    )
})  # fmt: skip


def find_dialect(name: str) -> Dialect:
    """Return the dialect of that name.

    Raises
    ------
    InputError
        There is none; the message lists those there are.
    """
    try:
        return DIALECTS[name]
    except KeyError:
        raise InputError(f"unknown dialect {name!r}: choose from {', '.join(DIALECTS)}") from None


def dialect_for(seed: int) -> Dialect:
    """Return one of the four vendors' dialects for a seed, for trees of mixed scanners."""
    vendors = [d for d in DIALECTS.values() if d is not PLAIN]
    return vendors[(seed * 2654435761 >> 7) % len(vendors)]
