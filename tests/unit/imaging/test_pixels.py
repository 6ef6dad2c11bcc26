from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pe_triage.errors import ImagingError
from pe_triage.imaging.codecs import supported_transfer_syntaxes
from pe_triage.imaging.pixels import decode_hu

NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
LOSSLESS = [
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
]


def smooth(shape=(40, 56), low=-1000, high=1500, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    ramp = (np.sin(y / 9) + np.cos(x / 7) + 2) / 4
    return (low + (high - low) * ramp + rng.normal(0, 20, shape)).astype(np.int16)


@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS])
@pytest.mark.parametrize("signed", [True, False])
def test_every_transfer_syntax_gives_the_same_hu(tmp_path, ct_writer, syntax, signed):
    hu = smooth()
    stored = hu if signed else (hu + 1024).astype(np.uint16)
    path = ct_writer(
        tmp_path / "a.dcm",
        stored,
        transfer_syntax=syntax,
        RescaleIntercept=0 if signed else -1024,
    )
    decoded = decode_hu(path)
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, hu)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stored=hnp.arrays(np.int16, st.tuples(st.integers(2, 9), st.integers(2, 9))),
    syntax=st.sampled_from([*NATIVE, *LOSSLESS]),
)
def test_any_pixels_survive_any_transfer_syntax(tmp_path, ct_writer, stored, syntax):
    if syntax == "1.2.840.10008.1.2.4.90" and min(stored.shape) < 2:
        return
    path = ct_writer(tmp_path / "a.dcm", stored, transfer_syntax=syntax, RescaleIntercept=0)
    np.testing.assert_array_equal(decode_hu(path), stored)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *LOSSLESS])
def test_twelve_bits_signed(tmp_path, ct_writer, syntax):
    hu = np.clip(smooth(), -2000, 2000)
    twelve = (hu.astype(np.int32) & 0x0FFF).astype(np.uint16)
    path = ct_writer(
        tmp_path / "a.dcm",
        twelve,
        transfer_syntax=syntax,
        PixelRepresentation=1,
        BitsStored=12,
        HighBit=11,
        RescaleIntercept=0,
    )
    np.testing.assert_array_equal(decode_hu(path), hu)


@pytest.mark.parametrize("signed", [0, 1])
def test_garbage_above_the_stored_bits_is_dropped(tmp_path, ct_writer, signed):
    low, high = (-2048, 2047) if signed else (0, 4095)
    values = np.linspace(low, high, 64).astype(np.int32).reshape(8, 8)
    dirty = ((values & 0x0FFF) | 0xA000).astype(np.uint16)
    path = ct_writer(
        tmp_path / "a.dcm",
        dirty,
        PixelRepresentation=signed,
        BitsStored=12,
        HighBit=11,
        RescaleIntercept=0,
    )
    np.testing.assert_array_equal(decode_hu(path), values)


def test_high_bit_above_the_lowest_bits(tmp_path, ct_writer):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
    path = ct_writer(
        tmp_path / "a.dcm", (values << 4) | 5, BitsStored=12, HighBit=15, RescaleIntercept=0
    )
    np.testing.assert_array_equal(decode_hu(path), values)


def test_rescale_with_fractions_rounds_and_clips(tmp_path, ct_writer):
    stored = np.array([[0, 1, 2, 3], [65535, 30000, 10, 11]], np.uint16)
    path = ct_writer(tmp_path / "a.dcm", stored, RescaleSlope="1.5", RescaleIntercept="-1024.4")
    want = np.clip(np.rint(stored * 1.5 - 1024.4), -32768, 32767)
    np.testing.assert_array_equal(decode_hu(path), want)


@pytest.mark.parametrize(
    ("padding", "limit", "stored", "is_padding"),
    [
        (-2000, None, [-2000, -1999, 0, 5], [True, False, False, False]),
        (-2000, -1990, [-2000, -1990, -1989, 5], [True, True, False, False]),
        (-1990, -2000, [-2000, -1990, -1989, 5], [True, True, False, False]),
    ],
)
def test_padding_becomes_air(tmp_path, ct_writer, padding, limit, stored, is_padding):
    path = ct_writer(
        tmp_path / "a.dcm",
        np.array([stored, stored], np.int16),
        PixelPaddingValue=padding,
        PixelPaddingRangeLimit=limit,
        RescaleIntercept=0,
    )
    got = decode_hu(path)[0]
    for value, want, padded in zip(got, stored, is_padding, strict=True):
        assert value == (-1024 if padded else want)


@pytest.mark.parametrize(("padding", "limit"), [(1064, None), (-2000, 1100)])
def test_padding_that_stands_for_tissue_is_refused(tmp_path, ct_writer, padding, limit):
    path = ct_writer(
        tmp_path / "a.dcm",
        smooth() + np.int16(1024),
        PixelPaddingValue=padding,
        PixelPaddingRangeLimit=limit,
    )
    with pytest.raises(ImagingError, match="which is tissue"):
        decode_hu(path)


def test_padding_wider_than_the_stored_bits_is_its_own_pattern(tmp_path, ct_writer):
    stored = np.array([[63536, 63536 & 0xFFF], [7, 8]], np.uint16)
    path = ct_writer(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11, PixelPaddingValue=63536)
    assert decode_hu(path)[0, 0] == -1024
    assert decode_hu(path)[0, 1] == (63536 & 0xFFF) - 1024


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RescaleSlope": None}, r"rescale slope \(0028,1053\) is missing"),
        ({"RescaleIntercept": None}, r"rescale intercept \(0028,1052\) is missing"),
        ({"RescaleSlope": 0}, "rescale slope 0 is not positive"),
        ({"RescaleType": "Z_EFF"}, "rescale type HU"),
        ({"SamplesPerPixel": 3}, "one sample per pixel"),
        ({"PhotometricInterpretation": "RGB"}, "grey image"),
        ({"NumberOfFrames": 2}, "one frame"),
        ({"Rows": 41}, "pixel data hold"),
        ({"Rows": 0}, "image size 0 x 56"),
        ({"Rows": 60000, "Columns": 60000}, "not plausible"),
        ({"Columns": None}, "columns"),
        ({"BitsAllocated": 32}, "16 bits stored in 32 allocated"),
        ({"BitsStored": 17}, "17 bits stored"),
        ({"PixelRepresentation": None}, "pixel representation"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(tmp_path, ct_writer, change, words):
    path = ct_writer(tmp_path / "a.dcm", smooth(), **change)
    with pytest.raises(ImagingError, match=words) as caught:
        decode_hu(path)
    assert "P1" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rescale_type", ["HU", "US", "Houndsfield Unit"])
def test_rescale_types_that_scanners_write_pass(tmp_path, ct_writer, rescale_type):
    path = ct_writer(tmp_path / "a.dcm", smooth(), RescaleType=rescale_type)
    assert decode_hu(path).shape == (40, 56)


def test_native_pixel_data_of_another_length(tmp_path, ct_writer):
    pixels = smooth()
    for stream in (pixels.tobytes()[:-2], pixels.tobytes() * 2, b""):
        path = ct_writer(tmp_path / "a.dcm", pixels, stream=stream)
        with pytest.raises(ImagingError, match="pixel data hold"):
            decode_hu(path)


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9])
def test_truncated_compressed_pixels_are_noticed(tmp_path, ct_writer, encoders, syntax, keep):
    pixels = smooth((64, 64))
    whole = encoders[syntax](pixels)
    path = ct_writer(
        tmp_path / "a.dcm",
        pixels,
        transfer_syntax=syntax,
        stream=whole[: int(len(whole) * keep) // 2 * 2],
    )
    with pytest.raises(ImagingError, match="compressed pixel data"):
        decode_hu(path)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_stream_of_another_size_is_refused_before_decoding(tmp_path, ct_writer, encoders, syntax):
    huge = encoders[syntax](smooth((80, 56)))
    path = ct_writer(tmp_path / "a.dcm", smooth(), transfer_syntax=syntax, stream=huge)
    with pytest.raises(ImagingError, match="compressed pixel data"):
        decode_hu(path)


def test_colour_and_wide_streams_are_refused(tmp_path, ct_writer):
    rgb = imagecodecs.jpeg8_encode(np.zeros((40, 56, 3), np.uint8))
    path = ct_writer(
        tmp_path / "a.dcm", smooth(), transfer_syntax="1.2.840.10008.1.2.4.50", stream=rgb
    )
    with pytest.raises(ImagingError, match="3 components"):
        decode_hu(path)


def test_lossy_twelve_bit_jpeg_decodes_nearly(tmp_path, ct_writer):
    pixels = (np.clip(smooth(), -1000, 1500) + 1024).astype(np.uint16)
    stream = imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=12)
    path = ct_writer(
        tmp_path / "a.dcm",
        pixels,
        transfer_syntax="1.2.840.10008.1.2.4.51",
        stream=stream,
        BitsStored=12,
        HighBit=11,
    )
    assert np.abs(decode_hu(path).astype(int) - (pixels.astype(int) - 1024)).max() < 30


def test_several_fragments_are_one_frame(tmp_path, ct_writer, encoders):
    pixels = smooth()
    stream = encoders["1.2.840.10008.1.2.4.80"](pixels)
    path = ct_writer(
        tmp_path / "a.dcm", pixels, transfer_syntax="1.2.840.10008.1.2.4.80", RescaleIntercept=0
    )
    ds = dcmread(path)
    ds.PixelData = encapsulate([stream], fragments_per_frame=3)
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(decode_hu(path), pixels)


def test_unknown_syntax_missing_pixels_other_instance(tmp_path, ct_writer):
    path = ct_writer(
        tmp_path / "a.dcm", smooth(), transfer_syntax="1.2.840.10008.1.2.4.102", stream=b"ab"
    )
    with pytest.raises(ImagingError, match="cannot be decoded"):
        decode_hu(path)
    path = ct_writer(tmp_path / "b.dcm", smooth())
    with pytest.raises(ImagingError, match="another image"):
        decode_hu(path, sop_instance_uid="1.2.3.5")
    with pytest.raises(ImagingError, match="cannot be read"):
        decode_hu(tmp_path / "absent.dcm")
    ds = dcmread(path)
    del ds.PixelData
    ds.save_as(path, enforce_file_format=True)
    with pytest.raises(ImagingError, match="no pixel data"):
        decode_hu(path)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(syntax=st.sampled_from(LOSSLESS), data=st.data())
def test_damaged_streams_end_in_pixels_or_a_refusal(tmp_path, ct_writer, encoders, syntax, data):
    pixels = smooth((24, 24))
    stream = bytearray(encoders[syntax](pixels))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    path = ct_writer(tmp_path / "a.dcm", pixels, transfer_syntax=syntax, stream=bytes(stream))
    try:
        assert decode_hu(path).shape == (24, 24)
    except ImagingError as error:
        refusal = str(error)
        assert "\n" not in refusal


def test_real_pixels_agree_with_pydicom(real_ct):
    for path in sorted(real_ct.glob("c*/*.dcm"))[::9]:
        ds = dcmread(path)
        want = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        if "PixelPaddingValue" in ds:
            want[ds.pixel_array == ds.PixelPaddingValue] = -1024
        np.testing.assert_array_equal(decode_hu(path), want)


def test_compressed_syntaxes_that_an_scp_may_offer():
    assert set(LOSSLESS) <= supported_transfer_syntaxes()
