"""A whole node that watches: a PACS is asked, a day is compared, alarms are sent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydicom import dcmread
from standardwebhooks import Webhook

from pe_triage.cli import main
from tests.node.conftest import QUICK, storescu
from tests.support.dcmtk import StoreScp
from tests.support.finding import Archive, finding_scp, tiny_ct
from tests.support.node import RunningNode, wait_for
from tests.support.orthanc import Orthanc
from tests.support.peers import dcmtk_environment, require_program
from tests.support.roads import HttpPeer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PERSON = {"PatientID": "PID-WATCH", "PatientName": "PLANTED^WATCH", "PatientBirthDate": "19500102"}


def config(folder: Path, text: str) -> Path:
    path = folder / "watch.toml"
    head = "".join(f"{key} = {json.dumps(value)}\n" for key, value in QUICK.items())
    path.write_text(head + text)
    return path


def states(document: dict[str, Any]) -> set[str]:
    return {d["state"] for r in document["results"] for d in r["deliveries"]}


def test_a_real_pacs_says_when_a_study_is_whole(tmp_path: Path, orthanc: Orthanc) -> None:
    """Nothing but the count can close these early: no series is eligible, quiet time is 60 s."""
    whole, short = "2.25.8101", "2.25.8102"
    files = {uid: tiny_ct(tmp_path / uid, uid, 6, **PERSON) for uid in (whole, short)}
    subprocess.run(
        [
            *(require_program("storescu", "dcmtk"), "-aec", "ORTHANC", "127.0.0.1"),
            *(str(orthanc.dicom_port), *map(str, files[whole] + files[short])),
        ],
        env=dcmtk_environment(),
        check=True,
        capture_output=True,
    )
    settings = config(
        tmp_path,
        # What closes a study needs no worker, and its start is most of the time.
        f'workers = 0\nquiet_s = 60.0\n[query]\npacs = "{orthanc.address}"\n'
        '[[senders]]\naet = "HASTY"\nquiet_s = 2.0\nexpected_wait_s = 5.0\n',
    )

    def closed(uid: str, instances: int) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            document = node.show(uid)
            if document is None or document["instances"] < instances:
                return None
            return document["completeness"] if document["state"] == "QUEUED" else None

        return wait_for(there, 40, f"{uid} is closed: {node.show(uid)}")

    with RunningNode(tmp_path / "data", "--config", settings) as node:
        storescu(node, files[whole])
        assert closed(whole, 6)["sign"] == "expected_count"
        assert closed(whole, 6)["expected_images"] == 6

        storescu(node, files[short][:4], "-aet", "HASTY")
        found = closed(short, 4)
        assert (found["sign"], found["expected_images"]) == ("quiet", 6)
        assert "4 of 6" in found["reason"]
        events = [e for e in node.events("study.complete") if e["study_uid"] == short]
        assert events[0]["missing"] == 2

        storescu(node, files[short][4:], "-aet", "HASTY")
        assert closed(short, 6)["sign"] == "expected_count"

        orthanc.stop(kill=True)
        alone = "2.25.8103"
        storescu(node, tiny_ct(tmp_path / alone, alone, 3, **PERSON), "-aet", "HASTY")
        assert closed(alone, 3)["sign"] == "quiet", "a dead PACS blocks nothing"
        assert node.events("query.failed")


def test_identity_reconciliation_and_alarms(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: object) -> tuple[int, str, str]:
        """Run the command line here: a process of its own would cost seconds each time."""
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    archive = Archive()
    (tmp_path / "secret").write_text(SECRET)
    metrics = tmp_path / "pe_triage.prom"
    reading = StoreScp(tmp_path / "reading")
    same, merged, gone, named = "2.25.8201", "2.25.8202", "2.25.8203", "2.25.8204"
    day = {"StudyDate": "20260301", "StudyTime": "080000", "ModalitiesInStudy": "CT"}
    for uid in (same, merged, gone, named):
        archive.add(uid, **PERSON, **day, series={f"{uid}.1": ("CT", 3)})
    with finding_scp(archive) as pacs, HttpPeer() as pager:
        settings = config(
            tmp_path,
            f'[query]\npacs = "{pacs}"\nidentity_fresh_s = 0.1\n'
            f'[watch]\nevery_s = 1.0\nmetrics_file = "{metrics}"\n'
            '[[destinations]]\nname = "pager"\ntype = "webhook"\nalarms = "only"\n'
            f'url = "{pager.url}"\nsecret_file = "{tmp_path / "secret"}"\n',
        )
        data = tmp_path / "data"
        flags = ("--model", tiny_bundle, "--config", settings, "--send-to", reading.address)
        with RunningNode(data, *flags) as node:
            # Both wait for a destination that is away; meanwhile a patient is corrected.
            for uid in (same, merged, named):
                storescu(node, tiny_ct(tmp_path / uid, uid, 3, **PERSON))
                node.wait_ended(uid, delivered=False)
            # Of one the PACS cannot list the images; of the other it has each.
            archive.studies[merged]["PatientID"] = "PID-OTHER"
            archive.hold([*(tmp_path / named).iterdir()])
            archive.studies[named] |= {"PatientID": "PID-OTHER", "PatientName": "CORRECTED^WATCH"}
            with reading:
                document = node.wait_ended(same, timeout_s=60)
                assert states(document) == {"SENT"}
                document = node.wait_ended(merged, timeout_s=60)
                assert states(document) == {"PARKED"}
                why = {d["last_error"] for r in document["results"] for d in r["deliveries"]}
                assert len(why) == 1
                words = why.pop()
                assert "Patient ID (0010,0020) differs" in words
                assert "3 of 3 images held here are not at the PACS" in words
                assert not reading.stored(merged)

                def followed() -> bool:
                    document = node.show(named) or {}
                    return document.get("run") == 2 and states(document) == {"SENT"}

                wait_for(followed, 60, "the study is answered anew under the patient it has now")
                stored = [dcmread(path) for path in reading.inbox.rglob("*") if path.is_file()]
                of_named = [ds for ds in stored if ds.StudyInstanceUID == named]
                assert of_named
                assert {(ds.PatientID, str(ds.PatientName)) for ds in of_named} == {
                    ("PID-OTHER", "CORRECTED^WATCH")
                }, "nothing has left under the patient as before"
                assert node.events("study.patient_corrected")

                def told() -> dict[str, Any]:
                    return {r.json["data"]["alarm"]: r for r in pager.requests}

                request = wait_for(lambda: told().get("watch.parked"), 30, "the pager is told")
                assert Webhook(SECRET).verify(request.body, request.headers)
                assert request.json["type"] == "pe_triage.alarm.raised"
                assert node.events("watch.parked")

                code, out, err = command(
                    *("reconcile", "--data-dir", data, "--config", settings),
                    *("--date", "2026-03-01", "--json"),
                )
                assert code == 1, err
                report = json.loads(out)
                assert {s["study_uid"]: s["verdict"] for s in report["studies"]} == {
                    gone: "NEVER_CAME",
                    merged: "NOT_DELIVERED",
                    same: "ANSWERED",
                    named: "ANSWERED",
                }
                wait_for(lambda: metrics.exists(), 10, "metrics are written")
                families = {f.name: f for f in text_string_to_metric_families(metrics.read_text())}
                alarms = {s.labels["alarm"] for s in families["pe_triage_alarm"].samples}
                assert alarms == {"watch.parked"}
                assert metrics.stat().st_mode & 0o777 == 0o644

                # A person looks: without proof nothing is changed, with it the study goes over.
                correct = ("correct", merged, "--data-dir", data, "--config", settings)
                code, _, err = command(*correct)
                assert code == 1
                assert "not provably the same study" in err
                archive.hold([*(tmp_path / merged).iterdir()])
                code, out, err = command(*correct)
                assert code == 0, err
                assert "PID-" not in out + err
                assert "made again as run 2" in out
                wait_for(
                    lambda: (
                        (node.show(merged) or {}).get("run") == 2
                        and states(node.show(merged) or {}) == {"SENT"}
                    ),
                    60,
                    "sent at last",
                )
                wait_for(lambda: node.events("watch.cleared"), 15, "the alarm is over")
            code, out, _ = command("watch", "--data-dir", data, "--config", settings, "--json")
            assert code == 0, out
            assert json.loads(out)["alarms"] == []
            lines = "\n".join(node.lines)
        planted = ("PID-WATCH", "PLANTED", "PID-OTHER", "CORRECTED^")
        assert not any(word in lines for word in planted)
    code, _, err = command("reconcile", "--data-dir", data, "--config", settings)
    assert code == 1
    assert "connection refused" in err
    code, _, err = command("reconcile", "--data-dir", data)
    assert code == 2
    assert "query.pacs" in err
