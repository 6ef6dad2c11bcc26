from __future__ import annotations

import itertools
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pe_triage.errors import ImagingError
from pe_triage.imaging.decoded import DecodedSlices
from pe_triage.imaging.pixels import decode_hu
from pe_triage.imaging.volume import load_volume

SPACING_YX = (0.7, 0.8)
STEP = 2.0
N, ROWS, COLUMNS = 5, 6, 8
ORIGIN = np.array([-10.0, 20.0, 100.0])
ORIENTATIONS = pytest.mark.parametrize(
    "turned",
    [
        dict(zip(("transpose", "flip_y", "flip_x"), values, strict=True))
        for values in itertools.product([False, True], repeat=3)
    ],
    ids=lambda turned: "-".join(str(value) for value in turned.values()),
)
"""All eight of an axial stack, as `write_series` takes them."""


def anatomy() -> np.ndarray:
    """HU in target order: every voxel has its own value."""
    return np.arange(N * ROWS * COLUMNS, dtype=np.int16).reshape(N, ROWS, COLUMNS)


def write_series(folder, ct_writer, receive_file, volume, **options):
    """Write `volume` as source slices of a given orientation; returns received instances.

    The axes of the source are built from the target by exchanging and reversing, and the header's
    position is that of the voxel which then comes first: a model independent of the loader.
    """
    transpose = options.get("transpose", False)
    flip_y, flip_x = options.get("flip_y", False), options.get("flip_x", False)
    numbers = list(range(1, N + 1))
    random.Random(4).shuffle(numbers)
    instances = []
    for z in range(volume.shape[0]):
        slice_yx = volume[z]
        first = [COLUMNS - 1 if flip_x else 0, ROWS - 1 if flip_y else 0]
        x_dir, y_dir = (
            np.array([-1.0 if flip_x else 1.0, 0, 0]),
            np.array([0, -1.0 if flip_y else 1.0, 0]),
        )
        source = slice_yx[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        # Row direction: along which the column index grows.
        row_dir, column_dir, spacing = x_dir, y_dir, SPACING_YX
        if transpose:
            source, row_dir, column_dir = source.T, y_dir, x_dir
            spacing = SPACING_YX[::-1]
        steps = (first[0] * SPACING_YX[1], first[1] * SPACING_YX[0], z * STEP)
        position = ORIGIN + np.array(steps)
        change = {
            "SOPInstanceUID": f"1.2.3.{1000 - 7 * z}",
            "InstanceNumber": numbers[z],
            "ImagePositionPatient": [float(v) for v in position],
            "ImageOrientationPatient": [float(v) for v in (*row_dir, *column_dir)],
            "PixelSpacing": list(spacing),
            "RescaleIntercept": 0,
        } | options.get("change", {}).get(z, {})
        path = folder / f"{options.get('prefix', '')}{z}.dcm"
        instances.append(
            receive_file(
                ct_writer(
                    path,
                    np.ascontiguousarray(source),
                    transfer_syntax=options.get("syntax", "1.2.840.10008.1.2.1"),
                    **change,
                )
            )
        )
    return instances


HAND_MADE_AFFINE = [
    [0.8, 0, 0, -10],
    [0, 0.7, 0, 20],
    [0, 0, 2, 100],
    [0, 0, 0, 1],
]


@ORIENTATIONS
def test_all_eight_axial_orientations_give_one_anatomy(tmp_path, ct_writer, receive_file, turned):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy(), **turned)
    volume = load_volume(instances)
    np.testing.assert_array_equal(volume.hu_zyx, anatomy())
    np.testing.assert_allclose(volume.affine_lps, HAND_MADE_AFFINE, atol=1e-9)
    assert volume.spacing_mm == pytest.approx((2.0, 0.7, 0.8))
    assert volume.source_flip_yx == (turned["flip_y"], turned["flip_x"])
    assert volume.source_transpose is turned["transpose"]
    assert volume.sop_instance_uids == tuple(f"1.2.3.{1000 - 7 * z}" for z in range(N))
    assert not volume.hu_zyx.flags.writeable


@ORIENTATIONS
def test_what_was_decoded_before_is_not_read_again_and_is_held_once(
    tmp_path, ct_writer, receive_file, turned
):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy(), **turned)
    expected = load_volume(instances)
    one = decode_hu(instances[0].path).nbytes
    part, decoded = DecodedSlices((N - 1) * one + 1), DecodedSlices(N * one)
    read = {i.path: decode_hu(i.path) for i in instances}
    for path, hu_yx in read.items():
        part.keep(path, hu_yx)
        decoded.keep(path, hu_yx)
    *kept, last = instances
    assert part.get(last.path) is None
    for instance in kept:
        instance.path.unlink()
    volume = load_volume(instances, decoded=part)
    assert volume.hu_zyx.tobytes() == expected.hu_zyx.tobytes()
    # A view would hold the whole volume for the part.
    assert not any(np.shares_memory(part.get(i.path), volume.hu_zyx) for i in kept)
    last.path.unlink()
    for _ in range(2):
        volume = load_volume(instances, decoded=decoded)
        assert volume.hu_zyx.tobytes() == expected.hu_zyx.tobytes()
        assert volume.affine_lps.tobytes() == expected.affine_lps.tobytes()
        for instance in instances:
            found = decoded.get(instance.path)
            assert np.shares_memory(found, volume.hu_zyx)
            assert not found.flags.writeable
            np.testing.assert_array_equal(found, read[instance.path])
    part.keep(last.path, read[last.path])
    assert part.get(last.path) is None
    part.forget([i.path for i in instances])
    part.keep(last.path, read[last.path])
    np.testing.assert_array_equal(part.get(last.path), read[last.path])
    with pytest.raises(ImagingError):
        load_volume(instances, decoded=part)


def test_mirrored_pixels_with_unchanged_headers_are_mirrored(tmp_path, ct_writer, receive_file):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy()[:, :, ::-1])
    assert np.array_equal(load_volume(instances).hu_zyx, anatomy()[:, :, ::-1])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(N)))
def test_any_order_of_arrival_gives_the_same_bits(tmp_path, ct_writer, receive_file, order):
    if not (tmp_path / "0.dcm").exists():
        write_series(tmp_path, ct_writer, receive_file, anatomy())
    instances = [receive_file(tmp_path / f"{z}.dcm") for z in range(N)]
    expected = load_volume(instances)
    shuffled = load_volume([instances[i] for i in order])
    assert shuffled.hu_zyx.tobytes() == expected.hu_zyx.tobytes()
    assert shuffled.affine_lps.tobytes() == expected.affine_lps.tobytes()
    assert shuffled.sop_instance_uids == expected.sop_instance_uids


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"]
)
def test_transfer_syntax_does_not_matter(tmp_path, ct_writer, receive_file, syntax):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy(), syntax=syntax)
    np.testing.assert_array_equal(load_volume(instances).hu_zyx, anatomy())


def test_quality_control_needs_every_slice(tmp_path, ct_writer, receive_file):
    marked = {z: {"QualityControlImage": "YES"} for z in range(N)}
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy(), change=marked)
    assert load_volume(instances).quality_control is True
    one = replace(instances[2], facts=replace(instances[2].facts, quality_control=False))
    assert load_volume([*instances[:2], one, *instances[3:]]).quality_control is False


def test_rescale_differs_by_slice(tmp_path, ct_writer, receive_file):
    change = {1: {"RescaleSlope": 2, "RescaleIntercept": 5}}
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy(), change=change)
    want = anatomy()
    want[1] = want[1] * 2 + 5
    np.testing.assert_array_equal(load_volume(instances).hu_zyx, want)


def test_identical_images_at_one_position_count_once(tmp_path, ct_writer, receive_file):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy())
    again = ct_writer(
        tmp_path / "again.dcm",
        anatomy()[3],
        SOPInstanceUID="1.2.3.0",
        ImagePositionPatient=[*ORIGIN[:2], ORIGIN[2] + 3 * STEP],
        PixelSpacing=list(SPACING_YX),
        RescaleIntercept=0,
    )
    volume = load_volume([*instances, receive_file(again)])
    np.testing.assert_array_equal(volume.hu_zyx, anatomy())
    assert volume.sop_instance_uids[3] == "1.2.3.0"


def test_different_images_at_one_position_are_refused(tmp_path, ct_writer, receive_file):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy())
    other = ct_writer(
        tmp_path / "other.dcm",
        anatomy()[2],
        SOPInstanceUID="1.2.3.0",
        ImagePositionPatient=[*ORIGIN[:2], ORIGIN[2] + 3 * STEP],
        PixelSpacing=list(SPACING_YX),
        RescaleIntercept=0,
    )
    with pytest.raises(ImagingError, match=r"2 different images lie at one position \(106.0 mm\)"):
        load_volume([*instances, receive_file(other)])


def moved(z, dx=0.0, dy=0.0, dz=0.0):
    return [float(v) for v in ORIGIN + np.array((dx, dy, z * STEP + dz))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({2: {"ImagePositionPatient": moved(2, dz=0.5)}}, "unequally spaced: 1.50 to 2.50 mm"),
        ({4: {"ImagePositionPatient": moved(5)}}, "slices are missing: 1 gap"),
        (
            {z: {"ImagePositionPatient": moved(z, dy=0.5 * z)} for z in range(N)},
            "gantry tilt: slices are shifted against each other by 14.0 degrees",
        ),
        ({2: {"ImagePositionPatient": moved(2, dx=3)}}, "shifted sideways"),
        ({1: {"PixelSpacing": [0.9, 0.9]}}, "pixel spacing differs"),
        (
            {1: {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}},
            "images of the series are oriented differently",
        ),
        (
            {z: {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]} for z in range(N)},
            "slices are coronal, not axial",
        ),
        (
            {z: {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]} for z in range(N)},
            "slices are sagittal, not axial",
        ),
        (
            {z: {"ImageOrientationPatient": [0.8, 0.6, 0, -0.6, 0.8, 0]} for z in range(N)},
            "turned by 37 degrees",
        ),
        ({z: {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]} for z in range(N)}, "perpendicular"),
        ({1: {"ImageOrientationPatient": None}}, "orientation .* missing .* 1 of 5"),
        ({1: {"ImagePositionPatient": None}}, "position .* missing .* 1 of 5"),
        ({1: {"PixelSpacing": None}}, "pixel spacing .* missing"),
        ({z: {"PixelSpacing": [0, 0]} for z in range(N)}, "not positive"),
        ({1: {"FrameOfReferenceUID": "1.9"}}, "frame of reference"),
        ({1: {"RescaleSlope": None}}, "image .: rescale slope .* missing"),
    ],
)
def test_irregular_series_are_refused_in_words(tmp_path, ct_writer, receive_file, change, words):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy(), change=change)
    with pytest.raises(ImagingError, match=words) as caught:
        load_volume(instances)
    assert "P1" not in str(caught.value)


@pytest.mark.parametrize("missing", range(1, N - 1))
def test_each_interior_slice_is_missed(tmp_path, ct_writer, receive_file, missing):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy())
    del instances[missing]
    with pytest.raises(ImagingError, match="slices are missing"):
        load_volume(instances)


def test_differing_matrix_and_several_series(tmp_path, ct_writer, receive_file):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy())
    small = replace(instances[1], facts=replace(instances[1].facts, rows=4))
    with pytest.raises(ImagingError, match="image sizes differ"):
        load_volume([instances[0], small, *instances[2:]])
    with pytest.raises(ImagingError, match="one series was expected"):
        load_volume([*instances[:4], replace(instances[4], series_uid="1.9")])
    with pytest.raises(ImagingError, match="single slice"):
        load_volume(instances[:1])
    with pytest.raises(ImagingError, match="one series was expected"):
        load_volume([])


def test_a_swapped_file_is_noticed(tmp_path, ct_writer, receive_file):
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy())
    shutil.copy(instances[0].path, instances[1].path)
    with pytest.raises(ImagingError, match="holds another image"):
        load_volume(instances)


def test_small_in_plane_turn_keeps_an_exact_affine(tmp_path, ct_writer, receive_file):
    angle = np.radians(3)
    row = [np.cos(angle), np.sin(angle), 0]
    column = [-np.sin(angle), np.cos(angle), 0]
    change = {
        z: {"ImageOrientationPatient": [round(float(v), 9) for v in (*row, *column)]}
        for z in range(N)
    }
    instances = write_series(tmp_path, ct_writer, receive_file, anatomy(), change=change)
    affine = load_volume(instances).affine_lps
    np.testing.assert_allclose(affine @ [1, 0, 0, 1], [*(ORIGIN + 0.8 * np.array(row)), 1])
    np.testing.assert_allclose(affine @ [0, 1, 0, 1], [*(ORIGIN + 0.7 * np.array(column)), 1])


def test_real_series_have_lungs_and_heart_where_they_belong(real_ct, receive_file):
    for name, slices in (("chest_siemens_b40f", 30), ("chest_philips_b", 64)):
        folder = real_ct / name
        volume = load_volume([receive_file(p) for p in sorted(folder.glob("*.dcm"))])
        assert volume.hu_zyx.shape == (slices, 512, 512)
        z = volume.hu_zyx
        # The table is behind the patient, the liver low and on the right.
        lung = (z > -950) & (z < -600)
        share = lung.mean(axis=(1, 2))
        assert share[: slices // 6].mean() < share[slices // 2]
        low = z[2]
        body = (low > 0) & (low < 150)
        assert body[:, :256].sum() > body[:, 256:].sum()
