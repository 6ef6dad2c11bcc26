"""DCMTK's own archives as destinations: storescp keeps files, dcmqrscp has an index."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pydicom import dcmread

from tests.support.node import wait_for
from tests.support.peers import dcmtk_environment, require_program
from tests.support.postgres import free_port


class _Peer:
    """A DCMTK server on loopback; may be stopped and started again on the same port."""

    aet = "PEER"

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        home.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        return f"{self.aet}@127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), env=dcmtk_environment(), stdout=log, stderr=log, cwd=self.home
            )
        wait_for(self._listens, 20, f"{self.aet} listens")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.home / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def __enter__(self) -> _Peer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class StoreScp(_Peer):
    """``storescp``: every object that it takes becomes a file of its own, repetitions included."""

    aet = "STORESCP"

    def __enter__(self) -> StoreScp:
        self.start()
        return self

    def _command(self) -> list[str]:
        self.inbox.mkdir(exist_ok=True)
        program = require_program("storescp", "dcmtk")
        return [
            *(program, "--unique-filenames", "-od", str(self.inbox)),
            *("-aet", self.aet, str(self.port)),
        ]

    @property
    def inbox(self) -> Path:
        return self.home / "inbox"

    def stored(self, study_uid: str) -> Counter[str]:
        """SOP Instance UID to how often it came, for one study."""
        found: Counter[str] = Counter()
        for path in self.inbox.iterdir():
            ds = dcmread(path, specific_tags=["StudyInstanceUID", "SOPInstanceUID"])
            if ds.get("StudyInstanceUID") == study_uid:
                found[str(ds.SOPInstanceUID)] += 1
        return found


class QrScp(_Peer):
    """``dcmqrscp``: an archive that answers C-FIND, C-GET, and C-MOVE to whom it knows.

    `destinations` are AE titles to ports on this machine.
    """

    aet = "QRSCP"

    def __init__(self, home: Path, destinations: Mapping[str, int] | None = None) -> None:
        super().__init__(home)
        self._destinations = dict(destinations or {})

    def __enter__(self) -> QrScp:
        self.start()
        return self

    def _command(self) -> list[str]:
        storage = self.home / "storage"
        storage.mkdir(exist_ok=True)
        hosts = "".join(
            f"{aet.lower()} = ({aet}, localhost, {port})\n"
            for aet, port in self._destinations.items()
        )
        (self.home / "dcmqrscp.cfg").write_text(
            f"NetworkTCPPort = {self.port}\n"
            "MaxPDUSize = 16384\n"
            "MaxAssociations = 16\n"
            f"HostTable BEGIN\n{hosts}HostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            "AETable BEGIN\n"
            f"{self.aet} {storage} RW (200, 1024mb) ANY\n"
            "AETable END\n"
        )
        program = require_program("dcmqrscp", "dcmtk")
        return [program, "-c", str(self.home / "dcmqrscp.cfg")]

    def found(self, study_uid: str) -> set[str]:
        """SOP Instance UIDs that it returns to a C-FIND for one study."""
        uids: set[str] = set()
        for series_uid in self._find(study_uid, "SERIES", "SeriesInstanceUID"):
            uids |= self._find(
                study_uid, "IMAGE", "SOPInstanceUID", f"SeriesInstanceUID={series_uid}"
            )
        return uids

    def _find(self, study_uid: str, level: str, wanted: str, *keys: str) -> set[str]:
        program = require_program("findscu", "dcmtk")
        # findscu overwrites nothing: a folder of its own for each question.
        folder = Path(tempfile.mkdtemp(dir=self.home))
        query = [f"QueryRetrieveLevel={level}", f"StudyInstanceUID={study_uid}", *keys, wanted]
        done = subprocess.run(
            [
                *(program, "-S", "-X", "-od", str(folder), "-aec", self.aet, "127.0.0.1"),
                *(str(self.port), *(word for key in query for word in ("-k", key))),
            ],
            env=dcmtk_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return {str(dcmread(path, force=True)[wanted].value) for path in folder.iterdir()}
