"""Each series opened in OHIF: what a radiologist sees who has nothing but a web viewer.

Screenshots stay in the folder that VIEWER_SHOTS names: they are made to be looked at.
"""

from __future__ import annotations

import numpy as np
import pytest

from pe_triage.report.places import source_point
from tests.support.ohif import OhifViewer
from tests.viewers.conftest import PEAK_SHARES

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def viewer(chromium, ohif_address, shots):
    """OHIF in the browser, screenshots into the folder."""
    return OhifViewer(chromium, ohif_address, shots / "ohif")


def lit(picture):
    """Share of pixels that are not black."""
    return float((picture.max(axis=2) > 40).mean())


def test_the_study_lists_every_series(viewer, positive):
    viewer.open(positive.study_uid)
    listed = "\n".join(viewer.thumbnails())
    for words in ("CTPA", "AI summary", "AI heatmaps", "AI triage SR", "AI narrative",
                  "AI key objects", "AI Grad-CAM map"):  # fmt: skip
        assert words in listed
    assert lit(viewer.viewport("study")) > 0.1
    assert viewer.console() == []


def test_captures_show_in_colour(viewer, positive):
    viewer.open(positive.study_uid)
    for name in ("AI summary", "AI heatmaps"):
        viewer.open_series(name)
        picture = viewer.viewport(name)
        # The banner: vermillion, and only a capture brings it.
        banner = (np.abs(picture.astype(int) - (224, 104, 28)).max(axis=2) < 6).mean()
        assert banner > 0.02, name
    assert viewer.console() == []


def test_the_report_marks_the_key_slices_on_the_ct(viewer, positive):
    viewer.open(positive.study_uid)
    before = viewer.viewport("before-sr")
    viewer.open_series("AI triage SR")
    picture = viewer.viewport("sr")
    assert lit(picture) > 0.1, "the report opened as a black viewport"
    assert not np.array_equal(before, picture)
    strongest = positive.result.key_slices[0]
    assert viewer.image_number() == strongest.z + 1, "not at the strongest key slice"
    rows, columns = positive.volume.hu_zyx.shape[1:]
    x, y = source_point(strongest, positive.volume)
    assert np.allclose((y / rows, x / columns), PEAK_SHARES, atol=0.01)
    tip = viewer.arrow_tip()
    assert tip is not None
    assert np.hypot(*np.subtract(tip, viewer.on_screen(x, y, columns, rows))) < 5
    text = viewer.text()
    assert "Model score of exam (0 to 1): 0.96" in text
    assert "Model score of slice (0 to 1): 0.91" in text
    assert viewer.console() == []


def test_the_report_leads_from_key_slice_to_key_slice(viewer, positive):
    viewer.open(positive.study_uid)
    viewer.open_series("AI triage SR")
    viewer.press_if_there("No")
    rows, columns = positive.volume.hu_zyx.shape[1:]
    for number, key in enumerate(positive.result.key_slices, start=1):
        viewer.shot(f"sr-{number}")
        assert viewer.image_number() == key.z + 1
        x, y = source_point(key, positive.volume)
        tip = viewer.arrow_tip()
        assert tip is not None
        assert np.hypot(*np.subtract(tip, viewer.on_screen(x, y, columns, rows))) < 5
        assert f"Model score of slice (0 to 1): {key.probability:.2f}" in viewer.text()
        viewer.next_measurement()
    assert viewer.console() == []


@pytest.mark.parametrize("name", ["positive", "negative", "refused"])
def test_the_narrative_opens_as_text(viewer, request, name):
    held = request.getfixturevalue(name)
    viewer.open(held.study_uid)
    viewer.open_series("AI narrative")
    viewer.shot(f"narrative-{name}")
    text = viewer.text()
    assert "CT Chest Report" in text
    assert "Triage aid: a negative result does not exclude PE." in text
    assert {"positive": "PE SUSPECTED", "negative": "NO PE DETECTED",
            "refused": "PE NOT EVALUATED"}[name] in text  # fmt: skip
    if held.result.reason:
        assert held.result.reason in text
    assert viewer.console() == []


@pytest.mark.parametrize("name", ["negative", "refused"])
def test_a_coded_report_without_a_place_stays_black(viewer, request, name):
    # What docs/viewers.md says of OHIF. When it no longer holds, the document is to be changed.
    held = request.getfixturevalue(name)
    viewer.open(held.study_uid)
    viewer.open_series("AI triage SR")
    assert lit(viewer.viewport(f"coded-{name}")) < 0.02
    assert "Model score" not in viewer.text()


def test_a_negative_study_shows_its_summary(viewer, negative):
    viewer.open(negative.study_uid)
    listed = viewer.thumbnails()[1:]
    assert len(listed) == 3
    assert all("NO PE DETECTED" in words for words in listed)
    viewer.open_series("AI summary")
    assert lit(viewer.viewport("negative-summary")) > 0.02
    assert viewer.console() == []


def test_a_refused_study_says_so(viewer, refused):
    viewer.open(refused.study_uid)
    assert all("PE NOT EVALUATED" in words for words in viewer.thumbnails()[1:])
    viewer.open_series("AI summary")
    assert lit(viewer.viewport("refused-summary")) > 0.02
    assert viewer.console() == []
