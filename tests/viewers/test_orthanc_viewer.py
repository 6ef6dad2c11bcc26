"""Orthanc's own web viewer: images show; documents and float maps it cannot draw."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.ohif import OhifViewer

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def viewer(chromium, archive, shots):
    """The browser, screenshots into the folder."""
    address = f"http://127.0.0.1:{archive.http_port}/web-viewer/app/viewer.html"
    return OhifViewer(chromium, address, shots / "orthanc")


def series_of(archive, study_uid):
    """Series Number to Orthanc's identifier."""
    identifiers = archive.get(f"/studies/{archive.studies()[study_uid]}")["Series"]
    return {archive.get(f"/series/{i}")["MainDicomTags"]["SeriesNumber"]: i for i in identifiers}


@pytest.mark.parametrize(
    ("number", "name"), [("2", "ct"), ("9502", "summary"), ("9503", "heatmaps")]
)
def test_images_show(viewer, archive, positive, number, name):
    viewer.console()
    viewer.show(f"?series={series_of(archive, positive.study_uid)[number]}")
    picture = viewer.shot(name).astype(int)
    assert (picture.max(axis=2) > 40).mean() > 0.05
    banner = (np.abs(picture - (224, 104, 28)).max(axis=2) < 6).mean()
    assert bool(banner > 0.02) is (number != "2")
    assert viewer.console() == []
