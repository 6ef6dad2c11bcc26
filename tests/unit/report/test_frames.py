"""Results of an Enhanced CT image: every object names the frames that it speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from pe_triage.domain import ResultKind, ResultSet, TriageResult, image_id
from pe_triage.errors import PermanentError
from pe_triage.report import make_result
from pe_triage.report.readback import read_sr
from tests.support.enhanced import ENHANCED_CT
from tests.support.validators import dciodvfy_errors
from tests.unit.report.conftest import EVERYTHING, SERIES_UID, Scene, make_scene

UID = "1.2.826.0.1.3680043.8.498.5"


@dataclass(frozen=True)
class Framed:
    """A positive answer on one instance whose frames run from head to foot."""

    scene: Scene
    result: TriageResult
    results: ResultSet

    def dataset(self, kind: ResultKind) -> Dataset:
        item = next(o for o in self.results.objects if o.kind is kind)
        return pydicom.dcmread(BytesIO(item.encoded))

    @property
    def frames(self) -> list[int | None]:
        return [key.frame for key in self.result.key_slices]


@pytest.fixture(scope="module")
def framed() -> Framed:
    scene = make_scene()
    scene.settings = EVERYTHING
    plain = scene.volume.sop_instance_uids
    count = len(plain)
    numbers = tuple(range(count, 0, -1))
    scene.volume = replace(scene.volume, sop_instance_uids=(UID,) * count, frame_numbers=numbers)
    headers = {}
    for uid, number in zip(plain, numbers, strict=True):
        header = scene.headers[uid]
        header.SOPClassUID, header.SOPInstanceUID, header.InstanceNumber = ENHANCED_CT, UID, 1
        header.ReferencedFrameNumber = number
        headers[image_id(UID, number)] = header
    whole = Dataset()
    whole.update(headers[image_id(UID, 1)])
    for keyword in ("ReferencedFrameNumber", "ImagePositionPatient", "PixelSpacing"):
        delattr(whole, keyword)
    scene.headers = {UID: whole, **headers}
    keys = tuple(replace(k, frame=numbers[k.z]) for k in scene.keys(3))
    result = make_result(
        scene.prediction(), series_uid=SERIES_UID, sop_instance_uids=(UID,) * count,
        quality_control=True, policy=scene.settings.policy, key_slices=keys,
        frame_numbers=numbers,
    )  # fmt: skip
    return Framed(scene, result, scene.build(result))


def references(ds: Dataset) -> Iterator[Dataset]:
    """Every reference to the image, evidence aside."""
    for element in ds:
        if element.VR != "SQ" or element.keyword in (
            "CurrentRequestedProcedureEvidenceSequence", "ReferencedSeriesSequence",
        ):  # fmt: skip
            continue
        for item in element.value:
            if item.get("ReferencedSOPInstanceUID") == UID:
                yield item
            yield from references(item)


def test_every_reference_names_its_frame(framed: Framed) -> None:
    kinds = [item.kind for item in framed.results.objects]
    assert set(kinds) >= {
        ResultKind.SR, ResultKind.SUMMARY, ResultKind.HEATMAP, ResultKind.NARRATIVE,
        ResultKind.KEY_OBJECTS, ResultKind.PARAMETRIC_MAP,
    }  # fmt: skip
    assert len(set(framed.frames)) == 3
    for item in framed.results.objects:
        ds = pydicom.dcmread(BytesIO(item.encoded))
        found = [(str(r.ReferencedSOPClassUID), r.get("ReferencedFrameNumber"))
                 for r in references(ds)]  # fmt: skip
        assert found, item.label
        assert {c for c, _ in found} == {ENHANCED_CT}, item.label
        frames = {None if f is None else int(f) for _, f in found}
        number = int(item.label[-2:]) - 1 if item.kind is ResultKind.HEATMAP else None
        shown = framed.frames if number is None else [framed.frames[number]]
        assert frames == set(shown), item.label


def test_the_instance_is_evidence_once(framed: Framed) -> None:
    for kind in (ResultKind.SR, ResultKind.NARRATIVE, ResultKind.KEY_OBJECTS):
        (study,) = framed.dataset(kind).CurrentRequestedProcedureEvidenceSequence
        (series,) = study.ReferencedSeriesSequence
        (instance,) = series.ReferencedSOPSequence
        assert (instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID) == (
            ENHANCED_CT, UID,
        )  # fmt: skip


def test_the_parametric_map_lies_where_the_frames_lie(framed: Framed) -> None:
    ds = framed.dataset(ResultKind.PARAMETRIC_MAP)
    found = {}
    for groups in ds.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        (plane,) = groups.PlanePositionSequence
        found[int(source.ReferencedFrameNumber)] = list(plane.ImagePositionPatient)
    assert found == {
        key.frame: list(framed.scene.headers[key.image_id].ImagePositionPatient)
        for key in framed.result.key_slices
    }
    (series,) = ds.ReferencedSeriesSequence
    assert [i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence] == [UID]


def test_the_report_reads_back_with_its_frames(framed: Framed, tmp_path: Path) -> None:
    path = tmp_path / "sr.dcm"
    path.write_bytes(framed.results.objects[0].encoded)
    document = read_sr(path)
    assert document["instances"] == 1
    # Foot to head, though the frames run the other way.
    assert [s["frame"] for s in document["slices"]] == framed.frames
    assert framed.frames == sorted(framed.frames, reverse=True)
    assert {s["sop_instance_uid"] for s in document["slices"]} == {UID}
    assert all(s["outline"] for s in document["slices"])
    points = [s["outline"][0] for s in document["slices"]]
    assert len(points) == 3


def test_dciodvfy_finds_no_error(framed: Framed, tmp_path: Path) -> None:
    for item in framed.results.objects:
        if item.label in ("heatmap-02", "heatmap-03"):
            continue
        path = tmp_path / f"{item.label}.dcm"
        path.write_bytes(item.encoded)
        assert dciodvfy_errors(path) == [], item.label


def test_a_key_slice_of_another_frame_is_refused(framed: Framed) -> None:
    wrong = replace(framed.result.key_slices[0], frame=framed.result.key_slices[1].frame)
    result = replace(framed.result, key_slices=(wrong,))
    with pytest.raises(PermanentError, match="is not slice"):
        framed.scene.build(result)
