"""Studies that grow, come twice, come back, are asked for again, or contradict what is held."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.node.conftest import NewStudy, storescu
from tests.support.dcmtk import StoreScp
from tests.support.node import RunningNode, pe_triage

SETTLE_S = 5.5
"""Longer than the node's quiet time and its timers: what has not run by then will not."""

FEW = 4
"""Slices of a study that ends NOT_EVALUATED at once: enough where the answer plays no part."""


def sr_of(doc: dict[str, Any]) -> Dataset:
    return dcmread(next(r["path"] for r in doc["results"] if r["kind"] == "SR"))


def predecessor_uids(sr: Dataset) -> list[str]:
    return [
        str(sop.ReferencedSOPInstanceUID)
        for study in sr.get("PredecessorDocumentsSequence", [])
        for series in study.ReferencedSeriesSequence
        for sop in series.ReferencedSOPSequence
    ]


def assert_no_further_run(node: RunningNode, study_uid: str, run: int) -> dict[str, Any]:
    time.sleep(SETTLE_S)
    doc = node.wait_ended(study_uid)
    assert doc["run"] == run
    queued = [e for e in node.events("job.claimed") if e["study_uid"] == study_uid]
    assert [e["run"] for e in queued] == list(range(1, run + 1))
    return doc


def test_a_late_slice_makes_a_run_that_supersedes(
    new_study: NewStudy, quick_node: RunningNode, store_scp: StoreScp
) -> None:
    study_uid, files = new_study()
    storescu(quick_node, files[:-1])
    first = quick_node.wait_ended(study_uid)
    storescu(quick_node, files[-1:])
    second = quick_node.wait_ended(study_uid, run=2)
    assert (first["instances"], second["instances"]) == (len(files) - 1, len(files))
    assert len(second["slices"]) == len(files)
    before, after = sr_of(first), sr_of(second)
    assert "PredecessorDocumentsSequence" not in before
    assert predecessor_uids(after) == [before.SOPInstanceUID]
    of_both = {r["sop_instance_uid"] for doc in (first, second) for r in doc["results"]}
    assert len(of_both) == len(first["results"]) + len(second["results"])
    assert store_scp.stored(study_uid) == dict.fromkeys(of_both, 1)


def dose_report(study_uid: str, patient: Dataset, path: Path) -> Path:
    """A radiation dose SR, which scanners send after the images."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    ds.SOPInstanceUID = f"{study_uid}.9"
    ds.StudyInstanceUID = study_uid
    ds.SeriesInstanceUID = f"{study_uid}.8"
    ds.PatientID = patient.PatientID
    ds.PatientName = patient.PatientName
    if "IssuerOfPatientID" in patient:
        ds.IssuerOfPatientID = patient.IssuerOfPatientID
    ds.Modality = "SR"
    ds.save_as(path, enforce_file_format=True)
    return path


def test_what_brings_nothing_new_makes_no_run(
    new_study: NewStudy, quick_node: RunningNode, store_scp: StoreScp, tmp_path: Path
) -> None:
    """The same images again, our own results routed back, and a dose report."""
    study_uid, files = new_study(slices=FEW)
    storescu(quick_node, files)
    doc = quick_node.wait_ended(study_uid)
    storescu(quick_node, files)
    # -R: by itself storescu proposes no context for this kind of SR.
    storescu(quick_node, [Path(r["path"]) for r in doc["results"]], "-R")
    storescu(quick_node, [dose_report(study_uid, dcmread(files[0]), tmp_path / "dose.dcm")], "-R")
    again = assert_no_further_run(quick_node, study_uid, 1)
    assert [r["sop_instance_uid"] for r in again["results"]] == [
        r["sop_instance_uid"] for r in doc["results"]
    ]
    assert all(n == 1 for n in store_scp.stored(study_uid).values())


def node_flags(node: RunningNode) -> tuple[object, ...]:
    return ("--data-dir", node.data_dir)


def test_reprocess(
    new_study: NewStudy, quick_node: RunningNode, store_scp: StoreScp, tmp_path: Path
) -> None:
    node = quick_node
    study_uid, files = new_study(slices=FEW)
    other, more = new_study(slices=FEW)
    storescu(node, [*files, *more])
    first = node.wait_ended(study_uid)
    node.wait_ended(other)

    done = pe_triage("reprocess", study_uid, "--wait", "--timeout", 60, *node_flags(node))
    assert done.returncode == 0, done.stderr
    assert "run 2" in done.stdout
    second = node.wait_ended(study_uid, run=2)
    assert second["run"] == 2
    assert predecessor_uids(sr_of(second)) == [sr_of(first).SOPInstanceUID]
    assert not {r["sop_instance_uid"] for r in first["results"]} & {
        r["sop_instance_uid"] for r in second["results"]
    }

    unknown = pe_triage("reprocess", "1.2.3.4.5", *node_flags(node))
    assert unknown.returncode == 2
    assert unknown.stderr.splitlines() == ["pe-triage: unknown study: 1.2.3.4.5"]

    listed = tmp_path / "list.txt"
    listed.write_text(f"# backfill\n{study_uid}\n1.2.3.4.5\n\n{other}\n")
    many = pe_triage("reprocess", "--from-file", listed, "--wait", *node_flags(node))
    assert many.returncode == 2
    assert "1.2.3.4.5" in many.stderr
    assert "Traceback" not in many.stderr
    assert node.wait_ended(study_uid, run=3)["run"] == 3
    third = node.wait_ended(other, run=2)
    assert third["run"] == 2
    # Every run's objects reach the PACS, each once.
    assert all(n == 1 for n in store_scp.stored(study_uid).values())
    assert len(store_scp.stored(study_uid)) == 3 * len(first["results"])


def listed(node: RunningNode, *flags: str) -> list[dict[str, Any]]:
    done = pe_triage("quarantine", "list", "--json", *flags, *node_flags(node))
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def held_of(node: RunningNode, study_uid: str) -> list[dict[str, Any]]:
    return [e for e in listed(node) if e["study_uid"] == study_uid]


Edit = Callable[[Dataset], None]


def edited(path: Path, target: Path, edit: Edit) -> Path:
    ds = dcmread(path)
    edit(ds)
    ds.save_as(target, enforce_file_format=True)
    return target


PLANTED = ("QUITTENBAUM", "HIDDENMRN0815", "19280704", "HIDDENACC77")


def test_one_study_uid_under_two_patients(
    new_study: NewStudy, quick_node: RunningNode, store_scp: StoreScp, tmp_path: Path
) -> None:
    """Visible, nothing is delivered, and a person's word settles it."""
    node = quick_node
    study_uid, files = new_study(
        slices=FEW,
        PatientID=PLANTED[1],
        PatientName=f"{PLANTED[0]}^A",
        PatientBirthDate=PLANTED[2],
        AccessionNumber=PLANTED[3],
    )

    def other_patient(ds: Dataset) -> None:
        ds.PatientID = f"OTHER-{PLANTED[1]}"
        ds.SOPInstanceUID += ".1"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    stranger = edited(files[0], tmp_path / "stranger.dcm", other_patient)
    storescu(node, [*files, stranger])
    doc = node.wait_ended_in(study_uid, {"QUARANTINED"})
    assert "another patient" in doc["reason"]
    assert (doc["outcome"], doc["results"]) == (None, [])
    time.sleep(SETTLE_S)
    assert not store_scp.stored(study_uid)
    entries = held_of(node, study_uid)
    assert [Path(e["path"]).is_file() for e in entries] == [True]
    refused = pe_triage("reprocess", study_uid, *node_flags(node))
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1

    # In our spool under the study stand only the images of its own patient.
    held = [
        str(dcmread(p, stop_before_pixels=True).PatientID)
        for p in (node.data_dir / "spool" / "studies").rglob("*.dcm")
        if dcmread(p, stop_before_pixels=True).StudyInstanceUID == study_uid
    ]
    assert held == [PLANTED[1]] * FEW

    discarded = pe_triage("quarantine", "discard", entries[0]["id"], *node_flags(node))
    assert discarded.returncode == 0, discarded.stderr
    assert not Path(entries[0]["path"]).exists()
    settled = node.wait_ended_in(study_uid, {"DONE", "NOT_EVALUATED"})
    assert settled["instances"] == FEW
    for result in settled["results"]:
        assert dcmread(result["path"]).PatientID == PLANTED[1]
    twice = pe_triage("quarantine", "discard", entries[0]["id"], *node_flags(node))
    assert twice.returncode == 2
    assert len(twice.stderr.splitlines()) == 1
    for word in PLANTED:
        assert not [line for line in node.lines if word in line]
        assert word not in json.dumps([settled["reason"], entries])


def test_release_from_quarantine(
    new_study: NewStudy, quick_node: RunningNode, store_scp: StoreScp, tmp_path: Path
) -> None:
    """Another patient's image is never released; discarded, the study ends under its own."""
    node = quick_node
    study_uid, files = new_study(slices=FEW, PatientID="RIGHT")
    stranger = edited(files[-1], tmp_path / "s.dcm", lambda ds: setattr(ds, "PatientID", "LEFT"))
    storescu(node, [*files[:-1], stranger])
    node.wait_ended_in(study_uid, {"QUARANTINED"})
    (entry,) = held_of(node, study_uid)
    released = pe_triage("quarantine", "release", entry["id"], *node_flags(node))
    assert released.returncode == 2
    assert "two patients" in released.stderr
    assert Path(entry["path"]).is_file()
    discarded = pe_triage("quarantine", "discard", "--study", study_uid, *node_flags(node))
    assert discarded.returncode == 0, discarded.stderr
    doc = node.wait_ended_in(study_uid, {"DONE", "NOT_EVALUATED", "FAILED"})
    assert doc["instances"] == FEW - 1
    assert doc["state"] == "NOT_EVALUATED", doc["reason"]
    assert {dcmread(r["path"]).PatientID for r in doc["results"]} == {"RIGHT"}
    assert not held_of(node, study_uid)


def test_one_instance_uid_with_other_bytes(
    new_study: NewStudy, quick_node: RunningNode, tmp_path: Path
) -> None:
    """The first stands and the study goes on with it; the second is set aside and listed."""
    node = quick_node
    study_uid, files = new_study(slices=FEW)
    other = edited(files[1], tmp_path / "o.dcm", lambda ds: setattr(ds, "InstanceNumber", 999))
    storescu(node, [*files, other])
    doc = node.wait_ended(study_uid)
    assert (doc["state"], doc["run"], doc["instances"]) == ("NOT_EVALUATED", 1, FEW)
    (entry,) = held_of(node, study_uid)
    assert "other content" in entry["reason"]
    assert dcmread(entry["path"]).InstanceNumber == 999
    held = {
        str(ds.SOPInstanceUID): ds.get("InstanceNumber")
        for p in (node.data_dir / "spool" / "studies").rglob("*.dcm")
        if (ds := dcmread(p, stop_before_pixels=True)).StudyInstanceUID == study_uid
    }
    assert held[entry["sop_instance_uid"]] == dcmread(files[1]).InstanceNumber
    refused = pe_triage("quarantine", "release", entry["id"], *node_flags(node))
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    human = pe_triage("quarantine", "list", *node_flags(node))
    assert study_uid in human.stdout


@pytest.mark.parametrize("flags", [("release", "9999"), ("discard", "9999")])
def test_unknown_quarantine_entry(flags: tuple[str, str], quick_node: RunningNode) -> None:
    done = pe_triage("quarantine", *flags, *node_flags(quick_node))
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["pe-triage: no quarantine entry 9999"]
