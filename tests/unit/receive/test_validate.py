from __future__ import annotations

import struct
import time
import warnings
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from pe_triage.errors import InvalidInstanceError
from pe_triage.identity import is_uid
from pe_triage.receive import validate
from pe_triage.receive.validate import check_instance

NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
SOP = "1.2.826.0.1.3680043.8.498.1"


def make_ds(depth: int = 3, side: int = 8) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = SOP
    ds.StudyInstanceUID = "1.2.3"
    ds.SeriesInstanceUID = "1.2.3.4"
    ds.PatientName = "Planted^Name"
    ds.Rows = ds.Columns = side
    ds.BitsAllocated = 16
    ds.SamplesPerPixel = 1
    inner = Dataset()
    inner.CodeValue = "T-1"
    for _ in range(depth):
        outer = Dataset()
        outer.ContentSequence = [inner, Dataset()]
        inner = outer
    ds.ContentSequence = [inner]
    ds.PixelData = np.arange(side * side, dtype="<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def encode(ds: Dataset, syntax: Any, *, undefined: bool = False) -> bytes:
    if undefined:
        mark_undefined(ds)
    stream = BytesIO()
    from pydicom.filebase import DicomFileLike

    file = DicomFileLike(stream)
    file.is_implicit_VR = syntax == ImplicitVRLittleEndian
    file.is_little_endian = syntax != ExplicitVRBigEndian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dataset(file, ds)
    return stream.getvalue()


def mark_undefined(ds: Dataset) -> None:
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                mark_undefined(item)


def check(data: bytes, syntax: Any = ExplicitVRLittleEndian, sop: str = SOP) -> Any:
    return check_instance(
        data,
        transfer_syntax_uid=str(syntax),
        sop_class_uid=str(CTImageStorage),
        sop_instance_uid=sop,
    )


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", NATIVE)
def test_whole_data_sets_pass(syntax: Any, undefined: bool) -> None:
    header = check(encode(make_ds(), syntax, undefined=undefined), syntax)
    assert header.study_uid == "1.2.3"
    assert header.series_uid == "1.2.3.4"
    assert header.sop_instance_uid == SOP
    assert header.sop_class_uid == str(CTImageStorage)


@pytest.mark.parametrize("syntax", NATIVE)
def test_every_truncation_is_refused(syntax: Any) -> None:
    for undefined in (False, True):
        data = encode(make_ds(), syntax, undefined=undefined)
        for length in range(len(data)):
            with pytest.raises(InvalidInstanceError) as caught:
                check(data[:length], syntax)
            assert caught.value.status in (0xA900, 0xC000)


def test_encapsulated_pixel_data() -> None:
    ds = make_ds()
    ds.PixelData = encapsulate([b"\xff\xd8" + b"x" * 50])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    data = encode(ds, ExplicitVRLittleEndian)
    for syntax in (JPEGLosslessSV1, RLELossless):
        assert check(data, syntax).study_uid == "1.2.3"
    with pytest.raises(InvalidInstanceError, match="not encapsulated here"):
        check(data, ExplicitVRLittleEndian)
    with pytest.raises(InvalidInstanceError, match="encapsulated as its transfer syntax"):
        check(encode(make_ds(), ExplicitVRLittleEndian), RLELossless)
    for length in range(len(data)):
        with pytest.raises(InvalidInstanceError):
            check(data[:length], RLELossless)
    # A trailing padding element is legal.
    padding = struct.pack("<HH2sHI4s", 0xFFFC, 0xFFFC, b"OB", 0, 4, b"\0\0\0\0")
    assert check(data + padding, RLELossless).study_uid == "1.2.3"


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", NATIVE)
def test_depth_is_capped(syntax: Any, undefined: bool) -> None:
    check(encode(make_ds(depth=validate.MAX_DEPTH - 1), syntax, undefined=undefined), syntax)
    for depth in (validate.MAX_DEPTH, 60):
        with pytest.raises(InvalidInstanceError, match="nested deeper"):
            check(encode(make_ds(depth=depth), syntax, undefined=undefined), syntax)


def test_endless_nesting_in_bytes_does_not_recurse_out() -> None:
    nest = struct.pack("<HHI", 0x0040, 0xA730, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    with pytest.raises(InvalidInstanceError, match="nested deeper"):
        check(nest * 20_000, ImplicitVRLittleEndian)


def test_many_elements_end_soon() -> None:
    item = struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 0)
    started = time.monotonic()
    with pytest.raises(InvalidInstanceError, match="more than"):
        check(item * (validate.MAX_ELEMENTS + 1))
    assert time.monotonic() - started < 60


def test_mismatch_with_the_command() -> None:
    data = encode(make_ds(), ExplicitVRLittleEndian)
    with pytest.raises(InvalidInstanceError, match="SOP Instance UID") as caught:
        check(data, sop="1.2.99")
    assert caught.value.status == 0xA900
    with pytest.raises(InvalidInstanceError, match="SOP Class UID") as caught:
        check_instance(
            data,
            transfer_syntax_uid=str(ExplicitVRLittleEndian),
            sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
            sop_instance_uid=SOP,
        )
    assert caught.value.status == 0xA900


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
def test_identifying_uids_are_demanded(keyword: str) -> None:
    for value in (None, "", "1.2.x", "1..2", ".1", "1." * 32 + "1", "not a uid"):
        ds = make_ds()
        if value is None:
            delattr(ds, keyword)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                setattr(ds, keyword, value)
        with pytest.raises(InvalidInstanceError) as caught:
            check(encode(ds, ExplicitVRLittleEndian))
        assert caught.value.status == 0xC000
        assert "Planted" not in str(caught.value)


def test_pixel_data_must_fill_rows_columns_frames() -> None:
    ds = make_ds()
    ds.PixelData = ds.PixelData[:-2]
    with pytest.raises(InvalidInstanceError, match="126 bytes"):
        check(encode(ds, ExplicitVRLittleEndian))
    ds = make_ds()
    ds.NumberOfFrames = 2
    with pytest.raises(InvalidInstanceError, match="need 256"):
        check(encode(ds, ExplicitVRBigEndian), ExplicitVRBigEndian)
    ds.PixelData = ds.PixelData * 2
    check(encode(ds, ExplicitVRLittleEndian))


def test_foreign_groups_repetition_and_stray_items() -> None:
    data = encode(make_ds(), ExplicitVRLittleEndian)
    meta = struct.pack("<HH2sH4s", 0x0002, 0x0010, b"UI", 4, b"1.2\0")
    with pytest.raises(InvalidInstanceError, match="group 0002"):
        check(meta + data)
    again = struct.pack("<HH2sH4s", 0x0020, 0x000D, b"UI", 4, b"9.9\0")
    with pytest.raises(InvalidInstanceError, match="stands twice"):
        check(data + again)
    with pytest.raises(InvalidInstanceError, match="stands alone"):
        check(data + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    with pytest.raises(InvalidInstanceError, match="empty"):
        check(b"")


def test_un_of_known_sequence_is_walked() -> None:
    deep = encode(make_ds(depth=60), ImplicitVRLittleEndian)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(deep)) + deep
    data = encode(make_ds(), ExplicitVRLittleEndian)
    for tag in ((0x0040, 0xA370), (0x0008, 0x1115)):
        wrapped = struct.pack("<HH2sHI", *tag, b"UN", 0, len(item)) + item
        with pytest.raises(InvalidInstanceError, match="nested deeper"):
            check(data + wrapped)


def test_uid_rule() -> None:
    assert is_uid(b"1")
    assert is_uid(b"2.25." + b"9" * 59)
    assert not is_uid(b"2.25." + b"9" * 60)
    for bad in (b"", b".", b"1.", b"1.a", b"1 2", b"1\n", b"\xb2"):
        assert not is_uid(bad)


ENCODED = {
    (syntax, undefined): encode(make_ds(depth=2, side=4), syntax, undefined=undefined)
    for syntax in NATIVE
    for undefined in (False, True)
}


@settings(max_examples=400, deadline=2000)
@given(
    key=st.sampled_from(sorted(ENCODED, key=str)),
    syntax=st.sampled_from([*NATIVE, RLELossless]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 10**6),
    keep=st.booleans(),
)
def test_damaged_bytes_only_ever_raise_our_error(
    key: Any, syntax: Any, flips: list[tuple[int, int]], cut: int, keep: bool
) -> None:
    data = bytearray(ENCODED[key])
    for at, value in flips:
        data[at % len(data)] = value
    damaged = data if keep else data[: cut % len(data)]
    try:
        header = check(damaged, syntax)
    except InvalidInstanceError as error:
        assert error.status in (0xA900, 0xC000)  # noqa: PT017
    else:
        assert header.sop_instance_uid == SOP


@settings(max_examples=300, deadline=2000)
@given(data=st.binary(max_size=400), syntax=st.sampled_from([*NATIVE, RLELossless]))
def test_random_bytes_only_ever_raise_our_error(data: bytes, syntax: Any) -> None:
    with pytest.raises(InvalidInstanceError):
        check(data, syntax)


@pytest.mark.parametrize(("tag", "keyword"), [(0x20, "PatientID"), (0x21, "IssuerOfPatientID")])
def test_an_identifier_that_the_index_would_refuse_is_refused_here(tag: int, keyword: str) -> None:
    ds = make_ds()
    for length, refused in ((256, False), (258, True)):
        value = "7" * length
        ds[keyword] = DataElement((0x0010, tag), "LO", value, validation_mode=config.IGNORE)
        data = encode(ds, ExplicitVRLittleEndian)
        if refused:
            with pytest.raises(InvalidInstanceError, match="longer than 256"):
                check(data)
        else:
            check(data)
