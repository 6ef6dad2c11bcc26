"""The captures: how they are filed, and that what they must show is in the picture."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageFilter

from pe_triage.domain import Outcome, Priority, ResultKind
from pe_triage.report import drawing
from pe_triage.report.captures import summary_picture
from pe_triage.report.colormaps import heat_colors, heat_table
from pe_triage.report.drawing import GE, Board, drawable
from pe_triage.report.settings import SERIES_ORDER
from pe_triage.report.slices import (
    SlicePictures,
    _edge,
    display_size,
    overlay_slice,
    plain_slice,
    upsampled,
    windowed,
)
from pe_triage.report.wording import series_description, time_words


def objects(results, kind):
    items = getattr(results, "objects", results)
    return [pydicom.dcmread(BytesIO(o.encoded)) for o in items if o.kind is kind]


def test_what_is_made_for_each_answer(case):
    name, result = case.name, case.result
    results = case.results
    kinds = [o.kind for o in results.objects]
    some = bool(result.key_slices)
    assert kinds == [
        ResultKind.SR,
        ResultKind.NARRATIVE,
        ResultKind.SUMMARY,
        *[ResultKind.KEY_OBJECTS] * some,
        *[ResultKind.HEATMAP] * len(result.key_slices),
        *[ResultKind.PARAMETRIC_MAP] * some,
    ]
    assert bool(result.key_slices) == (
        name not in ("negative", "not-evaluated", "untrained-withheld")
    )
    assert len({o.sop_instance_uid for o in results.objects}) == len(results.objects)
    assert len({o.label for o in results.objects}) == len(results.objects)


def test_captures_are_plain_rgb_without_geometry_or_source_series(case):
    scene, results = case.scene, case.results
    numbers = {}
    for item in results.objects:
        if item.kind not in (ResultKind.SUMMARY, ResultKind.HEATMAP):
            continue
        ds = pydicom.dcmread(BytesIO(item.encoded))
        assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert (ds.PhotometricInterpretation, ds.SamplesPerPixel, ds.BitsAllocated) == (
            "RGB", 3, 8,
        )  # fmt: skip
        assert ds.pixel_array.shape == (ds.Rows, ds.Columns, 3)
        for keyword in ("FrameOfReferenceUID", "ImagePositionPatient", "PixelSpacing", "KVP",
                        "NumberOfFrames", "WindowCenter"):  # fmt: skip
            assert keyword not in ds
        assert ds.SeriesInstanceUID != next(iter(scene.headers.values())).SeriesInstanceUID
        assert ds.BurnedInAnnotation == "NO"
        assert "not for diagnostic use" in ds.SeriesDescription
        assert len(ds.SeriesDescription) <= 64
        assert ds.SeriesDescription.isascii()
        numbers.setdefault(ds.SeriesInstanceUID, ds.SeriesNumber)
    assert sorted(numbers.values()) == [9502, 9503][: len(numbers)]


def test_only_report_and_pictures_are_made_unasked(scene):
    kinds = [o.kind for o in scene.build(scene.result(keys=1)).objects]
    assert kinds == [ResultKind.SR, ResultKind.SUMMARY, ResultKind.HEATMAP]


def test_a_picture_of_a_phantom_is_marked_as_one(scene, positive):
    result = scene.result(keys=1)
    assert "QualityControlImage" not in objects(positive.results, ResultKind.SUMMARY)[0]
    for ds in scene.headers.values():
        ds.QualityControlImage = "YES"
    marked = scene.captures(result)
    for kind in (ResultKind.SUMMARY, ResultKind.HEATMAP):
        (ds,) = objects(marked, kind)
        assert ds.QualityControlImage == "YES"


def test_each_heatmap_names_its_source_slice(positive):
    for ds, key in zip(
        objects(positive.results, ResultKind.HEATMAP), positive.result.key_slices, strict=True
    ):
        (source,) = ds.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == key.sop_instance_uid
        assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"


def test_series_descriptions_fit_for_every_answer(scene):
    positive = scene.result()
    answers = [(outcome, None) for outcome in Outcome if outcome is not Outcome.POSITIVE]
    answers += [(Outcome.POSITIVE, priority) for priority in Priority]
    for outcome, priority in answers:
        for kind in SERIES_ORDER:
            text = series_description(replace(positive, outcome=outcome, priority=priority), kind)
            assert len(text) <= 64
    assert series_description(positive, ResultKind.SUMMARY).startswith("PE SUSPECTED - HIGH | ")


def test_identity_changes_no_pixel(scene):
    before = [
        o.pixel_array for o in objects(scene.captures(scene.result(keys=1)), ResultKind.SUMMARY)
    ]
    for ds in scene.headers.values():
        ds.PatientName, ds.PatientBirthDate, ds.AccessionNumber = "Other^Name", "20000101", "Z9"
        ds.StudyID = ds.StudyDescription = "else"
    after = [
        o.pixel_array for o in objects(scene.captures(scene.result(keys=1)), ResultKind.SUMMARY)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_outcomes_differ_without_colour(scene):
    """In grey, and with the words masked, each banner still looks different."""
    marks = []
    for kind in ("POSITIVE", "NEGATIVE", "INDETERMINATE", "NOT_EVALUATED"):
        (ds,) = objects(scene.captures(scene.result(kind, keys=1)), ResultKind.SUMMARY)
        grey = ds.pixel_array[:132, :140].mean(axis=2)
        marks.append(grey > grey.mean())
    for i, a in enumerate(marks):
        for b in marks[i + 1 :]:
            assert (a != b).mean() > 0.02


def test_withheld_summary_is_the_same_whatever_the_network_said(scene):
    from pe_triage.domain import IntendedUse

    pictures = [
        objects(
            scene.captures(
                scene.result(kind, use=IntendedUse.DEMONSTRATION, quality_control=False)
            ),
            ResultKind.SUMMARY,
        )[0].pixel_array
        for kind in ("POSITIVE", "NEGATIVE")
    ]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("kind", ["POSITIVE", "NEGATIVE"])
def test_every_small_slice_of_the_summary_names_its_sides(scene, kind, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Board, "sides", lambda _self, xy, extent, _size, letters="RLAP": drawn.append(letters)
    )
    scene.captures(scene.result(kind, keys=3))
    small = [letters for letters in drawn if letters == "RL"]
    assert len(small) == (3 if kind == "POSITIVE" else 5)
    # On the heatmaps each slice twice, with all four.
    assert drawn[len(small) :] == ["RLAP"] * (6 if kind == "POSITIVE" else 0)


def test_the_sides_are_drawn_where_they_are():
    board = Board(200, 100)
    board.sides((0, 0), (200, 100), 22, letters="R")
    lit = np.asarray(board.image).max(axis=2) > 200
    assert lit[:, :40].any()
    assert not lit[:, 40:].any()


def test_the_summary_has_the_heatmaps_colours(scene):
    (ds,) = objects(scene.captures(scene.result(keys=1)), ResultKind.SUMMARY)
    strip = ds.pixel_array[618:660].reshape(-1, 3)
    found = {tuple(color) for color in strip.tolist()}
    ramp = {tuple(color) for color in heat_table()[[0, 255]].tolist()}
    assert ramp <= found
    (ds,) = objects(scene.captures(scene.result("NEGATIVE")), ResultKind.SUMMARY)
    assert not ramp & {tuple(c) for c in ds.pixel_array[618:660].reshape(-1, 3).tolist()}


def test_faint_words_stand_out_by_seven_to_one():
    # WCAG 2.2's enhanced contrast, in grey as in colour: reading stations are bright rooms too.
    def luminance(color):
        part = np.array(color) / 255
        linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for ground in (drawing.BACKGROUND, drawing.PANEL):
        ratio = (luminance(drawing.FAINT) + 0.05) / (luminance(ground) + 0.05)
        assert ratio >= 7


def test_summary_bears_long_words_and_many_slices(scene):
    result = replace(scene.result("NOT_EVALUATED"), reason="a very long reason " * 40 + "日本語")
    for o in scene.build(result).objects:
        assert o.encoded
    from datetime import UTC, datetime

    picture = summary_picture(
        result=scene.result(keys=8), volume=scene.volume, places={}, run=12,
        when=datetime(2024, 1, 1, tzinfo=UTC), software="x" * 300,
    )  # fmt: skip
    assert picture.size == (1280, 1024)


def test_colours_rise_evenly_in_grey():
    rgb = heat_table().astype(float) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness[::16])
    assert (steps > 0).all()
    assert steps.max() < 1.35 * steps.min()
    luma = heat_table() @ [0.299, 0.587, 0.114]
    assert (np.diff(luma[::4]) > 0).all()


# Viénot, Brettel, Mollon 1999: linear RGB as protanopes and deuteranopes see it.
COLOUR_BLIND = {
    "protanope": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranope": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


@pytest.mark.parametrize("eyes", COLOUR_BLIND)
def test_colours_rise_for_the_colour_blind(eyes):
    def lightness(colors):
        rgb = np.asarray(colors, dtype=float) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(linear @ np.array(COLOUR_BLIND[eyes]).T, 0, 1)
        luminance = seen @ [0.2126, 0.7152, 0.0722]
        return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)

    steps = np.diff(lightness(heat_table()[::16]))
    assert (steps > 2).all()
    # The banners of HIGH, MEDIUM and LOW, which differ in words and bars besides.
    banners = lightness([drawing.VERMILLION, drawing.ORANGE, drawing.YELLOW])
    assert (np.diff(banners) > 8).all()


def test_colours_bear_bad_values():
    colors = heat_colors(np.array([np.nan, -3.0, 0.0, 1.0, 9.0]))
    assert (colors[0] == colors[2]).all()
    assert (colors[1] == colors[2]).all()
    assert (colors[3] == colors[4]).all()


def test_the_pe_window():
    grey = np.asarray(windowed(np.array([[-1000, -250, 100, 450, 3000]], dtype=np.int16)))
    assert grey.tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [((2.0, 1.5, 1.25), (400, 300)), ((2.0, 1.0, 1.0), (400, 250)), ((2.0, 4.0, 1.0), (160, 400))],
)
def test_proportions_are_true_in_millimetres(scene, spacing, expected):
    volume = replace(scene.volume, spacing_mm=spacing)
    assert display_size(volume, (400, 400)) == expected
    assert plain_slice(volume, 3, (400, 400)).size == expected


def test_the_overlay_marks_the_heatmaps_peak(scene):
    (key,) = scene.keys(1)
    plain = np.asarray(plain_slice(scene.volume, key.z, (400, 400)), dtype=float)
    over = np.asarray(overlay_slice(scene.volume, key, (400, 400)), dtype=float)
    changed = np.abs(over - plain).sum(axis=2)
    rows, columns = changed.shape
    y, x = (int(v) for v in (0.45 * rows, 0.36 * columns))
    assert changed[y, x] > 30
    assert changed[: rows // 5].max() == 0
    colour = np.ptp(over, axis=2)
    assert colour[y, x] > 30
    assert np.ptp(plain, axis=2).max() == 0


@pytest.mark.parametrize("shape", [(40, 50), (7, 5), (2, 9), (1, 6), (1, 1)])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_an_edge_is_what_a_rank_filter_adds(shape, share):
    mask = np.random.default_rng(5).random(shape) < share
    for by in (1, 2):
        grown = Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * by + 1))
        np.testing.assert_array_equal(_edge(mask, by=by), (np.asarray(grown) > 0) & ~mask)


def test_a_heatmap_cell_covers_its_share_of_the_slice():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1.0
    large = upsampled(heat, (400, 200))
    assert large.shape == (200, 400)
    y, x = np.unravel_index(int(large.argmax()), large.shape)
    assert y < 50
    assert x >= 300


def test_text_is_drawable():
    assert drawable("Ärzte – ≥ 1 ’x’ 日") == f"Arzte - {GE} 1 'x' ?"
    board = Board(300, 60)
    assert board.text((0, 0), "RV/LV ≥ 1", 20) == pytest.approx(board.width("RV/LV ≥ 1", 20))
    assert np.asarray(board.image).max() > 200
    assert board.wrap("one two three four five", 20, 100, 2)[-1].endswith("…")
    assert board.width(board.fit("word " * 50, 16, 200), 16) <= 200


def test_times_name_their_zone():
    from datetime import UTC, datetime, timedelta, timezone

    when = datetime(2024, 1, 2, 3, 4, tzinfo=UTC)
    assert time_words(when) == "2024-01-02 03:04 UTC"
    there = when.astimezone(timezone(timedelta(hours=-3, minutes=-30)))
    assert time_words(there) == "2024-01-01 23:34 UTC-03:30"


def test_a_picture_drawn_before_is_given_for_its_own_key_slice_only(scene):
    (key,), limit = scene.keys(1), (400, 400)
    pictures = SlicePictures()
    pictures.draw(scene.volume, [key], limit)
    drawn = pictures.overlay(scene.volume, key, limit)
    assert pictures.overlay(scene.volume, key, limit) is drawn
    other = replace(key, heatmap_yx=np.zeros_like(key.heatmap_yx))
    anew = pictures.overlay(scene.volume, other, limit)
    assert np.array_equal(np.asarray(anew), np.asarray(overlay_slice(scene.volume, other, limit)))
    assert not np.array_equal(np.asarray(anew), np.asarray(drawn))
    assert pictures.overlay(scene.volume, key, (300, 300)).size != drawn.size
