"""A throw-away Orthanc: a real PACS with a REST interface."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.peers import dcmtk_environment, missing, require_program
from tests.support.postgres import free_port

PLUGIN_PACKAGES = {"OrthancDicomWeb": "orthanc-dicomweb", "OrthancWebViewer": "orthanc-webviewer"}


def require_plugin(name: str) -> str:
    """Absolute path of a plugin's library, or `missing`."""
    path = Path("/usr/share/orthanc/plugins") / f"lib{name}.so"
    if not path.exists():
        missing(f"Orthanc's plugin {name}", PLUGIN_PACKAGES[name])
    return str(path)


class Orthanc:
    """Debian's Orthanc on loopback, its storage in `home`; may be stopped and started again.

    `plugins` are base names of Debian's plugin libraries, such as ``OrthancDicomWeb``.
    """

    def __init__(
        self,
        home: Path,
        plugins: Sequence[str] = (),
        *,
        may_ask: bool = True,
        may_retrieve: bool = False,
    ) -> None:
        self._program = require_program("Orthanc", "orthanc")
        self.home = home
        self.dicom_port = free_port()
        self.http_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        home.mkdir(parents=True, exist_ok=True)
        (home / "orthanc.json").write_text(
            json.dumps(
                {
                    "Name": "pe-triage-test",
                    "StorageDirectory": str(home / "storage"),
                    "IndexDirectory": str(home / "storage"),
                    "DicomAet": "ORTHANC",
                    "DicomPort": self.dicom_port,
                    "HttpPort": self.http_port,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomCheckCalledAet": True,
                    "DicomAlwaysAllowStore": True,
                    "DicomAlwaysAllowFind": may_ask,
                    "DicomAlwaysAllowGet": may_retrieve,
                    "DicomAlwaysAllowMove": may_retrieve,
                    "OverwriteInstances": False,
                    # It only has to survive the test's own stop and start.
                    "SyncStorageArea": False,
                    "Plugins": [require_plugin(name) for name in plugins],
                }
            )
        )

    @property
    def address(self) -> str:
        return f"ORTHANC@127.0.0.1:{self.dicom_port}"

    def start(self) -> None:
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self.home / "orthanc.json")],
                stdout=log,
                stderr=log,
                env=dcmtk_environment(),
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.get("/system")
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.home / "log").read_text()[-3000:]) from None
                time.sleep(0.1)
            else:
                return

    def stop(self, *, kill: bool = False) -> None:
        """Stop; its orderly end takes seconds that a test's own end need not wait for."""
        if self._process is not None:
            if kill:
                self._process.kill()
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> Orthanc:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop(kill=True)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=20) as got:
            body = got.read()
        return json.loads(body) if "json" in got.headers.get("Content-Type", "") else body

    def send_json(self, method: str, path: str, document: Any) -> Any:
        """PUT or POST a JSON document; the answer, decoded where it is JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}{path}",
            data=json.dumps(document).encode(),
            method=method,
        )
        with urllib.request.urlopen(request, timeout=20) as got:
            body = got.read()
        return json.loads(body) if body and "json" in got.headers.get("Content-Type", "") else body

    def know(self, aet: str, port: int) -> None:
        """Enter an AE of this machine among the modalities, under its own title."""
        self.send_json("PUT", f"/modalities/{aet}", {"AET": aet, "Host": "127.0.0.1", "Port": port})

    def studies(self) -> dict[str, str]:
        """Study Instance UID to Orthanc's identifier."""
        found = self.get("/studies?expand")
        return {study["MainDicomTags"]["StudyInstanceUID"]: study["ID"] for study in found}

    def instances(self, study_uid: str) -> dict[str, dict[str, Any]]:
        """SOP Instance UID to simplified tags, of all that is held under a study."""
        identifier = self.studies().get(study_uid)
        if identifier is None:
            return {}
        found = self.get(f"/studies/{identifier}/instances?expand")
        return {
            item["MainDicomTags"]["SOPInstanceUID"]: {
                "id": item["ID"],
                **self.get(f"/instances/{item['ID']}/simplified-tags"),
            }
            for item in found
        }

    def file(self, instance_id: str) -> bytes:
        return bytes(self.get(f"/instances/{instance_id}/file"))
