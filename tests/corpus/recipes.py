"""Makes the series of a corpus case: a phantom chest, and what the case's recipe changes of it.

A recipe is a list of commands separated by ``;``, each one line of `COMMANDS`; several series of a
study stand apart by ``||``. Every series is written as real Part 10 files by a small encoder of its
own, so that the code under test reads what a sender would have sent.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.encaps import encapsulate

from pe_triage.domain import ReceivedInstance
from pe_triage.imaging.facts import read_instance
from pe_triage.phantom import generate_study
from tests.support.enhanced import LEGACY_CONVERTED, Options, enhanced_files
from tests.unit.imaging.conftest import ENCODERS, REVERSIBLE

SIZE, SLICES, STEP_MM = 96, 52, 3.0
COVERAGE_MM = (-110.0, -110.0 + SLICES * STEP_MM)
EXPLICIT_LE = "1.2.840.10008.1.2.1"
STUDY_UID = "1.2.826.0.1.9"


@dataclass
class Slice:
    """One image while it is being changed: header values by keyword, and stored pixels."""

    header: dict[str, Any]
    stored: NDArray[Any]
    syntax: str = EXPLICIT_LE
    cut: int = 0
    """Bytes of pixel data left away at the end."""


@dataclass(frozen=True)
class Base:
    """The unchanged chest: HU in anatomical order, pixel size and the first voxel's place."""

    hu_zyx: NDArray[np.int16]
    pixel_mm: float
    origin_mm: tuple[float, float, float]


@cache
def base(seed: int = 3) -> Base:
    study = generate_study(
        seed, "negative", size=SIZE, slice_spacing_mm=STEP_MM, coverage_mm=COVERAGE_MM
    )
    assert study.hu_zyx.shape == (SLICES, SIZE, SIZE)
    return Base(study.hu_zyx, study.spacing_mm[1], study.origin_lps_mm)


def fresh_series(letter: str) -> list[Slice]:
    """The series that every recipe starts from: a CTPA without fault."""
    chest = base()
    slices = []
    for z in range(SLICES):
        x, y, foot = chest.origin_mm
        slices.append(
            Slice(
                header={
                    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
                    "SOPInstanceUID": f"{STUDY_UID}.{ord(letter)}.{(z * 7919) % 10007}",
                    "StudyInstanceUID": STUDY_UID,
                    "SeriesInstanceUID": f"{STUDY_UID}.{ord(letter)}",
                    "PatientID": "CORPUS",
                    "PatientAge": "061Y",
                    "Modality": "CT",
                    "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
                    "SeriesDescription": "CTPA 3.0 B30f",
                    "BodyPartExamined": "CHEST",
                    "PatientPosition": "HFS",
                    "AcquisitionNumber": "2",
                    "AcquisitionTime": f"1015{z / 2 / 10:07.4f}",
                    "InstanceNumber": str(SLICES - z),
                    "KVP": "100",
                    "SliceThickness": "3",
                    "ConvolutionKernel": "B30f",
                    "ContrastBolusAgent": "IODINE",
                    "GantryDetectorTilt": "0",
                    "FrameOfReferenceUID": f"{STUDY_UID}.1",
                    "ImagePositionPatient": place((x, y, foot + z * STEP_MM)),
                    "ImageOrientationPatient": "1\\0\\0\\0\\1\\0",
                    "PixelSpacing": f"{chest.pixel_mm:.6f}\\{chest.pixel_mm:.6f}",
                    "SamplesPerPixel": 1,
                    "PhotometricInterpretation": "MONOCHROME2",
                    "Rows": SIZE,
                    "Columns": SIZE,
                    "BitsAllocated": 16,
                    "BitsStored": 12,
                    "HighBit": 11,
                    "PixelRepresentation": 0,
                    "RescaleIntercept": "-1024",
                    "RescaleSlope": "1",
                },
                stored=np.clip(chest.hu_zyx[z] + 1024, 0, 4095).astype(np.uint16),
            )
        )
    return slices


def anatomy() -> NDArray[np.int16]:
    """What a corrected series must give: the base within 12 stored bits."""
    return np.clip(base().hu_zyx, -1024, 3071)


def place(values: Iterable[float]) -> str:
    return "\\".join(f"{v:.4f}".rstrip("0").rstrip(".") for v in values)


def numbers(text: str) -> list[float]:
    return [float(v) for v in text.split("\\")]


# ------------------------------------------------------------------ commands


def chosen(slices: Sequence[Any], where: str) -> list[int]:
    """Indices named by ``17``, ``10..19``, ``::2``, ``all`` or several of them with commas."""
    out: list[int] = []
    for part in where.split(","):
        if part == "all":
            out += range(len(slices))
        elif ".." in part:
            first, last = part.split("..")
            out += range(int(first), int(last or len(slices) - 1) + 1)
        elif ":" in part:
            out += range(len(slices))[slice(*(int(v) if v else None for v in part.split(":")))]
        else:
            out.append(int(part))
    return out


def split_where(words: str) -> tuple[str, str]:
    value, _, where = words.partition(" on ")
    return value.strip(), where.strip() or "all"


def set_value(slices: list[Slice], words: str) -> list[Slice]:
    """``set Keyword value [on WHERE]``; the value ``-`` takes the attribute away."""
    words, where = split_where(words)
    keyword, _, value = words.partition(" ")
    for z in chosen(slices, where):
        header = dict(slices[z].header)
        if value == "-":
            header.pop(keyword, None)
        else:
            header[keyword] = int(value) if dictionary_VR(keyword) == "US" else value
        slices[z].header = header
    return slices


def drop(slices: list[Slice], words: str) -> list[Slice]:
    """``drop WHERE``."""
    gone = set(chosen(slices, words))
    return [s for z, s in enumerate(slices) if z not in gone]


def keep(slices: list[Slice], words: str) -> list[Slice]:
    """``keep WHERE``."""
    return [slices[z] for z in chosen(slices, words)]


def copy(slices: list[Slice], words: str) -> list[Slice]:
    """``copy WHERE [times N]``: the same images again under new instance UIDs."""
    where, _, times = words.partition(" times ")
    out = list(slices)
    for n in range(int(times or 1)):
        for z in chosen(slices, where):
            header = dict(slices[z].header)
            header["SOPInstanceUID"] += f".{n + 1}"
            out.append(replace(slices[z], header=header))
    return out


def move(slices: list[Slice], words: str) -> list[Slice]:
    """``move X Y Z on WHERE``: millimetres."""
    by, where = split_where(words)
    delta = [float(v) for v in by.split()]
    for z in chosen(slices, where):
        at = numbers(slices[z].header["ImagePositionPatient"])
        moved = place(a + d for a, d in zip(at, delta, strict=True))
        slices[z].header = slices[z].header | {"ImagePositionPatient": moved}
    return slices


def shear(slices: list[Slice], words: str) -> list[Slice]:
    """``shear MM``: every slice lies so much further back than the one below."""
    for z in range(len(slices)):
        move(slices, f"0 {float(words) * z} 0 on {z}")
    return slices


def stretch(slices: list[Slice], words: str) -> list[Slice]:
    """``stretch F``: distances between slices times F."""
    foot = numbers(slices[0].header["ImagePositionPatient"])[2]
    for s in slices:
        x, y, z = numbers(s.header["ImagePositionPatient"])
        at = place((x, y, foot + (z - foot) * float(words)))
        s.header = s.header | {"ImagePositionPatient": at}
    return slices


def orient(slices: list[Slice], words: str) -> list[Slice]:
    """``orient [transpose] [flip-y] [flip-x]``: stored otherwise, headers say so."""
    transpose, flip_y, flip_x = (w in words.split() for w in ("transpose", "flip-y", "flip-x"))
    for s in slices:
        x, y, z = numbers(s.header["ImagePositionPatient"])
        row_mm, column_mm = numbers(s.header["PixelSpacing"])
        rows, columns = s.stored.shape
        x_dir, y_dir = (-1.0 if flip_x else 1.0, 0.0, 0.0), (0.0, -1.0 if flip_y else 1.0, 0.0)
        x += (columns - 1) * column_mm if flip_x else 0.0
        y += (rows - 1) * row_mm if flip_y else 0.0
        stored = s.stored[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        directions = (*x_dir, *y_dir)
        if transpose:
            stored, directions = stored.T, (*y_dir, *x_dir)
        s.stored = stored
        s.header = s.header | {
            "ImagePositionPatient": place((x, y, z)),
            "ImageOrientationPatient": place(directions),
            "Rows": stored.shape[0],
            "Columns": stored.shape[1],
        }
    return slices


def mirror(slices: list[Slice], _words: str) -> list[Slice]:
    """``mirror``: pixels reversed from side to side, headers unchanged."""
    for s in slices:
        s.stored = s.stored[:, ::-1]
    return slices


def hu(slices: list[Slice], words: str) -> list[Slice]:
    """``hu EXPRESSION [on WHERE]`` of ``hu``, such as ``hu + 1024``; stored signed, 16 bits."""
    expression, where = split_where(words)
    for z in chosen(slices, where):
        values = to_hu(slices[z])
        rng = np.random.default_rng(z)
        scope = {"hu": values, "np": np, "noise": rng.normal(0, 1, values.shape), "z": z}
        changed = eval(expression, {"__builtins__": {}}, scope)  # our own table
        store(slices[z], np.broadcast_to(changed, values.shape), "signed", 16, 0, 1)
    return slices


def to_hu(s: Slice) -> NDArray[np.float64]:
    slope, intercept = float(s.header["RescaleSlope"]), float(s.header["RescaleIntercept"])
    return s.stored.astype(np.float64) * slope + intercept


def store(
    s: Slice, values: NDArray[Any], sign: str, bits: int, intercept: float, slope: float
) -> None:
    raw = np.rint((values - intercept) / slope)
    low, high = (
        (-(1 << bits - 1), (1 << bits - 1) - 1) if sign == "signed" else (0, (1 << bits) - 1)
    )
    raw = np.clip(raw, low, high).astype(np.int32)
    if sign == "signed" and bits == 16:
        s.stored = raw.astype(np.int16)
    else:
        s.stored = (raw & ((1 << bits) - 1)).astype(np.uint16)
    s.header = s.header | {
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(sign == "signed"),
        "RescaleIntercept": f"{intercept:g}",
        "RescaleSlope": f"{slope:g}",
    }


def stored(slices: list[Slice], words: str) -> list[Slice]:
    """``stored signed|unsigned BITS INTERCEPT SLOPE [on WHERE]``: other numbers, same HU."""
    words, where = split_where(words)
    sign, bits, intercept, slope = words.split()
    for z in chosen(slices, where):
        store(slices[z], to_hu(slices[z]), sign, int(bits), float(intercept), float(slope))
    return slices


def dirty(slices: list[Slice], _words: str) -> list[Slice]:
    """``dirty``: bits above those stored are set."""
    for s in slices:
        s.stored = s.stored | np.uint16(0xA000)
    return slices


def pad(slices: list[Slice], words: str) -> list[Slice]:
    """``pad RAW``: outside the circle stands RAW (signed, 16 bits), stated as padding."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    outside = x**2 + y**2 > (SIZE / 2) ** 2
    for s in slices:
        store(s, to_hu(s), "signed", 16, -1024, 1)
        s.stored = np.where(outside, np.int16(int(words)), s.stored)
        s.header = s.header | {"PixelPaddingValue": int(words) & 0xFFFF}
    return slices


def native(slices: list[Slice], words: str) -> list[Slice]:
    """``native LEVEL``: contrast (and bone) at most about LEVEL HU above blood."""
    level = float(words)
    for s in slices:
        values = to_hu(s)
        low = 45 + (values - 100) / 500 * level
        store(s, np.where(values > 100, low, values), "signed", 16, 0, 1)
    return slices


def swap(slices: list[Slice], words: str) -> list[Slice]:
    """``swap A B``: the pixels of two slices exchanged."""
    a, b = (int(v) for v in words.split())
    slices[a].stored, slices[b].stored = slices[b].stored, slices[a].stored
    return slices


def foreign(slices: list[Slice], words: str) -> list[Slice]:
    """``foreign WHERE``: pixels of another patient (another phantom)."""
    for z in chosen(slices, words):
        slices[z].stored = np.clip(base(8).hu_zyx[z] + 1024, 0, 4095).astype(np.uint16)
    return slices


def crop(slices: list[Slice], words: str) -> list[Slice]:
    """``crop N``: the middle N x N pixels."""
    size = int(words)
    first = (SIZE - size) // 2
    for s in slices:
        step = numbers(s.header["PixelSpacing"])[0]
        x, y, z = numbers(s.header["ImagePositionPatient"])
        s.stored = s.stored[first : first + size, first : first + size]
        s.header = s.header | {
            "Rows": size,
            "Columns": size,
            "ImagePositionPatient": place((x + first * step, y + first * step, z)),
        }
    return slices


def syntax(slices: list[Slice], words: str) -> list[Slice]:
    """``syntax UID``: transfer syntax."""
    return [replace(s, syntax=words) for s in slices]


def cut(slices: list[Slice], words: str) -> list[Slice]:
    """``cut WHERE``: the second half of the pixel data is missing."""
    for z in chosen(slices, words):
        slices[z] = replace(slices[z], cut=slices[z].stored.nbytes // 2)
    return slices


def shuffle(slices: list[Slice], words: str) -> list[Slice]:
    """``shuffle SEED``: order of arrival and instance numbers."""
    order = list(slices)
    random.Random(int(words)).shuffle(order)
    for n, s in enumerate(order):
        s.header = s.header | {"InstanceNumber": str(n + 1)}
    return order


@dataclass
class Enhanced(Slice):
    """Slices that are written as the frames of Enhanced CT instances."""

    frames: list[Slice] = field(default_factory=list)
    options: Options = field(default_factory=Options)
    sent: str = ""
    """Which of the instances are written; empty: all."""


def enhanced(slices: list[Slice], words: str) -> list[Slice]:
    """``enhanced [as legacy] [parts N] [objects N] [fragments N] [offsets no] [stated N]
    [cut BYTES] [without Keyword,Keyword] [sent WHERE]``: the slices as frames, in their order.
    """
    options, sent = Options(), ""
    for name, value in itertools.zip_longest(*[iter(words.split())] * 2, fillvalue=""):
        if name == "as" and value == "legacy":
            options.sop_class = LEGACY_CONVERTED
        elif name in ("parts", "objects", "fragments", "stated"):
            setattr(options, name, int(value))
        elif name == "offsets":
            options.offsets = value == "yes"
        elif name == "cut":
            options.cut = int(value)
        elif name == "without":
            options.without = tuple(value.split(","))
        elif name == "sent":
            sent = value
        else:
            raise ValueError(f"enhanced {name} {value}")
    return [Enhanced({}, slices[0].stored, slices[0].syntax, 0, list(slices), options, sent)]


Command = Callable[[list[Slice], str], list[Slice]]

COMMANDS: dict[str, Command] = {
    "set": set_value, "drop": drop, "keep": keep, "copy": copy, "move": move, "shear": shear,
    "stretch": stretch, "orient": orient, "mirror": mirror, "hu": hu, "stored": stored,
    "dirty": dirty, "pad": pad, "native": native, "swap": swap, "foreign": foreign, "crop": crop,
    "syntax": syntax, "cut": cut, "shuffle": shuffle, "enhanced": enhanced,
}  # fmt: skip


def series_of(recipe: str) -> list[list[Slice]]:
    """The series of a study as a recipe makes them; A, B, … by their order."""
    made = []
    for letter, part in zip("ABCDEF", recipe.split("||"), strict=False):
        slices = fresh_series(letter)
        for command in filter(None, (c.strip() for c in part.split(";"))):
            name, _, words = command.partition(" ")
            if name != "nothing":
                slices = COMMANDS[name](slices, words.strip())
        made.append(slices)
    return made


# ------------------------------------------------------------------ files


@lru_cache(maxsize=20_000)
def element(keyword: str, value: Any, explicit: bool, little: bool) -> tuple[int, bytes]:
    """One encoded element (PS3.5 section 7.1), with its tag for sorting."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    vr = dictionary_VR(keyword).split(" ")[0]
    order = "<" if little else ">"
    if vr == "US":
        data = struct.pack(order + "H", value)
    else:
        data = str(value).encode("ascii")
        data += (b"\0" if vr == "UI" else b" ") * (len(data) % 2)
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if explicit:
        return tag, head + vr.encode() + struct.pack(order + "H", len(data)) + data
    return tag, head + struct.pack(order + "I", len(data)) + data


LOSSY_JPEG: dict[str, Callable[[NDArray[Any]], bytes]] = {
    "1.2.840.10008.1.2.4.50": lambda a: imagecodecs.jpeg8_encode((a >> 4).astype(np.uint8)),
    "1.2.840.10008.1.2.4.51": lambda a: imagecodecs.jpeg8_encode(a, bitspersample=12),
}
COMPRESSED = ENCODERS | REVERSIBLE | LOSSY_JPEG

IMPLICIT_LE, EXPLICIT_BE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"


def encode(s: Slice) -> bytes:
    """A Part 10 file (PS3.10 section 7)."""
    explicit, little = s.syntax != IMPLICIT_LE, s.syntax != EXPLICIT_BE
    meta = b"".join(
        element(keyword, value, True, True)[1]
        for keyword, value in (
            ("MediaStorageSOPClassUID", s.header["SOPClassUID"]),
            ("MediaStorageSOPInstanceUID", s.header["SOPInstanceUID"]),
            ("TransferSyntaxUID", s.syntax),
        )
    )
    body = [element(k, v, explicit, little) for k, v in s.header.items() if k != "Pixels"]
    order = "<" if little else ">"
    head = struct.pack(order + "HH", 0x7FE0, 0x0010)
    if s.syntax in COMPRESSED:
        stream = COMPRESSED[s.syntax](np.ascontiguousarray(s.stored))
        stream = stream[: len(stream) // 2 * 2] if s.cut else stream
        data = encapsulate([stream[: len(stream) // 2] if s.cut else stream])
        pixels = head + b"OB\0\0" + struct.pack("<I", 0xFFFFFFFF) + data
        pixels += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    else:
        data = s.stored.astype(s.stored.dtype.newbyteorder(order)).tobytes()
        data = data[: len(data) - s.cut]
        size = (b"OW\0\0" if explicit else b"") + struct.pack(order + "I", len(data))
        pixels = head + size + data
    length = b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(meta))
    return b"".join([b"\0" * 128, b"DICM", length, meta, *(e for _, e in sorted(body)), pixels])


def files_of(s: Slice) -> list[bytes]:
    """The Part 10 files that a slice, or the frames of Enhanced CT instances, are written as."""
    if not isinstance(s, Enhanced):
        return [encode(s)]
    headers, pixels = [f.header for f in s.frames], [f.stored for f in s.frames]
    cut = s.options.cut or max((f.cut for f in s.frames), default=0)
    options = replace(s.options, cut=cut, encoders=COMPRESSED)
    files = enhanced_files(headers, pixels, s.syntax, options)
    return [files[i] for i in chosen(files, s.sent or "all")]


def write(series: Sequence[Sequence[Slice]], folder: Path) -> list[ReceivedInstance]:
    """Write every series and read the headers back, in the order of the slices."""
    received = []
    every = itertools.chain.from_iterable(files_of(s) for s in itertools.chain(*series))
    for number, data in enumerate(every):
        path = folder / f"{number:04d}.dcm"
        path.write_bytes(data)
        record = read_instance(path)
        received.append(
            ReceivedInstance(
                study_uid=record.study_uid,
                series_uid=record.series_uid,
                sop_instance_uid=record.sop_instance_uid,
                sop_class_uid=record.sop_class_uid,
                transfer_syntax_uid=record.transfer_syntax_uid,
                identity=record.identity,
                sha256=hashlib.sha256(data).hexdigest(),
                size_bytes=len(data),
                path=path,
                received_at=datetime(2026, 1, 1, tzinfo=UTC),
                calling_aet="CORPUS",
                facts=record.facts,
            )
        )
    return received


# ------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Case:
    """One row of cases.md."""

    id: str
    what: str
    recipe: str
    answer: str
    rule: str
    words: str
    section: str = field(default="", compare=False)


def read_cases(path: Path) -> list[Case]:
    """The rows of every table in the file."""
    cases, section = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        if not section or not line.startswith("| ") or line.startswith("| id |"):
            continue
        # ‖ stands for || within a table's cell.
        cells = [c.strip().strip("`").replace("‖", "||") for c in line.strip()[1:-1].split("|")]
        assert len(cells) == 6, line
        cases.append(Case(*cells, section=section))
    return cases
