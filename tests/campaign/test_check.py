"""One small trial of the campaign, and the check itself: it must notice what it is there for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from pe_triage.answering import analysis_options
from pe_triage.config import load_settings
from pe_triage.domain import DeliveryState
from pe_triage.node.indexer import Indexer
from pe_triage.node.worker import Worker, WorkerOptions
from pe_triage.receive.part10 import FileMetaTemplate, dataset_offset
from pe_triage.receive.spool import Spool
from pe_triage.report import results
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue
from pe_triage.store.migrate import upgrade
from pe_triage.store.outbox import Outbox
from pe_triage.store.quarantine import Quarantine
from pe_triage.store.studies import StudyStore
from tests.campaign.check import Held, Seen, answers, database_problem, held_in, violations
from tests.campaign.journal import Journal, summary
from tests.campaign.pacs import arrival_of
from tests.campaign.standin import StandIn
from tests.campaign.studies import SLICES, TRANSFER_SYNTAX, make_study, write_config

PACS = "PACS@127.0.0.1:104"


class Quiet:
    """In the place of the assembler: the trial says itself when a study is complete."""

    def calling_aet(self, _association_id: str) -> str:
        return "SCANNER"

    def note_drained(self, _at_s: float) -> None:
        pass


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Two studies through the node's own parts in one process; a worker died with one of them."""
    data_dir = tmp_path_factory.mktemp("campaign")
    url = f"sqlite:///{data_dir / 'pe-triage.sqlite3'}"
    upgrade(url)
    engine = open_engine(url)
    spool, studies = Spool(data_dir / "spool"), StudyStore(engine, data_dir)
    queue, outbox = JobQueue(engine), Outbox(engine, data_dir)
    sent = {study.study_uid: study for study in (make_study(1), make_study(2))}
    meta = FileMetaTemplate(transfer_syntax_uid=TRANSFER_SYNTAX, calling_aet="SCANNER")
    for number, study in enumerate(sent.values(), 1):
        for sequence, image in enumerate(study.images):
            header = meta.header(
                sop_class_uid=image.sop_class_uid, sop_instance_uid=image.sop_instance_uid
            )
            spool.store([header, image.encoded], association=number, sequence=sequence)
    quiet: Any = Quiet()
    indexer = Indexer(
        spool=spool,
        studies=studies,
        quarantine=Quarantine(engine),
        assembler=quiet,
        data_dir=data_dir,
    )
    assert indexer.step() == 2 * SLICES
    for uid in sent:
        queue.enqueue(uid, studies.manifest(uid).digest)
    # The first claim dies with its worker; the second finds the job given back.
    assert queue.claim("node/worker-1/1/", 30.0) is not None
    assert queue.release_owner("node/worker-1/1/") == 1
    finished = [analysed(queue, studies, data_dir) for _ in sent]
    arrivals = []
    for item in outbox.due(PACS, 99):
        arrivals.append(arrival_of(item.path.read_bytes()[dataset_offset(item.path) :]))
        outbox.mark(item.delivery_id, DeliveryState.SENT)
    yield Seen(
        sent=sent,
        acked=[i.sop_instance_uid for study in sent.values() for i in study.images],
        held=held_in(engine, data_dir),
        data_dir=data_dir,
        arrivals=arrivals,
        finished=finished,
    )
    engine.dispose()


def analysed(queue: JobQueue, studies: StudyStore, data_dir: Path) -> tuple[str, int]:
    """Let a worker do the next job; its study and run."""
    # An earlier test's level would hide the event, also from loggers that were made under it.
    structlog.reset_defaults()
    config = write_config(data_dir / "node.toml", [PACS])
    settings = load_settings({"data_dir": data_dir}, config_file=config, environ={})
    stand_in: Any = StandIn(0.0)
    worker = Worker(
        queue=queue,
        studies=studies,
        predictor=stand_in,
        analysis=analysis_options(settings),
        options=WorkerOptions(
            owner="node/worker-1/2/", data_dir=data_dir, routes=settings.routes, lease_s=30.0
        ),
        clock=lambda: datetime.now().astimezone(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "build_captures", lambda **_: ())
        with structlog.testing.capture_logs() as logs:
            assert worker.step()
    (event,) = [e for e in logs if e["event"] == "job.finished"]
    return event["study_uid"], event["run"]


def test_a_good_trial_breaks_nothing(trial: Seen) -> None:
    assert len(list(trial.acked)) == 2 * SLICES
    assert len(trial.arrivals) == 4
    assert sorted(job.fencing_token for job in trial.held.jobs) == [1, 2]
    assert violations(trial) == []
    assert all(answers(trial.arrivals, study) for study in trial.sent.values())
    assert database_problem(trial.data_dir) is None


def without(held: Held, sop_instance_uid: str) -> Held:
    kept = {uid: row for uid, row in held.instances.items() if uid != sop_instance_uid}
    return replace(held, instances=kept)


def test_a_lost_instance_is_noticed(trial: Seen) -> None:
    lost = next(iter(trial.acked))
    seen = replace(trial, held=without(trial.held, lost))
    assert violations(seen) == [f"instance {lost} was answered 0000 and is not held"]


@pytest.mark.parametrize("change", ["altered", "truncated", "removed"])
def test_a_file_that_is_not_what_was_sent_is_noticed(trial: Seen, change: str) -> None:
    sop, (_, _, path) = next(iter(trial.held.instances.items()))
    before = path.read_bytes()
    try:
        if change == "altered":
            path.write_bytes(before[:-9] + bytes([before[-9] ^ 1]) + before[-8:])
        elif change == "truncated":
            path.write_bytes(before[:-2])
        else:
            path.unlink()
        assert violations(trial) == [f"the file of instance {sop} is not what was sent"]
    finally:
        path.write_bytes(before)
    assert violations(trial) == []


def test_a_study_that_does_not_end_is_noticed(trial: Seen) -> None:
    uid = next(iter(trial.sent))
    for state in ("RECEIVING", "QUEUED", "FAILED", "QUARANTINED"):
        studies = {**trial.held.studies, uid: (state, trial.held.studies[uid][1])}
        found = violations(replace(trial, held=replace(trial.held, studies=studies)))
        assert found == [f"study {uid} stands in {state}, not in DONE"]


def test_a_doubled_result_is_noticed(trial: Seen) -> None:
    one = trial.arrivals[0]
    again = replace(trial, arrivals=[*trial.arrivals, one])
    assert violations(again) == [], "the same bytes under the same UID are no second result"
    other_bytes = replace(one, sha256="0" * 64)
    found = violations(replace(trial, arrivals=[*trial.arrivals, other_bytes]))
    assert found == [f"result {one.sop_instance_uid} came with different bytes"]
    other_uid = replace(one, sop_instance_uid="2.25.1")
    found = violations(replace(trial, arrivals=[*trial.arrivals, other_uid]))
    assert "the PACS has result 2.25.1, which the node does not know" in found
    assert any(f"2 {'SR'} of" in line or "2 NARRATIVE of" in line for line in found)


def test_a_result_of_another_patient_or_study_is_noticed(trial: Seen) -> None:
    one, rest = trial.arrivals[0], list(trial.arrivals[1:])
    uid = one.sop_instance_uid

    def found(**changes: object) -> list[str]:
        changed = [replace(a, **changes) for a in trial.arrivals if a.sop_instance_uid == uid]  # type: ignore[arg-type]
        others = [a for a in rest if a.sop_instance_uid != uid]
        return violations(replace(trial, arrivals=[*changed, *others]))

    assert found(patient_id="SOMEONE-ELSE") == [f"result {uid} stands under patient SOMEONE-ELSE"]
    other = next(u for u in trial.sent if u != one.study_uid)
    assert f"result {uid} stands under study {other}, not {one.study_uid}" in found(study_uid=other)
    images = frozenset(trial.sent[other].digests)
    assert found(images=images) == [f"result {uid} refers to images of another study"]
    assert found(sha256="0" * 64) == [f"result {uid} came with other bytes than were persisted"]


def test_a_result_that_never_came_is_noticed(trial: Seen) -> None:
    uid = trial.arrivals[0].sop_instance_uid
    kept = [a for a in trial.arrivals if a.sop_instance_uid != uid]
    (found,) = violations(replace(trial, arrivals=kept))
    assert found.startswith("the PACS has 0 ")


def test_a_claim_that_had_lost_its_job_is_noticed(trial: Seen) -> None:
    uid, run = trial.finished[0]
    found = violations(replace(trial, finished=[*trial.finished, (uid, run)]))
    assert found == [f"run {run} of {uid} was finished by 2 claims"]
    jobs = [
        SimpleNamespace(**row._asdict() | {"fencing_token": row.fencing_token + 1})
        if row.study_uid == uid
        else row
        for row in trial.held.jobs
    ]
    found = violations(replace(trial, held=replace(trial.held, jobs=jobs)))
    assert set(found) == {f"a result of run {run} of {uid} is of a claim that had lost the job"}


def test_a_journal_goes_on_after_half_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal-0.jsonl")
    assert journal.sessions == 1
    trials = [{"process": "worker", "how": "moment", "recovered_s": s} for s in (1.0, 2.5)]
    journal.add_session("kill", 1, trials, [], {"studies": 4}, tmp_path / "none")
    with journal.path.open("a") as file:
        file.write('{"kind": "kill", "sess')
    again = Journal(journal.path)
    assert again.sessions == 2
    again.add_session("kill", 2, trials[:1], ["lost"], {"studies": 1}, tmp_path / "none")
    figures = summary(Journal(journal.path).trials)
    assert (figures["faults"], figures["violations"], figures["studies"]) == (3, 1, 5)
    assert figures["recovery_s"] == {"kill worker": {"median": 1.0, "worst": 2.5}}
