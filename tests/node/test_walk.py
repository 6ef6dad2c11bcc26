"""The main job against real peers: DCMTK sends, the node answers, Orthanc holds the results."""

from __future__ import annotations

import json
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag

from tests.node.conftest import NewStudy
from tests.support.node import RunningNode, pe_triage, send, wait_for
from tests.support.orthanc import Orthanc
from tests.support.peers import dcmtk_environment, require_program


def storescu() -> str:
    return require_program("storescu", "dcmtk")


PLANTED = ("ZWETSCHGENKERN", "HIDDENMRN4711", "19340229")
"""Name, identifier and date of birth that must never reach a log or a file name."""


def test_dcmtk_to_node_to_orthanc(
    new_study: NewStudy,
    tiny_bundle: Path,
    orthanc: Orthanc,
    database: str | None,
    tmp_path: Path,
) -> None:
    study_uid, files = new_study(
        PatientName=f"{PLANTED[0]}^ANNA",
        PatientID=PLANTED[1],
        IssuerOfPatientID="CLINIC A",
        PatientBirthDate=PLANTED[2],
        AccessionNumber="ACC-1",
        StudyID="S-1",
    )
    # The archive holds the CT study before any result comes, as a PACS does.
    subprocess.run(
        [storescu(), "-aec", "ORTHANC", "127.0.0.1", str(orthanc.dicom_port), *map(str, files)],
        env=dcmtk_environment(),
        check=True,
        timeout=120,
    )
    data_dir = tmp_path / "node"
    flags = ["--model", tiny_bundle, "--send-to", orthanc.address, "--quiet-s", "20"]
    if database is not None:
        refused = pe_triage("serve", "--port", 0, "--data-dir", data_dir, "--database", database)
        assert refused.returncode == 2
        assert "pe-triage db upgrade" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
        upgraded = pe_triage("db", "upgrade", "--data-dir", data_dir, "--database", database)
        assert upgraded.returncode == 0, upgraded.stderr
    with RunningNode(data_dir, *flags, database=database) as node:
        echoed = pe_triage("echo", f"PETRIAGE@127.0.0.1:{node.port}")
        assert echoed.returncode == 0, echoed.stderr
        sent = send(storescu(), node, files, environment=dcmtk_environment())
        assert sent.returncode == 0, sent.stdout + sent.stderr
        doc = node.wait_ended(study_uid)

        assert (doc["state"], doc["outcome"], doc["priority"]) == ("DONE", "INDETERMINATE", None)
        assert "untrained" in doc["reason"]
        assert doc["instances"] == len(doc["slices"]) == len(files)
        assert doc["exam"] is not None  # the images are marked as quality control
        kinds = [result["kind"] for result in doc["results"]]
        assert kinds.count("SR") == kinds.count("SUMMARY") == 1
        assert 1 <= kinds.count("HEATMAP") <= 8
        assert {d["state"] for r in doc["results"] for d in r["deliveries"]} == {"SENT"}
        assert doc["latency_s"] > 0

        # In anatomical order, foot to head.
        held = {str(ds.SOPInstanceUID): ds for ds in map(dcmread, files)}
        z = [held[s["sop_instance_uid"]].ImagePositionPatient[2] for s in doc["slices"]]
        assert z == sorted(z)
        assert sum(s["attention"] for s in doc["slices"]) == pytest.approx(1, abs=1e-4)

        # Orthanc has one study, with our results beside the CT under the same patient.
        assert list(orthanc.studies()) == [study_uid]
        archived = orthanc.instances(study_uid)
        for result in doc["results"]:
            tags = archived[result["sop_instance_uid"]]
            assert tags["PatientID"] == PLANTED[1]
            assert tags["IssuerOfPatientID"] == "CLINIC A"
            assert tags["AccessionNumber"] == "ACC-1"
            assert tags["StudyID"] == "S-1"
            # What the archive holds is what we say we sent.
            ours, theirs = dcmread(result["path"]), dcmread(BytesIO(orthanc.file(tags["id"])))
            assert ours == theirs
        assert len(archived) == len(files) + len(doc["results"])

        # What was received is held byte for byte.
        stored = {
            str(ds.SOPInstanceUID): path
            for path in (data_dir / "spool" / "studies").rglob("*.dcm")
            if (ds := dcmread(path, stop_before_pixels=True))
        }
        assert stored.keys() == held.keys()
        for path in files:
            uid = str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)
            assert dcmread(path) == dcmread(stored[uid]), uid

        listed = pe_triage(
            "studies", "--json", "--data-dir", data_dir,
            *(() if database is None else ("--database", database)),
        )  # fmt: skip
        assert f'"{study_uid}"' in listed.stdout
        assert '"slices"' not in listed.stdout
        from_sr = pe_triage(
            "show", next(r["path"] for r in doc["results"] if r["kind"] == "SR"), "--json"
        )
        assert '"INDETERMINATE"' in from_sr.stdout
        assert node.stop() == 0

    for word in PLANTED:
        assert not [line for line in node.lines if word in line]
        assert not [p for p in data_dir.rglob("*") if word in p.name]
    complete = node.events("study.complete")
    assert [e["sign"] for e in complete] == ["released_and_contiguous"]
    assert complete[0]["study_uid"] == study_uid


def test_results_pass_the_validators(
    new_study: NewStudy, tiny_bundle: Path, tmp_path: Path
) -> None:
    dciodvfy = require_program("dciodvfy", "dicom3tools")
    dsrdump = require_program("dsrdump", "dcmtk")
    _, files = new_study()
    out = tmp_path / "out"
    done = pe_triage("analyze", files[0].parent, "--out", out, "--model", tiny_bundle, "--json")
    assert done.returncode == 0, done.stderr
    # Nothing but the document on stdout, and every file of it is there.
    doc = json.loads(done.stdout)
    assert doc["outcome"] == "INDETERMINATE"
    assert {Path(result["path"]) for result in doc["results"]} == set(out.glob("*.dcm"))
    written = sorted(out.glob("*.dcm"))
    assert len(written) >= 3
    for path in written:
        checked = subprocess.run([dciodvfy, str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in checked.stderr.splitlines() if line.startswith("Error")]
        assert not errors, (path.name, errors)
    dumped = subprocess.run(
        [dsrdump, str(out / "sr.dcm")], capture_output=True, text=True, check=False
    )
    assert dumped.returncode == 0, dumped.stderr
    assert "untrained" in dumped.stdout


@pytest.mark.parametrize(
    ("folder", "words"),
    [("chest_siemens_b40f", "8.0 mm"), ("chest_philips_b", "5.0 mm")],
)
def test_real_chests_without_contrast_are_not_evaluated(
    folder: str, words: str, real_ct: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    storescp = require_program("storescp", "dcmtk")
    files = sorted((real_ct / folder).glob("*.dcm"))
    from tests.support.postgres import free_port

    inbox, port = tmp_path / "inbox", free_port()
    inbox.mkdir()
    pacs = subprocess.Popen(
        [storescp, "-od", str(inbox), "-aet", "PACS", str(port)], env=dcmtk_environment()
    )
    try:
        flags = ("--model", tiny_bundle, "--quiet-s", 2, "--send-to", f"PACS@127.0.0.1:{port}")
        with RunningNode(tmp_path / "node", *flags) as node:
            sent = (
                send(storescu(), node, files, "-v", "-xi", environment=dcmtk_environment())
                if folder == "chest_philips_b"
                else send(storescu(), node, files, "-v", environment=dcmtk_environment())
            )
            assert sent.returncode == 0, sent.stderr
            assert (sent.stdout + sent.stderr).count("Received Store Response (Success)") == len(
                files
            )
            study_uid = str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
            doc = node.wait_ended(study_uid)
    finally:
        pacs.terminate()
        pacs.wait(20)
    assert (doc["state"], doc["outcome"]) == ("NOT_EVALUATED", "NOT_EVALUATED")
    assert words in doc["reason"]
    assert (doc["exam"], doc["priority"], doc["pe_probability"]) == (None, None, None)
    assert sorted(r["kind"] for r in doc["results"]) == ["SR", "SUMMARY"]
    # storescp names files after the modality and the SOP Instance UID.
    assert len(list(inbox.iterdir())) == 2
    stored = list((tmp_path / "node" / "spool" / "studies").rglob("*.dcm"))
    assert len(stored) == len(files)
    by_uid = {dcmread(p, stop_before_pixels=True).SOPInstanceUID: p for p in stored}
    for path in files:
        original = dcmread(path)
        held = dcmread(by_uid[original.SOPInstanceUID])
        assert original.file_meta.TransferSyntaxUID == held.file_meta.TransferSyntaxUID
        different = [
            keyword_for_tag(e.tag) for e in original if e.tag not in held or held[e.tag] != e
        ]
        # storescu drops group lengths, which are retired.
        assert not [name for name in different if name and not name.endswith("GroupLength")]


def test_both_kernels_of_one_study(real_ct: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    for folder in ("chest_siemens_b40f", "chest_siemens_b70f"):
        for path in (real_ct / folder).glob("*.dcm"):
            (both / f"{folder}-{path.name}").symlink_to(path)
    done = pe_triage("analyze", both, "--explain")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 2
    assert "8.0 mm > 3.0 mm" in done.stdout


def test_echo_says_what_is_wrong(new_study: NewStudy, tmp_path: Path) -> None:
    refused = pe_triage("echo", "PACS@127.0.0.1:1")
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert wait_for(lambda: True)
