"""``pe-triage demo``: the whole walk on one machine, for someone who has just installed it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pe_triage.domain import TERMINAL_STATES
from pe_triage.errors import InputError, PeTriageError
from pe_triage.resources import resource_dir

if TYPE_CHECKING:
    from pe_triage.cli.standin import StandInPacs

AET = "PETRIAGE"
READY_TIMEOUT_S = 180.0
STUDY_TIMEOUT_S = 600.0


@click.command()
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Make DIR the data directory and keep it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print only a JSON document on stdout.")
def demo(keep: Path | None, as_json: bool) -> None:
    """Start a node and a stand-in PACS on loopback, send the sample studies, show the worklist.

    Needs no configuration, no database server and no network beyond loopback. The bundled
    network's answers have no clinical meaning; each result says what its weights are for.
    """
    studies = sample_studies()
    directory = _directory(keep)
    from pe_triage.cli.standin import StandInPacs

    say = _Say(quiet=as_json and not sys.stderr.isatty())
    pacs = StandInPacs(directory / "pacs")
    try:
        with _node(directory, pacs.address) as (host, port):
            say(f"node {AET} on {host}:{port}, stand-in PACS on {pacs.address}")
            uids = [_send(name, files, host, port, say) for name, files in studies.items()]
            documents = _wait(directory, uids, say)
    finally:
        pacs.close()
    missing = _missing(documents, pacs)
    if keep is None:
        # The images and the database were only a means; the results stay for looking at.
        shutil.rmtree(directory / "spool", ignore_errors=True)
    if as_json:
        click.echo(
            json.dumps(
                {"studies": documents, "pacs_dir": str(pacs.directory)},
                indent=2,
                ensure_ascii=False,
            )
        )
    else:
        _print(documents, pacs)
    bad = [d["study_uid"] for d in documents if d["state"] in ("FAILED", "QUARANTINED")]
    if bad:
        raise PeTriageError(f"{len(bad)} studies did not end well; the log is {directory}/node.log")
    if missing:
        raise PeTriageError(f"{len(missing)} results did not arrive at the stand-in PACS")


def sample_studies() -> dict[str, list[Path]]:
    """Name to files of the studies that travel with the program."""
    root = resource_dir("sample_dicom")
    found = {
        folder.name: sorted(folder.glob("*.dcm"))
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise InputError("this installation of pe-triage lacks its sample studies; reinstall it")
    return found


class _Say:
    """Progress lines on stderr; stdout is for the answer."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        if not self._quiet:
            click.echo(f"[{time.monotonic() - self._started:6.1f} s] {text}", err=True)


def _directory(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="pe-triage-demo-"))
    directory = keep.expanduser().resolve()
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"--keep {keep}: the directory is not empty")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--keep {keep}: cannot be made: {error.strerror}") from None
    return directory


@contextmanager
def _node(directory: Path, send_to: str) -> Iterator[tuple[str, int]]:
    """Run ``pe-triage serve`` on a free port in `directory`; its log goes to node.log."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PE_TRIAGE_")}
    command = [
        *(sys.executable, "-m", "pe_triage", "serve", "--aet", AET, "--port", "0"),
        *("--data-dir", str(directory), "--send-to", send_to, "--quiet-s", "15"),
    ]
    with (directory / "node.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=log, text=True
        )
        ready: dict[str, Any] = {}
        arrived = threading.Event()

        def copy() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                log.write(line)
                log.flush()
                if not arrived.is_set() and '"node.ready"' in line:
                    ready.update(json.loads(line))
                    arrived.set()
            arrived.set()

        copier = threading.Thread(target=copy, daemon=True)
        copier.start()
        try:
            if not arrived.wait(READY_TIMEOUT_S) or not ready:
                raise PeTriageError(f"the node did not start; its log is {directory}/node.log")
            yield str(ready["host"]), int(ready["port"])
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            copier.join(10)
            if process.stderr is not None:
                process.stderr.close()


def _send(name: str, files: list[Path], host: str, port: int, say: _Say) -> str:
    from pydicom import dcmread

    from pe_triage.cli.standin import send_files

    count = 0

    def sent() -> None:
        nonlocal count
        count += 1

    started = time.monotonic()
    send_files(files, host=host, port=port, aet=AET, on_sent=sent)
    say(f"sent {name}: {count} images in {time.monotonic() - started:.1f} s")
    return str(dcmread(files[0], specific_tags=["StudyInstanceUID"]).StudyInstanceUID)


def _wait(directory: Path, uids: list[str], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Follow the studies until every result was delivered; documents in worklist order."""
    from pe_triage.errors import StudyNotFoundError
    from pe_triage.store.documents import show, worklist
    from pe_triage.store.engine import open_engine

    engine = open_engine(f"sqlite:///{directory / 'pe-triage.sqlite3'}")
    deadline = time.monotonic() + STUDY_TIMEOUT_S
    said: dict[str, str] = {}
    try:
        while True:
            documents = {}
            for uid in uids:
                try:
                    documents[uid] = show(engine, uid, directory)
                except StudyNotFoundError:
                    # Acknowledged a moment ago, not yet indexed.
                    continue
                state = _state(documents[uid])
                if said.get(uid) != state:
                    said[uid] = state
                    say(f"study …{uid[-12:]} {state}")
            if len(documents) == len(uids) and all(_ended(d) for d in documents.values()):
                break
            if time.monotonic() > deadline:
                raise PeTriageError(
                    f"not every study ended in {STUDY_TIMEOUT_S:g} s; "
                    f"the log is {directory}/node.log"
                )
            time.sleep(0.2)
        order = [d["study_uid"] for d in worklist(engine, directory)]
        return sorted(documents.values(), key=lambda d: order.index(d["study_uid"]))
    finally:
        engine.dispose()


def _state(doc: dict[str, Any]) -> str:
    if doc["state"] not in TERMINAL_STATES:
        return str(doc["state"]).lower()
    deliveries = [d for r in doc["results"] for d in r["deliveries"]]
    done = sum(d["state"] != "PENDING" for d in deliveries)
    return f"{doc['state'].lower()}, {done} of {len(deliveries)} results delivered"


def _ended(doc: dict[str, Any]) -> bool:
    if doc["state"] in ("FAILED", "QUARANTINED"):
        return True
    deliveries = [d for r in doc["results"] for d in r["deliveries"]]
    return (
        doc["state"] in TERMINAL_STATES
        and bool(deliveries)
        and all(d["state"] != "PENDING" for d in deliveries)
    )


def _missing(documents: list[dict[str, Any]], pacs: StandInPacs) -> list[str]:
    wanted = [r["sop_instance_uid"] for d in documents for r in d["results"]]
    return [uid for uid in wanted if uid not in pacs.received]


def _print(documents: list[dict[str, Any]], pacs: StandInPacs) -> None:
    from pe_triage.cli.tables import wide_console, worklist_table

    console = wide_console()
    console.print(worklist_table(documents))
    console.print("Seconds: from the last image received to the last result delivered.")
    for doc in documents:
        console.print(f"\nstudy {doc['study_uid']}", highlight=False)
        for result in doc["results"]:
            path = pacs.received.get(result["sop_instance_uid"])
            click.echo(f"  {result['kind']:<8} {path or 'not delivered'}")
    click.echo(f"\nResults at the stand-in PACS: {pacs.directory}")
