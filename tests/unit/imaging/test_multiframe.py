"""Enhanced CT from outside and damaged: another library's conversion, and every truncation."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence

from pe_triage.domain import InstanceFacts
from pe_triage.errors import ImagingError, InvalidInstanceError
from pe_triage.frames import images_of
from pe_triage.imaging.elements import Element
from pe_triage.imaging.facts import read_instance
from pe_triage.imaging.functional_groups import with_frames
from pe_triage.imaging.multiframe import MultiFrame
from pe_triage.imaging.sequences import parse_items
from pe_triage.imaging.volume import load_volume
from tests.support.enhanced import Options, enhanced_files
from tests.unit.imaging.conftest import received, write_ct

UID = "1.2.3.4.5"
COUNT, ROWS, COLUMNS = 5, 6, 8
PIXELS = np.arange(COUNT * ROWS * COLUMNS, dtype=np.uint16).reshape(COUNT, ROWS, COLUMNS)


def header(z: int) -> dict[str, object]:
    return {
        "SOPInstanceUID": UID, "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1",
        "PatientID": "P1", "Modality": "CT", "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
        "Rows": ROWS, "Columns": COLUMNS, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
        "PixelRepresentation": 0, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "RescaleSlope": "1", "RescaleIntercept": "-1024", "SliceThickness": "2",
        "PixelSpacing": "0.7\\0.8", "ImageOrientationPatient": "1\\0\\0\\0\\1\\0",
        "ImagePositionPatient": f"0\\0\\{2 * z}", "FrameOfReferenceUID": "1.2.3.9",
    }  # fmt: skip


def enhanced(
    path: Path, syntax: str = "1.2.840.10008.1.2.1", options: Options | None = None
) -> Path:
    (data,) = enhanced_files(
        [header(z) for z in range(COUNT)], list(PIXELS), syntax, options or Options()
    )
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_every_truncation_ends_in_words(tmp_path: Path, syntax: str) -> None:
    whole = enhanced(tmp_path / "a.dcm", syntax).read_bytes()
    facts = InstanceFacts(number_of_frames=COUNT)
    cut = tmp_path / "cut.dcm"
    told = 0
    for size in range(140, len(whole), 17):
        cut.write_bytes(whole[:size])
        found = with_frames(cut, facts)
        assert bool(found.frames) != bool(found.frames_problem)
        told += found.frames_problem is not None
        with pytest.raises(ImagingError):
            MultiFrame(cut, UID).hu(COUNT)
    assert told > 50


def test_any_changed_byte_of_the_groups_ends_in_words_or_facts(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "a.dcm")
    whole = path.read_bytes()
    first = whole.index(struct.pack("<HH", 0x5200, 0x9229))
    rng = np.random.default_rng(0)
    facts = InstanceFacts(number_of_frames=COUNT)
    for at in rng.integers(first, len(whole) - PIXELS.nbytes, 300):
        spoiled = bytearray(whole)
        spoiled[at] ^= int(rng.integers(1, 256))
        path.write_bytes(spoiled)
        found = with_frames(path, facts)
        assert len(found.frames) in (0, COUNT)
        assert bool(found.frames) != bool(found.frames_problem)


def deep(levels: int) -> bytes:
    """A sequence nested so many times, all of undefined length."""
    open_item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    inner = struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, 0xFFFFFFFF)
    close = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return (open_item + inner) * levels + close * levels


def test_depth_is_bounded() -> None:
    content = Element(vr=b"SQ", value=deep(5000), little_endian=True)
    for opened in ((0x52009230,), ()):
        with pytest.raises(InvalidInstanceError, match="nested too deeply"):
            parse_items(content, (), opened, implicit=False)


def test_frames_decode_and_others_are_refused(tmp_path: Path) -> None:
    image = MultiFrame(enhanced(tmp_path / "a.dcm"), UID)
    assert image.frames == COUNT
    for frame in range(1, COUNT + 1):
        np.testing.assert_array_equal(image.hu(frame), PIXELS[frame - 1].astype(int) - 1024)
    for frame in (0, COUNT + 1, -1):
        with pytest.raises(ImagingError, match="there is no frame"):
            image.hu(frame)
    with pytest.raises(ImagingError, match="another image"):
        MultiFrame(tmp_path / "a.dcm", "1.2.3.4.6")


def test_a_stream_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def swap(ds: Dataset) -> None:
        ds.Columns = COLUMNS * 2

    options = Options(edits=[swap])
    image = MultiFrame(enhanced(tmp_path / "a.dcm", "1.2.840.10008.1.2.4.80", options), UID)
    with pytest.raises(ImagingError, match="the header says"):
        image.hu(1)


def test_fragments_that_fit_no_frame_are_refused(tmp_path: Path) -> None:
    def damage(ds: Dataset) -> None:
        # Two fragments each, no table, and beginnings that are none.
        ds.PixelData = ds.PixelData.replace(b"\xff\xd8\xff", b"\xff\x00\xff")

    options = Options(fragments=2, offsets=False, edits=[damage])
    with pytest.raises(ImagingError, match="cannot be told"):
        MultiFrame(enhanced(tmp_path / "a.dcm", "1.2.840.10008.1.2.4.80", options), UID)


def test_a_part_without_its_number_is_refused(tmp_path: Path) -> None:
    """Whether the others are there cannot be told, so it does not pass for the whole."""

    def split(ds: Dataset) -> None:
        ds.ConcatenationUID = "1.2.3.99"
        ds.InConcatenationTotalNumber = 3

    facts = read_instance(enhanced(tmp_path / "a.dcm", options=Options(edits=[split]))).facts
    assert facts.frames == ()
    assert facts.frames_problem == "a part of a split image has no number (0020,9162)"


def test_unknown_groups_and_private_ones_are_stepped_over(tmp_path: Path) -> None:
    def crowd(ds: Dataset) -> None:
        for item in (ds.SharedFunctionalGroupsSequence[0], *ds.PerFrameFunctionalGroupsSequence):
            item.add_new(0x00211001, "SQ", Sequence([Dataset()]))
            item.add_new(0x00211002, "OB", b"\0" * 40_000)
            for element in item:
                if element.VR == "SQ":
                    element.is_undefined_length = True
        ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = True

    plain = read_instance(enhanced(tmp_path / "a.dcm")).facts
    crowded = read_instance(enhanced(tmp_path / "b.dcm", options=Options(edits=[crowd]))).facts
    assert crowded == plain


def test_highdicom_s_conversion_gives_the_volume_of_its_source(
    tmp_path: Path,
) -> None:
    from highdicom.legacy import LegacyConvertedEnhancedCTImage

    sources, single = [], []
    for z in range(COUNT):
        path = write_ct(
            tmp_path / f"{z}.dcm", PIXELS[z].astype(np.int16),
            SOPInstanceUID=f"1.2.3.{z + 10}", InstanceNumber=z + 1, SliceThickness=2,
            ImagePositionPatient=[0, 0, 2 * z], ConvolutionKernel="B30f", KVP="120",
            FrameOfReferenceUID="1.2.3.9", AcquisitionNumber=3, GantryDetectorTilt="0",
            StudyID="", StudyDate="20240101", StudyTime="1000", AccessionNumber="",
            PatientName="", PatientBirthDate="", PatientSex="", SeriesNumber=2,
            ReferringPhysicianName="", Manufacturer="X", PositionReferenceIndicator="",
            ContrastBolusAgent="IODINE", BodyPartExamined="CHEST", PatientPosition="HFS",
            AcquisitionDate="20240101", AcquisitionTime="100000", WindowCenter=40, WindowWidth=400,
        )  # fmt: skip
        sources.append(dcmread(path))
        single.append(received(path))
    converted = LegacyConvertedEnhancedCTImage(
        legacy_datasets=sources, series_instance_uid="1.2.3.77", series_number=7,
        sop_instance_uid="1.2.3.78", instance_number=1,
    )  # fmt: skip
    target = tmp_path / "converted.dcm"
    converted.save_as(target, enforce_file_format=True)
    whole = received(target)
    frames = images_of([whole])
    assert len(frames) == COUNT
    for frame in frames:
        facts = frame.facts
        assert facts.kernel == ("B30f",)
        assert (facts.kvp, facts.slice_thickness_mm, facts.acquisition_number) == (120.0, 2.0, 3)
        assert facts.contrast_agent == "IODINE"
        assert facts.acquisition_time_s == 36_000.0
        assert facts.image_type[:3] == ("ORIGINAL", "PRIMARY", "AXIAL")
    np.testing.assert_array_equal(load_volume([whole]).hu_zyx, load_volume(single).hu_zyx)
