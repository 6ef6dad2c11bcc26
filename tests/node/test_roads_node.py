"""A whole node with every road: different destinations, different sets, no identity in its log."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from pydicom.uid import SecondaryCaptureImageStorage
from pynetdicom import AE, evt
from standardwebhooks import Webhook

from tests.node.conftest import QUICK, NewStudy, storescu
from tests.support.dcmtk import StoreScp
from tests.support.node import RunningNode
from tests.support.roads import HttpPeer, MllpListener, UpsServer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TOKEN = "Bearer token-of-the-hospital"
PLANTED = ("PLANTED^ROADS", "PID-ROADS-77", "ACC-ROADS")


PICTURES = ("SUMMARY", "HEATMAP")


@contextmanager
def captures_only() -> Iterator[tuple[str, list[str]]]:
    """A storage SCP that knows Secondary Capture and nothing else: its address, and what it got."""
    taken: list[str] = []

    def store(event: Any) -> int:
        taken.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    ae = AE(ae_title="PICKY")
    ae.add_supported_context(SecondaryCaptureImageStorage)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield f"PICKY@127.0.0.1:{server.socket.getsockname()[1]}", taken
    finally:
        server.shutdown()


def toml(name: str, **values: str) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in values.items())
    return f'[[destinations]]\nname = "{name}"\n{lines}'


def quoted(text: object) -> str:
    return json.dumps(str(text))


def test_every_destination_gets_its_own_set(
    tmp_path: Path, tiny_bundle: Path, new_study: NewStudy, store_scp: StoreScp
) -> None:
    ups = UpsServer()
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "token").write_text(TOKEN)
    study_uid, files = new_study(
        slices=50,
        PatientName=PLANTED[0],
        PatientID=PLANTED[1],
        AccessionNumber=PLANTED[2],
    )
    with (
        StoreScp(tmp_path / "reading") as reading,
        captures_only() as (picky, taken),
        MllpListener() as ris,
        HttpPeer(lambda _r: (200, {}, PLANTED[0].encode())) as ehr,
        HttpPeer() as pager,
        HttpPeer(ups) as worklist,
    ):
        config = tmp_path / "site.toml"
        config.write_text(
            "".join(f"{key} = {value}\n" for key, value in QUICK.items())
            + toml(
                "reading",
                type='"dicom"',
                address=quoted(reading.address),
                kinds='["SUMMARY"]',
            )
            + toml("picky", type='"dicom"', address=quoted(picky))
            + toml("ris", type='"hl7"', address=quoted(f"127.0.0.1:{ris.port}"))
            + toml(
                "ehr",
                type='"fhir"',
                url=quoted(f"{ehr.url}/fhir"),
                authorization_file=quoted(tmp_path / "token"),
            )
            + toml(
                "pager",
                type='"webhook"',
                url=quoted(pager.url),
                secret_file=quoted(tmp_path / "secret"),
            )
            + toml(
                "nobody",
                type='"webhook"',
                url='"http://127.0.0.1:9"',
                secret_env='"HOOK"',
                outcomes='["POSITIVE"]',
            )
            + toml("ups", type='"ups"', url=quoted(worklist.url), workitem='"analysis"')
        )
        os.environ["HOOK"] = SECRET
        try:
            with RunningNode(
                tmp_path / "data",
                *("--config", config, "--model", tiny_bundle, "--quiet-s", 3),
                *("--send-to", store_scp.address, "--log-level", "DEBUG"),
            ) as node:
                storescu(node, files)
                document = node.wait_ended(study_uid)
                assert node.stop() == 0
                log = "\n".join(node.lines)
        finally:
            del os.environ["HOOK"]
        got = {
            destination: [
                result["kind"]
                for result in document["results"]
                for sent in result["deliveries"]
                if sent["destination"] == destination
            ]
            for destination in (store_scp.address, "reading", "ris", "ehr", "pager", "ups")
        }
        dicom = [r["kind"] for r in document["results"] if r["sop_instance_uid"]]
        assert got[store_scp.address] == dicom
        assert (got["reading"], got["ris"], got["ehr"]) == (["SUMMARY"], ["HL7"], ["FHIR"])
        assert (got["pager"], got["ups"]) == (["WEBHOOK"], ["UPS"])
        refused = [
            (result["kind"], sent["destination"], sent["state"])
            for result in document["results"]
            for sent in result["deliveries"]
            if sent["state"] != "SENT"
        ]
        assert refused == [("SR", "picky", "PARKED")]
        (words,) = (
            sent["last_error"]
            for result in document["results"]
            for sent in result["deliveries"]
            if sent["state"] == "PARKED"
        )
        assert "does not accept Comprehensive 3D SR Storage from us" in words
        assert sorted(taken) == sorted(
            r["sop_instance_uid"] for r in document["results"] if r["kind"] in PICTURES
        )

        # What each of them has is what `show` says, and what was persisted.
        summary = next(r for r in document["results"] if r["kind"] == "SUMMARY")
        assert dict(reading.stored(study_uid)) == {summary["sop_instance_uid"]: 1}
        by_kind = {r["kind"]: Path(r["path"]) for r in document["results"]}
        (message,) = ris.messages
        assert ris.received[0] == by_kind["HL7"].read_bytes()
        assert message["PID.F3.R1.C1"] == PLANTED[1]
        assert message["OBR.F18"] == PLANTED[2]
        (bundle,) = ehr.requests
        assert bundle.path == "/fhir"
        assert bundle.headers["authorization"] == TOKEN
        Bundle.model_validate_json(bundle.body)
        assert PLANTED[1] in bundle.body.decode()
        (event,) = pager.requests
        Webhook(SECRET).verify(event.body, event.headers)
        assert event.json["data"]["outcome"] == document["outcome"] == "INDETERMINATE"
        assert event.json["data"]["study_uid"] == study_uid
        for word in (*PLANTED, "PLANTED", "ROADS"):
            assert word not in event.body.decode()
        (workitem,) = ups.workitems.values()
        assert workitem["00741000"]["Value"] == ["COMPLETED"]

        for word in (*PLANTED, "PLANTED", SECRET, SECRET[6:], TOKEN, TOKEN[7:]):
            assert word not in log
        assert '"kind": "HL7"' in log


@pytest.mark.parametrize("missing", ["secret_file", "secret_env"])
def test_a_missing_secret_stops_the_start_in_one_line(missing: str, tmp_path: Path) -> None:
    from tests.support.node import pe_triage

    config = tmp_path / "site.toml"
    config.write_text(
        toml("pager", type='"webhook"', url='"http://127.0.0.1:9"', **{missing: '"/no/such"'})
    )
    done = pe_triage("serve", "--config", config, "--data-dir", tmp_path / "data", "--port", 0)
    assert done.returncode == 2
    assert f"destination 'pager': {missing}" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
