"""Where things lie in the data directory, and the durable writing of result files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pe_triage.domain import (
    Job,
    ReceivedInstance,
    ResultKind,
    ResultMessage,
    ResultObject,
    ResultSet,
)
from pe_triage.errors import RetryableError
from pe_triage.imaging.facts import facts_from_json
from pe_triage.store.studies import StoredInstance


def result_dir(data_dir: Path, job: Job) -> Path:
    """Directory of one claim's result files; named by hash, since a UID comes from outside.

    Each claim of a run has a directory of its own: a worker that lost its lease and does not know
    it yet cannot write over the files that its successor's database rows stand for.
    """
    name = hashlib.sha256(job.study_uid.encode()).hexdigest()[:32]
    return data_dir / "results" / name[:2] / name / f"run-{job.run:03d}-{job.fencing_token}"


def write_results(directory: Path, objects: ResultSet) -> Sequence[tuple[ResultObject, Path, str]]:
    """Write each object durably under its label, replacing what an earlier attempt left.

    Returns
    -------
    list of (object, path, SHA-256 of the file)

    Raises
    ------
    RetryableError
        The file system refused.
    """
    try:
        above = _make_directories(directory)
        written = []
        for item in objects.objects:
            path = directory / f"{item.label}.dcm"
            _write_durably(path, item.encoded)
            written.append((item, path, hashlib.sha256(item.encoded).hexdigest()))
        for parent in {directory, directory.parent, directory.parent.parent, *above}:
            _sync_directory(parent)
    except OSError as error:
        raise RetryableError(f"cannot write results: {error.strerror or error}") from None
    return written


MESSAGE_SUFFIX = {
    ResultKind.HL7: ".hl7",
    ResultKind.FHIR: ".json",
    ResultKind.WEBHOOK: ".json",
    ResultKind.UPS: ".json",
}


def write_messages(
    directory: Path, messages: Sequence[ResultMessage]
) -> Sequence[tuple[ResultMessage, Path | None, str | None]]:
    """Write each message's body durably into an existing `directory`.

    Returns
    -------
    list of (message, path, SHA-256 of the file), both None where there is no body

    Raises
    ------
    RetryableError
        The file system refused.
    """
    try:
        written: list[tuple[ResultMessage, Path | None, str | None]] = []
        for message in messages:
            if message.body is None:
                written.append((message, None, None))
                continue
            # A destination's name holds nothing that a file name may not (`destinations`).
            stem = f"message-{message.kind.value.lower()}-{message.destination}"
            path = directory / f"{stem}{MESSAGE_SUFFIX[message.kind]}"
            _write_durably(path, message.body)
            written.append((message, path, hashlib.sha256(message.body).hexdigest()))
        if messages:
            _sync_directory(directory)
    except OSError as error:
        raise RetryableError(f"cannot write messages: {error.strerror or error}") from None
    return written


def _make_directories(directory: Path) -> list[Path]:
    """Make `directory`; return the directories that have got a new entry by it."""
    above = []
    missing = directory
    while not missing.is_dir():
        missing = missing.parent
        above.append(missing)
    directory.mkdir(parents=True, exist_ok=True)
    return above


def _write_durably(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_received(stored: StoredInstance, data_dir: Path) -> ReceivedInstance:
    """Turn a database row into the domain's value."""
    return ReceivedInstance(
        study_uid=stored.study_uid,
        series_uid=stored.series_uid,
        sop_instance_uid=stored.sop_instance_uid,
        sop_class_uid=stored.sop_class_uid,
        transfer_syntax_uid=stored.transfer_syntax_uid,
        identity=stored.identity,
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        path=data_dir / stored.path,
        received_at=stored.received_at,
        calling_aet=stored.calling_aet,
        facts=facts_from_json(stored.facts),
    )
